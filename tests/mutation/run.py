"""Which single changes of the engine its tests do not notice.

``python tests/mutation/run.py --sample 300`` mutates the modules of the engine one place at a time, runs the fast tests
against each mutant in a forked process and prints those that survive. ``equivalent.csv`` lists the mutants that nothing
could notice, each with the reason. Exit status 1 where fewer than nine in ten of the others are killed.

A share is worth what its sample is: that of a seed whose survivors have been looked at says how well they were looked
at. Take a seed that nobody has taken, and read the share before its survivors have tests. A mutant is killed by the
first stored trace whose prediction is further off than ``tests/reference/trace_differences.csv`` says, by the first
test of ``TESTS`` that fails, by an error, or by the clock.
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
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import ModuleType

import operators

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGE = ROOT / "vramcalc"
MODULES = ("shadow/**/*.py", "memory/ledger.py", "memory/walks.py")
TESTS = (
    "kernels", "attention_kernels", "losses", "optim", "pieces", "fused_pieces", "raw_loops", "snapshots", "releases",
    "torch_releases", "ends", "expandable", "granite", "fused", "mixtral", "peft_runs", "alloc_conf", "allocator",
    "timeline", "laws", "grid", "measured",
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
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--output", type=Path, help="a CSV of the survivors")
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    chosen = [m for m in every() if asked.only in str(m.path)]
    random.Random(asked.seed).shuffle(chosen)  # noqa: S311 - a sample
    changing = islice((m for m in chosen if operators.mutated(m.source, m.operator, m.occurrence)), asked.sample)
    return report(list(changing), asked.limit_s, asked.jobs, asked.output)


def every() -> list[Mutant]:
    """All places of the engine that can be mutated; some change nothing."""
    paths = sorted({path for pattern in MODULES for path in PACKAGE.glob(pattern)})
    return [Mutant(path, *m) for path in paths for m in operators.mutations(path.read_text())]


def report(chosen: list[Mutant], limit_s: float, jobs: int, output: Path | None) -> int:
    """Print survivors as they are found, and the counts."""
    known = equivalents()
    asked = [m for m in chosen if not known or m.key not in known]
    killed, lived = 0, []
    for mutant, status, took_s in tested([None, *asked], limit_s, jobs):
        if mutant is None:
            if status != PASSED:
                print("the tests fail without any mutant", file=sys.stderr)
                return 2
        elif status == PASSED:
            lived.append(mutant)
            place = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
            print(f"{place}  {mutant.operator} ({took_s:.0f} s)\n  - {mutant.text}\n  + {mutant.change}", flush=True)
        else:
            killed += 1
    if output:
        with output.open("w", newline="") as file:
            columns = ["module", "line", "operator", "which", "reason"]
            csv.writer(file).writerows([columns, *([*m.key, ""] for m in lived)])
    share = killed / len(asked) if asked else 1.0
    equivalent = len(chosen) - len(asked)
    print(f"{killed} of {len(asked)} killed ({share:.1%}); {equivalent} equivalent, see equivalent.csv")
    return int(share < SHARE)


def equivalents() -> set[tuple[str, str, str, int]]:
    """Mutants that nothing could notice."""
    with (HERE / "equivalent.csv").open(newline="") as file:
        return {(r["module"], r["line"], r["operator"], int(r["which"])) for r in csv.DictReader(file)}


def tested(mutants: list[Mutant | None], limit_s: float, jobs: int) -> Iterator[tuple[Mutant | None, int, float]]:
    """Status of the tests against each mutant, and seconds it took, as they end; None is the engine as it is."""
    running: dict[int, tuple[Mutant | None, float]] = {}
    left = iter(mutants)
    while True:
        for mutant in islice(left, jobs - len(running)):
            running[_forked(mutant, limit_s)] = mutant, time.monotonic()
        if not running:
            return
        child, status = os.wait()
        mutant, start = running.pop(child)
        yield mutant, os.waitstatus_to_exitcode(status), time.monotonic() - start


def _forked(mutant: Mutant | None, limit_s: float) -> int:
    """Process id of the tests against a mutant."""
    child = os.fork()
    if child:
        return child
    status = KILLED
    try:
        signal.alarm(int(limit_s if mutant else 10 * limit_s))
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
    """Whether each stored trace is met as nearly as it is known to be, a spread of them first."""
    from stored_traces import as_known, known

    from vramcalc.accuracy.traces.table import read_traces

    listed = known()
    rows = sorted(read_traces(), key=lambda row: row.job.model.num_hidden_layers)
    spread = rows[:: max(1, len(rows) // QUICK_ROWS)]
    for row in [*spread, *(row for row in rows if row not in spread)]:
        yield as_known(row, listed)


def _pytest() -> int:
    import pytest

    files = [path for name in TESTS for path in (ROOT / "tests").glob(f"*/test_{name}.py")]
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not trace"]
    return int(pytest.main([*options, *map(str, files)]) != 0)


if __name__ == "__main__":
    import hypothesis
    import numpy
    import pydantic  # before the first fork: every mutant finds them there

    assert all((hypothesis, numpy, pydantic))
    raise SystemExit(main())
