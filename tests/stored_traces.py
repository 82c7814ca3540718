"""How far each stored trace is from its prediction, to the byte.

``tables/traces.csv`` allows a share of the peak; most predictions are exact, and one that is not stays where it is
known to be. ``python tests/stored_traces.py`` writes ``reference/trace_differences.csv`` again.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from vramcalc.accuracy.traces.table import TracedRow, read_traces
from vramcalc.memory.estimate import estimate_job

FILE = Path(__file__).parent / "reference" / "trace_differences.csv"
COLUMNS = ("trace_id", "allocated_bytes", "reserved_bytes")
Differences = tuple[int, int]
"""Predicted less traced: allocated and reserved. [B]"""


def known() -> dict[str, Differences]:
    """Of the rows that are not exact."""
    with FILE.open(newline="") as file:
        return {r["trace_id"]: (int(r["allocated_bytes"]), int(r["reserved_bytes"])) for r in csv.DictReader(file)}


def differences(row: TracedRow) -> Differences:
    """Of one row, now."""
    found = estimate_job(row.job)
    reserved = found.walks.from_loaded.peak_reserved_bytes
    return found.allocated_bytes - row.allocated_bytes, reserved - row.reserved_bytes


def as_known(row: TracedRow, listed: Mapping[str, Differences]) -> bool:
    """Whether a row is no further off than is known, which is not at all unless it is listed."""
    return all(
        abs(now) <= abs(then) for now, then in zip(differences(row), listed.get(row.trace_id, (0, 0)), strict=True)
    )


def main() -> None:
    """Write the list."""
    found = {row.trace_id: differences(row) for row in read_traces()}
    with FILE.open("w", newline="") as file:
        lines = [(name, *both) for name, both in sorted(found.items()) if any(both)]
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *lines])


if __name__ == "__main__":
    main()
