"""``tables/traces.csv``: jobs, and what the real libraries asked the allocator for when each was traced."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from vramcalc import tables
from vramcalc.errors import DataError, VramcalcError
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.releases import minor_release
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.inputs.stack import Method, Stack, TrainingSpec

COLUMNS = (
    "trace_id",
    "model",
    "changes",
    "method",
    "training",
    "stack",
    "compute_capability",
    "allocated_bytes",
    "reserved_bytes",
    "trace_s",
    "versions",
    "checked_on",
    "explanation",
)
MODELLED = ("torch", "transformers", "peft", "bitsandbytes")
"""Libraries whose version a recipe names."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class TracedRow:
    """A job, and what a trace of it found.

    Attributes:
        trace_id: names the row.
        job: what was traced. The table holds the model's name with the fields that were changed, and of method,
            training and stack those that differ from the defaults, as JSON.
        settings: that text, for a reader.
        allocated_bytes: highest sum of live storages, each rounded up to 512. [B]
        reserved_bytes: peak of the same requests through the replay of the caching allocator. [B]
        trace_s: time the trace took on two shared cores; it decides which rows a short run takes. [s]
        versions: of the libraries that ran.
        checked_on: date of the trace.
        explanation: why the prediction differs, where it does; else empty.
    """

    trace_id: str
    job: Job
    settings: str
    allocated_bytes: int
    reserved_bytes: int
    trace_s: float
    versions: Mapping[str, str] = field(hash=False)
    checked_on: str
    explanation: str


def path() -> Path:
    """Of the shipped table."""
    return tables.directory() / "traces.csv"


def read_traces(file: str | Path | None = None) -> tuple[TracedRow, ...]:
    """Rows of a table of traces.

    Args:
        file: in the schema of ``tables/traces.csv``; that table itself when left out.

    Raises:
        DataError: the file cannot be read, or a field is not what it should be; line and field are named.
    """
    where = path() if file is None else Path(file)
    raw = raw_rows(where)
    rows = tuple(_row(r, f"{where}, row {n}") for n, r in enumerate(raw, start=2))
    seen: set[str] = set()
    for n, row in enumerate(rows, start=2):
        if row.trace_id in seen:
            raise DataError(f"{where}, row {n}: trace_id = {row.trace_id!r}: expected a name of its own; it is taken")
        seen.add(row.trace_id)
    return rows


def raw_rows(file: Path) -> tuple[tables.Row, ...]:
    """Rows as text; those not traced yet lack their numbers.

    Raises:
        DataError: the file cannot be read, or has other columns.
    """
    rows = tables.read_file(file)
    if not rows or tuple(rows[0]) != COLUMNS:
        found = ", ".join(rows[0]) if rows else "no row"
        raise DataError(f"{file}: expected a row under the columns {', '.join(COLUMNS)}; found {found}")
    return rows


def job_of(raw: Mapping[str, str], where: str) -> Job:
    """The job of a row as text.

    Raises:
        DataError: a field is not what it should be.
    """
    method = _field(raw, "method", where, "the fields of a method with its kind, as JSON", _method)
    training = _field(raw, "training", where, "fields of TrainingSpec as JSON", lambda t: TrainingSpec(**_object(t)))
    stack = _field(raw, "stack", where, "fields of Stack as JSON", lambda t: Stack(**_object(t)))
    capability = _field(raw, "compute_capability", where, "two numbers such as 8.0", _capability)
    model = _field(raw, "model", where, "a model of the catalog", catalog.model)
    changed = _field(raw, "changes", where, "fields of ModelSpec as JSON", lambda t: model.replace(**_object(t)))
    try:
        return Job(changed, method, training, stack, capability)
    except VramcalcError as err:
        raise DataError(f"{where}: {err}") from err


def settings_of(raw: Mapping[str, str]) -> str:
    """What sets a job apart, in one line."""
    capability = raw["compute_capability"]
    parts = [raw["model"], *(raw[name] for name in ("changes", "method", "training", "stack"))]
    text = " ".join(p for p in parts if p != "{}").translate(str.maketrans("", "", '{}"'))
    return text if capability == "8.0" else f"{text} sm_{capability.replace('.', '')}"


def _row(raw: Mapping[str, str], where: str) -> TracedRow:
    job = job_of(raw, where)
    row = TracedRow(
        trace_id=_field(raw, "trace_id", where, "a name", _text),
        job=job,
        settings=settings_of(raw),
        allocated_bytes=_field(raw, "allocated_bytes", where, "a number of bytes", _positive),
        reserved_bytes=_field(raw, "reserved_bytes", where, "a number of bytes", _positive),
        trace_s=_field(raw, "trace_s", where, "seconds", _seconds),
        versions=_field(raw, "versions", where, "libraries with their versions, with commas", _versions),
        checked_on=_field(raw, "checked_on", where, "a date", lambda _: tables.checked_on(dict(raw)).isoformat()),
        explanation=raw["explanation"],
    )
    for library in MODELLED:
        said, asked = row.versions.get(library, "none"), getattr(job.stack, library)
        if minor_release(said) != minor_release(asked):
            raise DataError(
                f"{where}: versions: {library} {said}, and the recipe models {library} {asked}: expected the same "
                "release; name it in stack, or trace the row again"
            )
    return row


def _field(raw: Mapping[str, str], name: str, where: str, expected: str, read: Callable[[str], _T]) -> _T:
    try:
        return read(raw[name])
    except (ValueError, TypeError, KeyError, VramcalcError) as err:
        why = f" ({err})" if isinstance(err, VramcalcError) else ""
        raise DataError(f"{where}: {name} = {raw[name][:80]!r}: expected {expected}{why}") from err


def _object(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if not isinstance(found, dict):
        raise TypeError
    return found


def _method(text: str) -> Method:
    fields = _object(text)
    return METHOD_CLASSES[fields.pop("kind")](**fields)


def _capability(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _text(text: str) -> str:
    if not text:
        raise ValueError
    return text


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not int(text):
        raise ValueError
    return int(text)


def _seconds(text: str) -> float:
    found = float(text)
    if not 0 < found < 1e5:
        raise ValueError
    return found


def _versions(text: str) -> dict[str, str]:
    found = dict(part.split(" ") for part in text.split(", "))
    if not all(minor_release(v) for v in found.values()):
        raise ValueError
    return found
