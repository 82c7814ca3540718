"""How far predictions are from traces of the real libraries: taken now, or as ``tables/traces.csv`` keeps them."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vramcalc.accuracy.axes import AXES, regime
from vramcalc.accuracy.traces.compare import TOLERANCE, compare, other_release
from vramcalc.accuracy.traces.table import MODELLED, TracedRow, read_traces
from vramcalc.display import track
from vramcalc.errors import InvalidValue
from vramcalc.inputs.job import Job
from vramcalc.memory.estimate import estimate_job

RESERVED_TOLERANCE = 5e-3
"""Of the reserved peak, relative."""


@dataclass(frozen=True)
class Compared:
    """One row of the grid: predicted and traced peaks, or why there are none.

    Attributes:
        row: of the table.
        predicted: allocated and reserved. [B]
        traced: allocated and reserved. [B]
        reason: why the row was not traced; empty where it was.
    """

    row: TracedRow
    predicted: tuple[int, int] | None = None
    traced: tuple[int, int] | None = None
    reason: str = ""

    @property
    def errors(self) -> tuple[float, float] | None:
        """Predicted over traced, less one: allocated and reserved."""
        if self.predicted is None or self.traced is None:
            return None
        (a, r), (traced_a, traced_r) = self.predicted, self.traced
        return a / traced_a - 1, r / traced_r - 1

    @property
    def status(self) -> str:
        """``agrees``, ``explained``, ``unexplained`` or ``not traced``."""
        if self.errors is None:
            return "not traced"
        allocated, reserved = self.errors
        if abs(allocated) <= TOLERANCE and abs(reserved) <= RESERVED_TOLERANCE:
            return "agrees"
        return "explained" if self.row.explanation else "unexplained"

    @property
    def as_stored(self) -> bool:
        """Whether the trace found what the table says."""
        return self.traced == (self.row.allocated_bytes, self.row.reserved_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; field names are stable."""
        predicted, traced, errors = (p or (None, None) for p in (self.predicted, self.traced, self.errors))
        return {
            "trace_id": self.row.trace_id,
            **{axis: of(self.row.job) for axis, of in AXES.items()},
            "settings": self.row.settings,
            "status": self.status,
            "predicted_allocated_bytes": predicted[0],
            "traced_allocated_bytes": traced[0],
            "allocated_error": errors[0],
            "predicted_reserved_bytes": predicted[1],
            "traced_reserved_bytes": traced[1],
            "reserved_error": errors[1],
            "reason": self.reason,
            "explanation": self.row.explanation,
        }


@dataclass(frozen=True)
class Regime:
    """Rows of one family, method and kind of checkpointing.

    Attributes:
        name: those three.
        count: rows compared.
        allocated_error: the largest, with its sign.
        reserved_error: the largest, with its sign.
        worst_case: row with the largest error of either, each as a share of what is allowed.
    """

    name: tuple[str, ...]
    count: int
    allocated_error: float
    reserved_error: float
    worst_case: str


@dataclass(frozen=True)
class TraceAccuracy:
    """What a table of traces says about the predictions.

    Attributes:
        compared: every row of the table.
        stored: nothing was traced: the numbers of the table were taken.
    """

    compared: tuple[Compared, ...]
    stored: bool

    def count(self, status: str) -> int:
        """Rows of one status."""
        return sum(c.status == status for c in self.compared)

    @property
    def done(self) -> list[Compared]:
        """Rows with both sides."""
        return [c for c in self.compared if c.errors]

    @property
    def ok(self) -> bool:
        """Whether every difference beyond what is allowed has an explanation."""
        return not self.count("unexplained")

    @cached_property
    def regimes(self) -> list[Regime]:
        """The rows that were compared, by family, method and checkpointing."""
        found: dict[tuple[str, ...], list[Compared]] = {}
        for c in self.done:
            found.setdefault(regime(c.row.job), []).append(c)
        return [_regime(name, rows) for name, rows in sorted(found.items())]

    @property
    def settings(self) -> dict[str, Counter[str]]:
        """For each axis, how many of the rows that were compared have which value."""
        return {axis: Counter(of(c.row.job) for c in self.done) for axis, of in AXES.items()}

    @property
    def versions(self) -> dict[str, list[str]]:
        """Libraries that ran in the rows that were compared, with their versions, oldest first."""
        found: dict[str, set[str]] = {}
        for c in self.done:
            for library, version in c.row.versions.items():
                found.setdefault(library, set()).add(version.partition("+")[0])
        return {library: sorted(v, key=lambda v: [int(n) for n in v.split(".")]) for library, v in found.items()}

    @property
    def not_traced(self) -> Counter[str]:
        """Rows that were not traced, by reason."""
        return Counter(c.reason for c in self.compared if not c.errors)

    def to_dict(self, *, rows: bool = False) -> dict[str, Any]:
        """Plain values; field names are stable."""
        statuses = ("agrees", "explained", "unexplained", "not traced")
        found: dict[str, Any] = {
            "stored": self.stored,
            "counts": {s.replace(" ", "_"): self.count(s) for s in statuses},
            "regimes": [{**vars(r), "name": list(r.name)} for r in self.regimes],
            "settings": {axis: dict(counts) for axis, counts in self.settings.items()},
            "versions": self.versions,
            "not_traced": dict(self.not_traced.most_common()),
            "beyond": [c.to_dict() for c in self.compared if c.status in ("explained", "unexplained")],
            "not_as_stored": [c.row.trace_id for c in self.done if not c.as_stored],
        }
        if rows:
            found["rows"] = [c.to_dict() for c in self.compared]
        return found


def _regime(name: tuple[str, ...], rows: Sequence[Compared]) -> Regime:
    errors = [c.errors for c in rows if c.errors]
    worst = max(rows, key=_share)
    allocated, reserved = (max((e[i] for e in errors), key=abs) for i in (0, 1))
    return Regime(name, len(rows), allocated, reserved, worst.row.trace_id)


def _share(c: Compared) -> float:
    """The larger of both errors, each as a share of what is allowed."""
    allocated, reserved = c.errors or (0.0, 0.0)
    return max(abs(allocated) / TOLERANCE, abs(reserved) / RESERVED_TOLERANCE)


def pull(rows: Sequence[TracedRow], limit_s: float) -> list[TracedRow]:
    """Rows of every kind that can be traced in a given time, always the same ones.

    Regimes take turns, each with its quick rows first; which of those that take about the same time has no meaning.

    Args:
        rows: to choose from.
        limit_s: time, measured by what the traces took when the table was made. [s]

    Raises:
        InvalidValue: no time at all.
    """
    if not limit_s > 0:
        raise InvalidValue("limit_s", limit_s, "more than 0")
    kinds: dict[tuple[str, ...], list[TracedRow]] = {}
    for row in sorted(rows, key=lambda r: (round(math.log2(r.trace_s)), _shuffled(r.trace_id))):
        kinds.setdefault(regime(row.job), []).append(row)
    turns = sorted(
        ((n, _shuffled(*kind), row) for kind, mine in kinds.items() for n, row in enumerate(mine)),
        key=lambda turn: turn[:2],
    )
    chosen, spent_s = [], 0.0
    for _, _, row in turns:
        if spent_s + row.trace_s <= limit_s:
            spent_s += row.trace_s
            chosen.append(row)
    return chosen


def _shuffled(*names: str) -> bytes:
    """A place for names, always the same one, that says nothing of them: no family comes first for its letter."""
    return hashlib.sha256(" ".join(names).encode()).digest()


def trace_accuracy(
    file: str | Path | None = None,
    *,
    live: bool = False,
    limit_s: float | None = None,
) -> TraceAccuracy:
    """Predict every row of a table of traces.

    Args:
        file: as for :func:`vramcalc.accuracy.traces.table.read_traces`.
        live: trace the rows again, those whose recipe is that of the installed libraries.
        limit_s: only so many rows of every kind, see :func:`pull`. [s]

    Raises:
        DataError: the table is broken.
        MissingExtra: ``live``, and the libraries that every trace needs are not installed.
    """
    rows = read_traces(file)
    why = {row.trace_id: untraceable(row.job) if live else None for row in rows}
    chosen = [row for row in rows if not why[row.trace_id]]
    if limit_s is not None:
        chosen = pull(chosen, limit_s)
    found = track(_live(chosen) if live else _stored(chosen), "traces", len(chosen))
    done = {c.row.trace_id: c for c in found}
    left_out = f"not in the pull that takes {limit_s:g} s" if limit_s is not None else ""
    every = (done.get(r.trace_id) or Compared(r, reason=why[r.trace_id] or left_out) for r in rows)
    return TraceAccuracy(tuple(every), stored=not live)


def untraceable(job: Job) -> str | None:
    """Why the libraries that are installed cannot trace a job, None where they can.

    Raises:
        MissingExtra: no job can be traced.
    """
    if reason := other_release(job, MODELLED):
        return reason
    more = {
        "trl": job.stack.loss == "chunked",
        "liger_kernel": job.stack.loss == "fused_linear",
        "torchao": job.training.optimizer.library == "torchao",
    }
    missing = [name for name, runs in more.items() if runs and find_spec(name) is None]
    return f"{missing[0]} is not installed" if missing else None


def _stored(rows: Iterable[TracedRow]) -> Iterator[Compared]:
    for row in rows:
        found = estimate_job(row.job)
        predicted = found.allocated_bytes, found.walks.from_loaded.peak_reserved_bytes
        yield Compared(row, predicted, (row.allocated_bytes, row.reserved_bytes))


def _live(rows: Iterable[TracedRow]) -> Iterator[Compared]:
    for row in rows:
        found = compare(estimate_job(row.job))
        predicted, traced = ((p.allocated_bytes, p.reserved_bytes) for p in (found.predicted, found.traced))
        yield Compared(row, predicted, traced)
