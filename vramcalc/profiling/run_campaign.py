"""Running a campaign: job after job, each row on the disk the moment it is measured, from where it was left off."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from vramcalc.files.folders import data_folder
from vramcalc.profiling.campaign import Campaign, Planned
from vramcalc.profiling.in_a_process import LIMIT_S, Place, Worker
from vramcalc.profiling.row_figures import inconsistencies
from vramcalc.profiling.row_log import append, read_lines
from vramcalc.profiling.rows import ProfileRow, parse

Measure = Callable[[Planned], ProfileRow]
_SLACK = 0.25
"""Share of the last estimate that a new ratio of spent to expected time is given."""


def default_output(name: str) -> Path:
    """Where rows of a campaign go unless another file is named: the user's data folder."""
    return data_folder() / "profiles" / f"{name}.jsonl"


@dataclass(frozen=True)
class Progress:
    """How far a campaign is.

    Attributes:
        done: jobs with a row, those of earlier runs included.
        total: jobs of the campaign.
        left_s: expected time of the jobs still to come. [s]
        row: the one just added, None at the beginning and for jobs that were passed over.
    """

    done: int
    total: int
    left_s: float
    row: ProfileRow | None = None


@dataclass
class Summary:
    """What a run of a campaign did.

    Attributes:
        outcomes: rows by outcome, those of this run.
        resumed: jobs that an earlier run had done.
        left: jobs for which the time was too short.
        problems: rows that contradict themselves, each with what is wrong.
        notes: on the file.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    left: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Rows:
    """The file of a campaign's rows.

    Args:
        path: made when the first row is added.
        retry_failed: whether a job that failed, other than out of memory, counts as not done.

    Raises:
        DataError: the file holds something else than rows.
    """

    def __init__(self, path: Path, *, retry_failed: bool = False) -> None:
        self.path, self._retry_failed = path, retry_failed
        self.torn = ""
        self._seen = 0
        self._done: set[tuple[str, ...]] = set()
        self.refresh()

    def refresh(self) -> None:
        """Read what others have added."""
        try:
            lines, self.torn = read_lines(self.path)
        except FileNotFoundError:
            return
        self._take(lines)

    def _take(self, lines: list[str]) -> None:
        for number, line in enumerate(lines[self._seen :], start=self._seen + 1):
            row = parse(line, f"{self.path}, line {number}")
            if not (self._retry_failed and row.outcome == "failed"):
                self._done.add(row.key)
        self._seen = len(lines)

    def has(self, key: tuple[str, ...]) -> bool:
        """Whether there is a row of that measurement."""
        return key in self._done

    def add(self, row: ProfileRow) -> bool:
        """Add a row, unless another campaign has added the same measurement meanwhile."""

        def there(lines: list[str]) -> bool:
            self._take(lines)
            return row.key in self._done

        added = append(self.path, row.to_json(), unless=there)
        self._done.add(row.key)
        self._seen += added
        return added

    def add_always(self, row: ProfileRow) -> None:
        """Add a row even where there is one like it: the same job, measured again."""
        append(self.path, row.to_json())


def run(
    campaign: Campaign,
    rows: Rows,
    where: Place,
    *,
    minutes: float | None = None,
    measure: Callable[[Iterable[Planned], Place], Iterator[ProfileRow]] | None = None,
    told: Callable[[Progress], None] = lambda _: None,
    now: Callable[[], float] = time.monotonic,
) -> Summary:
    """Measure every job that has no row yet.

    Args:
        campaign: jobs, the most valuable first.
        rows: where they go.
        where: the device.
        minutes: no job is started that is expected to end after so many.
        measure: measures jobs one by one as they are asked for; by default each in a process of its own.
        told: called at the beginning and after every job.
        now: seconds of a clock that only runs forward.

    Returns:
        What was done and what was not.

    Raises:
        CannotMeasure: the device or the software does not get as far as a job.
    """
    summary, clock = Summary(), _Clock(now, minutes)
    if rows.torn:
        summary.notes.append(f"{rows.path}: a last row was cut off while it was written; its job is measured again")
    todo = [job for job in campaign.jobs if not rows.has(where.key(job.recipe))]
    summary.resumed = len(campaign.jobs) - len(todo)
    total, waiting = len(campaign.jobs), sum(job.expected_s for job in todo)
    told(Progress(summary.resumed, total, clock.expected(waiting)))

    def chosen() -> Iterator[Planned]:
        for job in todo:
            rows.refresh()
            if rows.has(where.key(job.recipe)):
                summary.resumed += 1
            elif clock.fits(job):
                yield job
            else:
                summary.left += 1

    with closing((measure or each_in_its_process)(chosen(), where)) as measured:  # type: ignore[type-var]
        by_id = {job.recipe.job_id: job for job in todo}
        for row in measured:
            job = by_id[row.job_id]
            clock.took(job)
            waiting = sum(j.expected_s for j in todo[todo.index(job) + 1 :])
            if rows.add(row):
                summary.outcomes[row.outcome] += 1
                summary.problems += [f"{job.where}, {row.recipe.model.name}: {text}" for text in inconsistencies(row)]
            else:
                summary.resumed += 1
            done = summary.resumed + sum(summary.outcomes.values())
            told(Progress(done, total, clock.expected(waiting), row))
    return summary


class _Clock:
    """Time spent, and what jobs are expected to take by how earlier ones compared with the file's word."""

    def __init__(self, now: Callable[[], float], minutes: float | None) -> None:
        self._now, self._began = now, now()
        self._last = self._began
        self._limit_s = None if minutes is None else 60 * minutes
        self._ratio = 1.0

    def expected(self, seconds: float) -> float:
        return seconds * self._ratio

    def fits(self, job: Planned) -> bool:
        self._last = self._now()
        if self._limit_s is None:
            return True
        return self._last - self._began + self.expected(job.expected_s) <= self._limit_s

    def took(self, job: Planned) -> None:
        ratio = (self._now() - self._last) / job.expected_s
        self._ratio += _SLACK * (ratio - self._ratio)


def each_in_its_process(jobs: Iterable[Planned], where: Place) -> Iterator[ProfileRow]:
    """Rows of jobs, each measured in a process of its own."""
    for job in jobs:
        with Worker(job.recipe, where) as worker:
            yield worker.row(limit_s=max(LIMIT_S, 5 * job.expected_s))
