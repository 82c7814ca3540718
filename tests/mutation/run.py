"""Which single changes of the engine its tests do not notice.

``python tests/mutation/run.py --sample 300`` mutates the modules of the engine one place at a time, runs the fast tests
against each mutant in a forked process and prints those that survive. ``equivalent.csv`` lists the mutants that nothing
could notice, each with the reason. Exit status 1 where fewer than nine in ten of the others are killed.
"""

from __future__ import annotations

import argparse
import csv
import importlib.abc
import importlib.util
import io
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import operators

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = ROOT / "vramcalc"
MODULES = ("shadow/**/*.py", "memory/ledger.py", "memory/walks.py")
TESTS = (
    "allocator", "expandable", "granite", "fused", "mixtral", "grid", "peft_runs", "snapshots", "timeline", "laws",
    "measured",
)  # fmt: skip
"""Files of tests that need no torch, quick ones first; every stored trace comes before them."""
QUICK_ROWS = 120
"""Stored traces, from the smallest to the largest, that a mutant meets before all the others."""
PASSED, KILLED = 0, 1
SHARE = 0.9
"""Of the mutants that are not equivalent, how many must be killed."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module."""

    path: Path
    operator: str
    occurrence: int
    line: int

    @property
    def source(self) -> str:
        """The module as it is."""
        return self.path.read_text()

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What it is told by while lines move: module, text of the line, operator, which of several on that line."""
        same = [m for m in operators.mutations(self.source) if m[0] == self.operator and m[2] == self.line]
        which = [occurrence for _, occurrence, _ in same].index(self.occurrence)
        return str(self.path.relative_to(PACKAGE)), self.text, self.operator, which

    @property
    def text(self) -> str:
        """The line it changes."""
        return self.source.splitlines()[self.line - 1].strip()

    @property
    def change(self) -> str:
        """The line after the change."""
        changed = operators.mutated(self.source, self.operator, self.occurrence) or ""
        pairs = zip(self.source.splitlines(), changed.splitlines(), strict=False)
        return next((new.strip() for old, new in pairs if old != new), "")


class MutatedImport(importlib.abc.MetaPathFinder, importlib.abc.SourceLoader):
    """Imports one module from another text."""

    def __init__(self, name: str, path: Path, text: str) -> None:
        self.name, self.path, self.text = name, path, text

    def find_spec(self, fullname: str, path: object, target: ModuleType | None = None) -> object:
        """Only that module."""
        if fullname != self.name:
            return None
        package = self.path.name == "__init__.py"
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=[str(self.path.parent)] if package else None
        )

    def get_filename(self, fullname: str) -> str:
        """Where its text would be."""
        return str(self.path)

    def get_data(self, path: str | bytes) -> bytes:
        """Its text; nothing compiled is kept."""
        if str(path).endswith(".pyc"):
            raise OSError
        return self.text.encode()

    def path_stats(self, path: str) -> dict[str, float]:
        """No stored byte code is good for it."""
        raise OSError


def main() -> int:
    """Mutate, test, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=int, help="so many mutants, chosen by the seed; all without it")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", default="", help="modules whose path holds this")
    parser.add_argument("--limit-s", type=float, default=240, help="of one mutant; one that takes longer is killed")
    parser.add_argument("--output", type=Path, help="a CSV of the survivors")
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    if tested(None, 10 * asked.limit_s) != PASSED:
        print("the tests fail without any mutant", file=sys.stderr)
        return 2
    chosen = [m for m in every() if asked.only in str(m.path)]
    if asked.sample is not None:
        chosen = random.Random(asked.seed).sample(chosen, min(asked.sample, len(chosen)))  # noqa: S311 - a sample
    return report(chosen, asked.limit_s, asked.output)


def every() -> list[Mutant]:
    """All mutants of the engine that change something."""
    paths = sorted({path for pattern in MODULES for path in PACKAGE.glob(pattern)})
    found = [Mutant(path, *m) for path in paths for m in operators.mutations(path.read_text())]
    return [m for m in found if operators.mutated(m.source, m.operator, m.occurrence)]


def report(chosen: list[Mutant], limit_s: float, output: Path | None) -> int:
    """Print survivors as they are found, and the counts."""
    known = equivalents()
    counts: Counter[str] = Counter()
    lived: list[Mutant] = []
    for mutant in chosen:
        if mutant.key in known:
            counts["equivalent"] += 1
            continue
        start = time.monotonic()
        status = tested(mutant, limit_s)
        counts["killed" if status else "survived"] += 1
        if status == PASSED:
            lived.append(mutant)
            place = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
            took_s = time.monotonic() - start
            print(f"{place}  {mutant.operator} ({took_s:.0f} s)\n  - {mutant.text}\n  + {mutant.change}", flush=True)
    if output:
        with output.open("w", newline="") as file:
            columns = ["module", "line", "operator", "which", "reason"]
            csv.writer(file).writerows([columns, *([*m.key, ""] for m in lived)])
    total = counts["killed"] + counts["survived"]
    share = counts["killed"] / total if total else 1.0
    print(f"{counts['killed']} of {total} killed ({share:.1%}); {counts['equivalent']} equivalent, see equivalent.csv")
    return int(share < SHARE)


def equivalents() -> set[tuple[str, str, str, int]]:
    """Mutants that nothing could notice."""
    with (HERE / "equivalent.csv").open(newline="") as file:
        return {(r["module"], r["line"], r["operator"], int(r["which"])) for r in csv.DictReader(file)}


def tested(mutant: Mutant | None, limit_s: float) -> int:
    """Status of the tests against a mutant, in a process of its own."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = KILLED
    try:
        signal.alarm(int(limit_s))
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            status = _passes(mutant)
    finally:
        os._exit(status)


def _passes(mutant: Mutant | None) -> int:
    if mutant:
        text = operators.mutated(mutant.source, mutant.operator, mutant.occurrence) or ""
        parts = mutant.path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sys.meta_path.insert(0, MutatedImport(name, mutant.path, text))
    with suppress(Exception):
        if all(_agree()):
            return _pytest()
    return KILLED


def _agree() -> Iterator[bool]:
    """Whether each stored trace is met, a spread of them first."""
    from vramcalc.accuracy.traces.accuracy import Compared
    from vramcalc.accuracy.traces.table import read_traces
    from vramcalc.memory.estimate import estimate_job

    rows = sorted(read_traces(), key=lambda row: row.job.model.num_hidden_layers)
    spread = rows[:: max(1, len(rows) // QUICK_ROWS)]
    for row in [*spread, *(row for row in rows if row not in spread)]:
        found = estimate_job(row.job)
        predicted = found.allocated_bytes, found.walks.from_loaded.peak_reserved_bytes
        yield Compared(row, predicted, (row.allocated_bytes, row.reserved_bytes)).status in ("agrees", "explained")


def _pytest() -> int:
    import pytest

    files = [ROOT / "tests" / f"test_{name}.py" for name in TESTS]
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not trace"]
    return int(pytest.main([*options, *(str(f) for f in files if f.exists())]) != 0)


if __name__ == "__main__":
    import hypothesis
    import numpy
    import pydantic  # before the first fork: every mutant finds them there

    assert all((hypothesis, numpy, pydantic))
    raise SystemExit(main())
