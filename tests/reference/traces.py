"""Take the traces of ``tables/traces.csv``.

    python tests/reference/traces.py               rows without numbers
    python tests/reference/traces.py --all         every row
    python tests/reference/traces.py full-12 ...   these rows

Only rows whose recipe names the releases that are installed can be traced: for those of another release, run this with
that release installed beside the others. With liger-kernel and trl for the fused losses.
"""

from __future__ import annotations

import csv
import sys
import time
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

if version("transformers").startswith("4."):
    # Releases of that time import what today's torchao has no more.
    sys.modules["torchao"] = None  # type: ignore[assignment]

import vramcalc.profiling.trace.trace  # noqa: F401 - so that no row is charged with the time this takes
from vramcalc.accuracy.traces.compare import compare, other_release
from vramcalc.accuracy.traces.table import COLUMNS, MODELLED, job_of, path, raw_rows
from vramcalc.errors import VramcalcError
from vramcalc.memory.estimate import estimate_job
from vramcalc.tables import Row


def traced(row: Row) -> tuple[Row, str]:
    """The row with numbers from the libraries that are installed, and how the prediction compares."""
    started = time.perf_counter()
    found = compare(estimate_job(job_of(row, row["trace_id"])))
    numbers = {
        "allocated_bytes": str(found.traced.allocated_bytes),
        "reserved_bytes": str(found.traced.reserved_bytes),
        "trace_s": f"{time.perf_counter() - started:.1f}",
        "versions": ", ".join(f"{library} {v.partition('+')[0]}" for library, v in found.trace.versions.items()),
        "checked_on": datetime.now(tz=UTC).date().isoformat(),
    }
    said = f"{100 * found.allocated_error:+.4f} % {100 * found.reserved_error:+.3f} % {numbers['trace_s']} s"
    return {**row, **numbers}, f"{said} {found.difference or ''}".rstrip()


def write(rows: list[Row], where: Path) -> None:
    """The table, in its order."""
    with where.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(asked: list[str]) -> None:
    """Trace and rewrite the table, row by row."""
    where = path()
    rows = list(raw_rows(where))
    unknown = {*asked} - {"--all"} - {row["trace_id"] for row in rows}
    if unknown:
        raise SystemExit(f"no row is called {', '.join(sorted(unknown))}")
    left_out: Counter[str] = Counter()
    for number, row in enumerate(rows):
        if row["trace_s"] and row["trace_id"] not in asked and "--all" not in asked:
            continue
        if reason := other_release(job_of(row, row["trace_id"]), MODELLED):
            if row["trace_id"] in asked:
                raise SystemExit(f"{row['trace_id']}: {reason}")
            left_out[reason] += 1
            continue
        try:
            rows[number], said = traced(row)
        except VramcalcError as err:
            left_out[f"{type(err).__name__}: {err}"] += 1
            print(f"{row['trace_id']}: {err}", flush=True)
            continue
        print(f"{number + 1}/{len(rows)} {row['trace_id']} {said}", flush=True)
        write(rows, where)
    for reason, count in left_out.items():
        print(f"{count} rows left as they are: {reason}")


if __name__ == "__main__":
    main(sys.argv[1:])
