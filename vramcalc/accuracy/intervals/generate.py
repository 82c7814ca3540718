"""Make ``tables/calibration.json`` of the published measurements and shipped profiles; ``--check`` only compares.

Run as ``python -m vramcalc.accuracy.intervals.generate``.
"""

from __future__ import annotations

import sys

from vramcalc import tables
from vramcalc.accuracy.intervals.fitted_calibration import fit_calibration, merged, profiled, published
from vramcalc.memory.calibration.file import shipped_path, to_json
from vramcalc.profiling import rows


def made() -> str:
    """The file's content: the same for the same tables and the same code."""
    found = published(tables.directory() / "measurements.csv")
    return to_json(fit_calibration(merged(found, profiled(rows.shipped()))))


def main() -> int:
    """Write the file, or say that it is stale."""
    text, path = made(), shipped_path()
    if "--check" not in sys.argv[1:]:
        path.write_text(text, encoding="utf-8")
        return 0
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return 0
    print(
        "tables/calibration.json is stale: run 'python -m vramcalc.accuracy.intervals.generate' and commit the result",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
