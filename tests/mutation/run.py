"""Which single changes of the engine its tests do not notice.

``python tests/mutation/run.py --sample 100`` mutates the modules of the engine one place at a time, runs stored traces
and fast tests against each mutant in a forked process and prints those that survive. ``equivalent.csv`` lists the
mutants that nothing could notice, each with the reason. Exit status 1 where fewer than nine in ten of the others are
killed.

A mutant meets only what executes its line, which is measured once (``reach.py``): first ``QUICK_ROWS`` stored traces
that differ most in their settings, then fast tests, the quickest first, as many as ``TESTS_S`` allows; with ``--all``
the other traces and tests, too. What is left out could only kill more: the share is a lower bound. A mutant is killed
by a stored trace whose prediction is further off than ``tests/reference/trace_differences.csv`` says, by a test that
fails, by an error, or by the clock, which gives each of them many times the processor time that it takes with the
engine as it is. A line that nothing executes is a survivor.

A share is worth what its sample is: that of a seed whose survivors have been looked at says how well they were looked
at. Take a seed that nobody has taken, and read the share before its survivors have tests.
"""

from __future__ import annotations

import argparse
import csv
import importlib.abc
import importlib.util
import io
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import operators
from reach import PACKAGE, ROOT, TRACES, Reach, Unit, engine, measured

if TYPE_CHECKING:
    from vramcalc.accuracy.traces.table import TracedRow

HERE = Path(__file__).resolve().parent
QUICK_ROWS = 20
"""Stored traces that a mutant meets before the tests."""
TESTS_S = 60.0
"""Processor time of the tests that a mutant meets, as they were watched, which takes several times as long. [CPU s]"""
PASSED, BY_TRACE, BY_TEST, NEVER_RUN = 0, 1, 2, 3
KILLERS = {BY_TRACE: "a trace", BY_TEST: "a test"}
"""By exit status; any other is the clock's."""
SHARE = 0.9
"""Of the mutants that are not equivalent, how many must be killed."""
MEMORY_BYTES = 12 * 2**30
"""Of one mutant."""


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
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--all", action="store_true", help="all traces and tests that execute a mutant's line")
    parser.add_argument("--output", type=Path, help="a CSV of the survivors")
    asked = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    chosen = [m for m in every() if asked.only in str(m.path)]
    random.Random(asked.seed).shuffle(chosen)  # noqa: S311 - a sample
    changing = islice((m for m in chosen if operators.mutated(m.source, m.operator, m.occurrence)), asked.sample)
    known = equivalents()
    sample = list(changing)
    left = [m for m in sample if not known or m.key not in known]
    found = tested(left, measured(asked.jobs), asked.jobs, every_unit=asked.all)
    return report(found, len(sample) - len(left), asked.output)


def every() -> list[Mutant]:
    """All places of the engine that can be mutated; some change nothing."""
    return [Mutant(path, *m) for path in engine() for m in operators.mutations(path.read_text())]


def report(found: Iterator[tuple[Mutant, int, float]], n_equivalent: int, output: Path | None) -> int:
    """Print survivors as they are found, and the counts."""
    killers: Counter[str] = Counter()
    lived: list[Mutant] = []
    for mutant, status, took_s in found:
        if status in (PASSED, NEVER_RUN):
            lived.append(mutant)
            place = f"{mutant.path.relative_to(ROOT)}:{mutant.line}"
            how = "never run" if status == NEVER_RUN else f"{took_s:.0f} s"
            print(f"{place}  {mutant.operator} ({how})\n  - {mutant.text}\n  + {mutant.change}", flush=True)
        else:
            killers[KILLERS.get(status, "the clock")] += 1
    if output:
        with output.open("w", newline="") as file:
            columns = ["module", "line", "operator", "which", "reason"]
            csv.writer(file).writerows([columns, *([*m.key, ""] for m in lived)])
    n = killers.total() + len(lived)
    share = killers.total() / n if n else 1.0
    by = ", ".join(f"{count} by {what}" for what, count in killers.most_common())
    print(f"{killers.total()} of {n} killed ({share:.1%}): {by}; {n_equivalent} equivalent, see equivalent.csv")
    return int(share < SHARE)


def equivalents() -> set[tuple[str, str, str, int]]:
    """Mutants that nothing could notice."""
    with (HERE / "equivalent.csv").open(newline="") as file:
        return {(r["module"], r["line"], r["operator"], int(r["which"])) for r in csv.DictReader(file)}


def tested(mutants: list[Mutant], reach: Reach, jobs: int, *, every_unit: bool) -> Iterator[tuple[Mutant, int, float]]:
    """Status of each mutant, and seconds it took, as they end."""
    # Before the first fork, so that every mutant finds them; what imports the engine must not be among them.
    from vramcalc.accuracy.traces.table import read_traces

    stored = read_traces()
    assert not [name for name in sys.modules if name.startswith(("vramcalc.shadow", "vramcalc.memory"))]
    running: dict[int, tuple[Mutant, float]] = {}
    left = iter(mutants)
    while True:
        for mutant in islice(left, jobs - len(running)):
            if units := reach.of(mutant.path, mutant.line):
                running[_forked(mutant, units, stored, every_unit=every_unit)] = mutant, time.monotonic()
            else:
                yield mutant, NEVER_RUN, 0.0
        if running:
            child, status = os.wait()
            mutant, start = running.pop(child)
            yield mutant, os.waitstatus_to_exitcode(status), time.monotonic() - start
        elif not (mutant := next(left, None)):  # type: ignore[assignment]
            return
        else:
            left = iter([mutant, *left])


def _forked(mutant: Mutant, units: list[Unit], stored: Sequence[TracedRow], *, every_unit: bool) -> int:
    """Process id of what meets a mutant."""
    child = os.fork()
    if child:
        return child
    status = BY_TEST
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            status = _status(mutant, units, stored, every_unit=every_unit)
    finally:
        os._exit(status)


def _status(mutant: Mutant, units: list[Unit], stored: Sequence[TracedRow], *, every_unit: bool) -> int:
    text = operators.mutated(mutant.source, mutant.operator, mutant.occurrence) or ""
    parts = mutant.path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    sys.meta_path.insert(0, MutatedImport(name, mutant.path, text))
    _clock(10.0)
    try:
        traces = {unit.name: unit for unit in units if unit.group == TRACES}
        rows = _spread(traces, stored)
        if not _agree(rows[:QUICK_ROWS], traces):
            return BY_TRACE
        tests = sorted((unit for unit in units if unit.group != TRACES), key=lambda unit: unit.cpu_s)
        spent = accumulate(unit.cpu_s for unit in tests)
        if not _pytest({t.name: t for t, s in zip(tests, spent, strict=True) if every_unit or s <= TESTS_S}):
            return BY_TEST
        if every_unit and not _agree(rows[QUICK_ROWS:], traces):
            return BY_TRACE
    except Exception:
        return BY_TRACE
    return PASSED


def _clock(cpu_s: float) -> None:
    """What runs next is ended by a signal after ten times the time it took when it was watched, which slows it down."""
    signal.setitimer(signal.ITIMER_PROF, 10 + 10 * cpu_s)


def _spread(traces: dict[str, Unit], stored: Sequence[TracedRow]) -> list[TracedRow]:
    """Rows in an order in which every few have all the settings there are among them; the quickest first of equals."""
    from vramcalc.accuracy.axes import AXES

    rows = sorted((row for row in stored if row.trace_id in traces), key=lambda r: traces[r.trace_id].cpu_s)
    settings = {row.trace_id: {(axis, of(row.job)) for axis, of in AXES.items()} for row in rows}
    found: list[TracedRow] = []
    seen: set[tuple[str, str]] = set()
    while rows:
        best = max(rows, key=lambda row: len(settings[row.trace_id] - seen))
        if seen and settings[best.trace_id] <= seen:
            seen = set()
            continue
        seen |= settings[best.trace_id]
        rows.remove(best)
        found.append(best)
    return found


def _agree(rows: list[TracedRow], traces: dict[str, Unit]) -> bool:
    """Whether each row is met as nearly as it is known to be."""
    from stored_traces import as_known, known

    listed = known()
    for row in rows:
        _clock(traces[row.trace_id].cpu_s)
        if not as_known(row, listed):
            return False
    return True


def _pytest(tests: dict[str, Unit]) -> bool:
    """Whether all of these tests pass, the quickest first."""
    import pytest

    class Plugin:
        """Runs these and no others, each against the clock."""

        def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
            wanted = [item for item in items if item.nodeid in tests]
            items[:] = sorted(wanted, key=lambda item: tests[item.nodeid].cpu_s)

        def pytest_runtest_protocol(self, item: pytest.Item) -> None:
            _clock(tests[item.nodeid].cpu_s)

    if not tests:
        return True
    _clock(20.0)
    options = ["-x", "-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not trace", "--rootdir", str(ROOT)]
    files = sorted({str(ROOT / unit.group) for unit in tests.values()})
    return pytest.main([*options, *files], plugins=[Plugin()]) == 0


if __name__ == "__main__":
    import hypothesis
    import numpy
    import pydantic  # before the first fork: every mutant finds them there
    import pytest

    assert all((hypothesis, numpy, pydantic, pytest))
    raise SystemExit(main())
