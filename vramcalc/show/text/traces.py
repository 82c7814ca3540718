"""Accuracy on traces as plain text."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable

from vramcalc.accuracy.axes import REGIME
from vramcalc.accuracy.traces.accuracy import RESERVED_TOLERANCE, Compared, TraceAccuracy
from vramcalc.accuracy.traces.compare import TOLERANCE, Agreement
from vramcalc.accuracy.traces.first_difference import LiveRow
from vramcalc.inputs.releases import minor_release
from vramcalc.show.plaintext import counted, table
from vramcalc.show.words import SHORT_DTYPES, method_line

_WIDTH = 98


def agreement_text(a: Agreement) -> str:
    """Both peaks, and the first tensor that only one side has."""
    job, traced, predicted = a.estimate.job, a.traced, a.predicted
    rows = [
        ("allocated", traced.allocated_bytes, predicted.allocated_bytes, a.allocated_error),
        ("reserved", traced.reserved_bytes, predicted.reserved_bytes, a.reserved_error),
    ]
    cells = [(name, f"{a:,}", f"{b:,}", f"{100 * error:+.4f} %") for name, a, b, error in rows]
    verdict = "agree" if a.agrees else "DIFFER"
    parts = [
        f"{job.model.name}, {job.model.num_hidden_layers} layers: {method_line(job)}",
        "  traced with " + ", ".join(f"{name} {v}" for name, v in a.trace.versions.items()),
        table([*cells], ("bytes at the peak", "traced", "predicted", "difference"), right=(1, 2, 3)),
        table([("traced peak", traced.instant), ("predicted peak", predicted.instant)], ("", "")),
        f"Allocated peaks {verdict}: asked for is {100 * TOLERANCE:g} %.",
    ]
    if a.difference is not None:
        parts.append(_told(a.difference))
    return "\n\n".join(parts)


def traces_text(found: TraceAccuracy, *, rows: bool = False) -> str:
    """Regimes, settings, differences with their explanations, rows that were not traced; on request every row."""
    parts = [_summary(found), _regimes(found), f"Rows by setting\n{_settings(found)}", _versions(found)]
    if beyond := [c for c in found.compared if c.status in ("explained", "unexplained")]:
        parts.append(f"Beyond that: {len(beyond)} rows\n{_beyond(beyond)}")
    if found.not_traced:
        parts.append(counted("Not traced", found.not_traced, widest=84))
    if not found.stored:
        parts.append(_drift(found))
    if rows:
        parts.append(f"Every row\n{_rows(found.compared)}")
    return "\n\n".join(parts)


def _summary(found: TraceAccuracy) -> str:
    how = "kept in tables/traces.csv" if found.stored else "taken now"
    allowed = f"{_percent(TOLERANCE)} of the allocated peak and {_percent(RESERVED_TOLERANCE)} of the reserved one"
    rows = [
        (f"{found.count('agrees'):,}", f"predicted within {allowed}"),
        (f"{found.count('explained'):,}", "further off, for a reason given below"),
        (f"{found.count('unexplained'):,}", "further off, unexplained"),
    ]
    return f"{len(found.done):,} traces {how}\n{table(rows, ('', ''), right=(0,))}"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _error(error: float) -> str:
    return f"{100 * error:+.4f} %"


def _regimes(found: TraceAccuracy) -> str:
    body: list[tuple[object, ...]] = [
        (*r.name, r.count, _error(r.allocated_error), _error(r.reserved_error), r.worst_case) for r in found.regimes
    ]
    body.append(("all", "", "", len(found.done), *_worst(found)))
    headers = (*REGIME, "rows", "allocated", "reserved", "worst row")
    n = len(REGIME)
    return table(body, headers, right=(n, n + 1, n + 2))


def _worst(found: TraceAccuracy) -> tuple[str, str, str]:
    if not found.regimes:
        return "", "", ""
    allocated = max((r.allocated_error for r in found.regimes), key=abs)
    reserved = max((r.reserved_error for r in found.regimes), key=abs)
    return _error(allocated), _error(reserved), ""


def _settings(found: TraceAccuracy) -> str:
    body = [(axis, _counts(counts)) for axis, counts in found.settings.items() if axis not in REGIME]
    return table(body, ("", ""), wrap=(None, _WIDTH - 18))


def _counts(counts: Counter[str]) -> str:
    """Releases from the oldest on, names from the most frequent on."""

    def place(value: str) -> tuple[list[int], int]:
        release = minor_release(value)
        return (list(release) if release else [0]), -counts[value]

    return ", ".join(f"{value}: {counts[value]:,}" for value in sorted(counts, key=place))


def _versions(found: TraceAccuracy) -> str:
    said = (
        f"{library} {versions[0]}" + (f" to {versions[-1]}" if len(versions) > 1 else "")
        for library, versions in found.versions.items()
    )
    return textwrap.fill(f"Traced with {', '.join(said)}", _WIDTH)


def _beyond(rows: Iterable[Compared]) -> str:
    body = []
    for c in rows:
        allocated, reserved = c.errors or (0.0, 0.0)
        why = c.row.explanation or f"NOT EXPLAINED: {c.row.settings}"
        body.append((c.row.trace_id, _error(allocated), _error(reserved), why))
    return table(body, ("row", "allocated", "reserved", "why"), right=(1, 2), wrap=(None, None, None, 46))


def _drift(found: TraceAccuracy) -> str:
    other = [c.row.trace_id for c in found.done if not c.as_stored]
    said = f"{len(found.done) - len(other):,} of {len(found.done):,} traces are as tables/traces.csv keeps them"
    return textwrap.fill(f"{said}; these are not: {', '.join(other)}" if other else said, _WIDTH)


def _rows(rows: Iterable[Compared]) -> str:
    body = []
    for c in rows:
        predicted, traced = c.predicted or ("", ""), c.traced or ("", "")
        errors = [_error(e) for e in c.errors] if c.errors else [c.reason, ""]
        peaks = [f"{n:,}" if n else "" for n in (traced[0], predicted[0], traced[1], predicted[1])]
        body.append((c.row.trace_id, peaks[0], peaks[1], errors[0], peaks[2], peaks[3], errors[1]))
    headers = ("row", "allocated", "predicted", "", "reserved", "predicted", "")
    return table(body, headers, right=(1, 2, 3, 4, 5, 6))


def _told(row: LiveRow) -> str:
    other = "prediction" if row.side == "trace" else "trace"
    shape = " x ".join(map(str, row.shape)) or "scalar"
    return (
        f"First difference at the traced peak: alive in the {row.side}, not in the {other}\n"
        f"  {row.module or '-'}: {row.what}, {shape}, {SHORT_DTYPES.get(row.dtype, row.dtype) or 'bytes'}, "
        f"{row.n_bytes:,} bytes, made in {row.phase}"
    )
