"""What a trace found: the sequence of storages, its peak, what was alive there, and its replay."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

from vramcalc.profiling.installed_versions import installed_versions
from vramcalc.shadow.allocator.replay import Replay, replay

if TYPE_CHECKING:
    from vramcalc.inputs.alloc_conf import AllocatorSettings
    from vramcalc.profiling.trace.recorder import Allocation


@dataclass(frozen=True)
class Trace:
    """What a traced job asked the allocator for.

    Attributes:
        allocations: every storage, in order of birth.
        events: ``id`` for a birth, ``~id`` for a death, in order.
        marks: ``(index into events, phase)``.
        start: index of the first event after loading.
        versions: of the libraries that ran.
    """

    allocations: list[Allocation]
    events: list[int]
    marks: list[tuple[int, str]]
    start: int
    versions: dict[str, str] = field(default_factory=installed_versions)

    def peak(self) -> tuple[int, int]:
        """Largest sum of live storages while training, and the number of events until then. [B], [1]"""
        totals = self._totals()
        at = max(range(self.start, len(totals)), key=lambda n: (totals[n], -n))
        return totals[at], at

    def live_at(self, n_events: int) -> list[Allocation]:
        """Storages alive after the first ``n_events`` events, in order of birth."""
        alive: dict[int, Allocation] = {}
        for event in self.events[:n_events]:
            if event >= 0:
                alive[event] = self.allocations[event]
            else:
                del alive[~event]
        return list(alive.values())

    @property
    def phases(self) -> dict[str, int]:
        """Phases in order, each with the largest sum of live storages in it. [B]"""
        totals = self._totals()
        found: dict[str, int] = {}
        for begin, end, phase in self._phases():
            found[phase] = max(found.get(phase, 0), *totals[begin : end + 1])
        return found

    def phase_at(self, n_events: int) -> str:
        """The phase that runs after the first ``n_events`` events."""
        return next((phase for begin, end, phase in self._phases() if begin < n_events <= end), "load")

    def replay(self, settings: AllocatorSettings | None = None, *, empty_before: Collection[int] = ()) -> Replay:
        """The trace through torch's caching allocator.

        What loading made and dropped again is left out: how a checkpoint is read is not part of a training step.

        Args:
            settings: of the allocator.
            empty_before: steps before which the loop calls ``torch.cuda.empty_cache()``.

        Raises:
            DoesNotFit: a limit is set and is not enough.
        """
        loaded = [a.id for a in self.live_at(self.start)]
        shift = len(loaded) - self.start
        sizes = [a.n_bytes for a in self.allocations]
        first: dict[str, int] = {}
        for begin, _, phase in self._phases():
            first.setdefault(phase.split(".")[0], begin)
        emptied = {first[f"step{n}"] + shift for n in empty_before}
        return replay(loaded + self.events[self.start :], sizes, settings, start=len(loaded), empty_at=emptied)

    def _totals(self) -> list[int]:
        """Sum of live storages after each number of events. [B]"""
        totals = [0]
        for event in self.events:
            size = self.allocations[event].size if event >= 0 else -self.allocations[~event].size
            totals.append(totals[-1] + size)
        return totals

    def _phases(self) -> Iterator[tuple[int, int, str]]:
        """Stretches of events while training, each with its phase."""
        end = len(self.events)
        marks = [(min(at, end), phase) for at, phase in self.marks]
        for (begin, phase), (stop, _) in pairwise([*marks, (end, "")]):
            if phase != "exit":
                yield begin, stop, phase


def describe(allocation: Allocation) -> str:
    """One line on one storage."""
    shape = "x".join(map(str, allocation.shape))
    where = allocation.node or allocation.module or "-"
    return f"{allocation.size:>14,} {allocation.dtype:9} {shape:20} {allocation.op} [{where}] {allocation.phase}"
