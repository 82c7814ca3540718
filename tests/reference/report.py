"""How far estimates are from the reference traces, by method: ``python tests/reference/report.py``."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tabulate import tabulate
from traces import Row, rows

from vramcalc.estimation import estimate_job


def errors(row: Row) -> tuple[float, float]:
    """Relative errors of allocated and reserved, in percent."""
    found = estimate_job(row.job())
    return (
        100 * (found.allocated_bytes / int(row.allocated_bytes) - 1),
        100 * (found.reserved_bytes / int(row.reserved_bytes) - 1),
    )


def main() -> None:
    """Print the table."""
    table = rows()
    found = [(row.job().method.kind, *errors(row)) for row in table]
    lines = []
    for kind in ("full", "lora", "qlora", "all"):
        mine = [(abs(a), abs(r)) for k, a, r in found if kind in (k, "all")]
        allocated, reserved = ([pair[i] for pair in mine] for i in (0, 1))
        lines.append(
            (
                kind,
                len(mine),
                f"{statistics.median(allocated):.4f} %",
                f"{max(allocated):.4f} %",
                f"{statistics.median(reserved):.2f} %",
                f"{max(reserved):.2f} %",
            )
        )
    headers = ("method", "traces", "allocated, median", "max", "reserved, median", "max")
    print(tabulate(lines, headers, tablefmt="plain", disable_numparse=True))
    print(f"versions: {max((row.versions for row in table), key=len)}")


if __name__ == "__main__":
    main()
