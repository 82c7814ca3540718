"""Which stored traces and which tests execute which lines of the engine: measured once, and kept for the same files.

A mutant can only be noticed by what executes its line. Each test is measured from an empty cache of walks; what one
test of a file leaves in a cache of its own may hide a line from the next, which makes the lists a little shorter than
the truth, never longer.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGE = ROOT / "vramcalc"
MODULES = ("shadow/**/*.py", "memory/ledger.py", "memory/walks.py")
"""The engine: what is mutated."""
TESTS = (
    "shadow/test_[!r]*.py", "shadow/test_r[!e]*.py", "shadow/test_reading_checkpoint.py", "memory/test_grid.py",
    "memory/test_ledger.py", "memory/test_measured.py", "memory/test_snapshots.py", "memory/test_timeline.py",
    "timing/test_[!t]*.py", "timing/test_timing.py", "inputs/test_alloc_conf.py", "inputs/test_families.py",
    "inputs/test_releases.py", "inputs/test_torch_releases.py", "accuracy/test_peft_runs.py",
)  # fmt: skip
"""Files whose tests may notice a mutant, those marked ``trace`` aside: they need torch. What goes through all stored
traces, or through thousands of jobs by chance, is too slow."""
SLOW_S = 5.0
"""Tests that take longer while they are watched are not asked, nor those of a file after ``FILE_S``. [CPU s]"""
FILE_S = 120
CALLS = 200
"""Calls of one function whose lines are looked at, for each trace and test."""
TRACES = "traces"
"""The group of all stored traces; the other groups are files of tests."""

Lines = dict[str, list[int]]
"""By module, relative to the package."""


@dataclass(frozen=True)
class Unit:
    """A stored trace, or a test by its node id; CPU time while it was watched, and lines of the engine it executes."""

    group: str
    name: str
    cpu_s: float
    lines: Lines


class Reach:
    """What executes which line.

    Attributes:
        units: all traces and tests that pass.
    """

    def __init__(self, units: Iterable[Unit]) -> None:
        self.units = list(units)
        self._at: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        for number, unit in enumerate(self.units):
            for module, lines in unit.lines.items():
                for line in lines:
                    self._at[module, line].append(number)

    def of(self, path: Path, line: int) -> list[Unit]:
        """Units that execute a line; of one that runs when its module is imported, those that use what it is in."""
        module = str(path.relative_to(PACKAGE))
        for lines in _wider(ast.parse(path.read_text()), line):
            if numbers := sorted({n for at in lines for n in self._at.get((module, at), ())}):
                return [self.units[n] for n in numbers]
        return []


def _wider(tree: ast.Module, line: int) -> Iterator[range]:
    """The line; the statement it is part of; what its definition or class spans; all of the module."""
    yield range(line, line + 1)
    around = [n for n in ast.walk(tree) if isinstance(n, ast.stmt) and _first(n) <= line <= (n.end_lineno or line)]
    inner = max(around, key=lambda n: (_first(n), -(n.end_lineno or 0)))
    if not isinstance(inner, ast.FunctionDef | ast.ClassDef):
        body = getattr(inner, "body", None)
        yield range(inner.lineno, body[0].lineno if body else (inner.end_lineno or line) + 1)
        if any(isinstance(n, ast.FunctionDef) for n in around):
            return
    for outer in sorted(around, key=_first, reverse=True):
        if isinstance(outer, ast.FunctionDef | ast.ClassDef):
            yield range(outer.lineno, (outer.end_lineno or line) + 1)
    yield range(1, 100_000)


def _first(statement: ast.stmt) -> int:
    decorators = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(d.lineno for d in decorators)])


# -- measured ----------------------------------------------------------------------------------------------------------


class Watch:
    """Notes lines of the engine that run, by ``sys.settrace``."""

    def __init__(self) -> None:
        self._engine = {str(path): str(path.relative_to(PACKAGE)) for path in engine()}
        self._left: dict[CodeType, set[int]] = {}
        self._calls: dict[CodeType, int] = {}

    def __enter__(self) -> Watch:
        self._left, self._calls, self._start = {}, {}, time.process_time()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        self.cpu_s = time.process_time() - self._start

    @property
    def lines(self) -> Lines:
        """Those that ran."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        for code, left in self._left.items():
            found[self._engine[code.co_filename]] |= _lines_of(code) - left
        return {module: sorted(lines) for module, lines in found.items()}

    def _called(self, frame: FrameType, _event: str, _arg: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if code.co_filename not in self._engine:
            return None
        left = self._left.get(code)
        if left is None:
            left = self._left[code] = _lines_of(code)
        calls = self._calls[code] = self._calls.get(code, 0) + 1
        if not left or calls > CALLS:
            return None

        def ran(frame: FrameType, event: str, _arg: object) -> Callable[..., Any]:
            if event == "line":
                left.discard(frame.f_lineno)
                frame.f_trace_lines = bool(left)
            return ran

        return ran


def _lines_of(code: CodeType) -> set[int]:
    return {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno} or {-1}


def engine() -> list[Path]:
    """Modules of the engine."""
    return sorted({path for pattern in MODULES for path in PACKAGE.glob(pattern)})


def measured(jobs: int) -> Reach:
    """What executes which line; groups whose files have not changed since they were measured are not run again."""
    folder = Path(tempfile.gettempdir()) / f"vramcalc-reach-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    files = sorted({path for pattern in TESTS for path in (ROOT / "tests").glob(pattern)})
    kept = {
        group: folder / f"{_key(path)}.jsonl"
        for group, path in [
            (TRACES, ROOT / "tables" / "traces.csv"),
            *((str(path.relative_to(ROOT)), path) for path in files),
        ]
    }
    left, running = [group for group, file in kept.items() if not file.exists()], dict[int, str]()
    for group in left:
        print(f"measuring {group}", file=sys.stderr, flush=True)
    while left or running:
        while left and len(running) < jobs:
            group = left.pop(0)
            running[_measuring(group, kept[group].with_suffix(".part"))] = group
        child, _ = os.wait()
        done = kept[running.pop(child)]
        part = done.with_suffix(".part")
        if part.exists():
            part.rename(done)
    return Reach(unit for group, file in kept.items() if file.exists() for unit in _read(group, file))


def _key(path: Path) -> str:
    """Of a group: its file, what tests share, and the whole package."""
    digest = hashlib.sha256(sys.version.encode())
    shared = [*PACKAGE.rglob("*.py"), *(ROOT / "tests").glob("*.py"), *(ROOT / "tests" / "reference").glob("*.csv")]
    for file in (path, *sorted(shared)):
        digest.update(str(file.relative_to(ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:24]


def _read(group: str, file: Path) -> Iterator[Unit]:
    for text in file.read_text().splitlines():
        name, cpu_s, lines = json.loads(text)
        yield Unit(group, name, cpu_s, lines)


def _measuring(group: str, file: Path) -> int:
    """Process id of a measurement that writes a file."""
    child = os.fork()
    if child:
        return child
    try:
        with file.open("w") as out, open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)

            def write(name: str, watch: Watch) -> None:
                out.write(json.dumps([name, round(watch.cpu_s, 3), watch.lines]) + "\n")
                out.flush()

            _measure_traces(write) if group == TRACES else _measure_tests(group, write)
    finally:
        os._exit(0)


def _measure_traces(write: Callable[[str, Watch], None]) -> None:
    from stored_traces import as_known, known

    from vramcalc.accuracy.traces.table import read_traces

    listed, watch = known(), Watch()
    for row in read_traces():
        with watch:
            passed = as_known(row, listed)
        if passed:
            write(row.trace_id, watch)


def _measure_tests(group: str, write: Callable[[str, Watch], None]) -> None:
    import pytest

    from vramcalc.memory.walks import walks_of

    class Plugin:
        """Watches each test."""

        passed = True

        @pytest.hookimpl(hookwrapper=True)
        def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
            walks_of.cache_clear()
            self.passed = True
            with (watch := Watch()):
                yield
            if self.passed and watch.cpu_s < SLOW_S:
                write(item.nodeid, watch)

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            self.passed = self.passed and report.outcome == "passed"

    signal.setitimer(signal.ITIMER_PROF, FILE_S)
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-m", "not trace", "--rootdir", str(ROOT)]
    pytest.main([*options, str(ROOT / group)], plugins=[Plugin()])
