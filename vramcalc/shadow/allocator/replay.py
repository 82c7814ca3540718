"""Sequences of requests through a fresh allocator: events one by one, or steps that come again and again."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from vramcalc.inputs.alloc_conf import AllocatorSettings
from vramcalc.shadow.allocator.blocks import UNIT, Block
from vramcalc.shadow.allocator.caching import CachingAllocator
from vramcalc.units import round_up


@dataclass(frozen=True)
class Replay:
    """What a sequence of requests made of the allocator.

    Attributes:
        peak_allocated_bytes: highest sum of blocks in use.
        peak_reserved_bytes: highest sum of segments.
        end_reserved_bytes: segments at the end.
        retries: times everything unused was given back.
        unsplit_bytes: of blocks in use where peaks count from, what they have beyond what was asked for.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    end_reserved_bytes: int
    retries: int
    unsplit_bytes: int = 0


@dataclass(frozen=True)
class Step:
    """Requests of one step, and what it finds of the step that came before it when it was walked.

    Attributes:
        events: ``id`` for a request, ``~id`` for its end.
        first: id of the step's first request; the others follow.
        found_first: ``first`` of the step before.
        ends: ids of that step whose end is here.
    """

    events: Sequence[int]
    first: int
    found_first: int
    ends: tuple[int, ...]


class _Run:
    """An allocator and the blocks that are in use."""

    def __init__(self, sizes: Sequence[int], settings: AllocatorSettings | None) -> None:
        self.allocator = CachingAllocator(settings)
        self.blocks: dict[int, Block] = {}
        self._sizes = sizes

    def events(self, events: Sequence[int]) -> None:
        blocks, sizes = self.blocks, self._sizes
        malloc, free = self.allocator.malloc, self.allocator.free
        for event in events:
            if event >= 0:
                blocks[event] = malloc(sizes[event])
            else:
                free(blocks.pop(~event))

    def step(self, step: Step, before: Step | None, *, empty: bool) -> None:
        """A step after another one than it was walked after: what it ends has other names."""
        if before is not None and before.first != step.found_first:
            shift, blocks = before.first - step.found_first, self.blocks
            blocks.update({name: blocks.pop(name + shift) for name in step.ends})
        if empty:
            self.allocator.empty_cache()
        self.events(step.events)

    def unsplit_bytes(self) -> int:
        """What blocks in use have beyond what was asked for, rounded as it always is. [B]"""
        sizes = self._sizes
        return sum(block.size * UNIT - round_up(sizes[name], UNIT) for name, block in self.blocks.items())

    def result(self) -> Replay:
        a = self.allocator
        return Replay(a.peak_allocated_bytes, a.peak_reserved_bytes, a.reserved_bytes, a.retries)


def replay(
    events: Sequence[int],
    sizes: Sequence[int],
    settings: AllocatorSettings | None = None,
    *,
    start: int = 0,
    empty_at: Collection[int] = (),
) -> Replay:
    """Run a sequence of events through a fresh allocator.

    Args:
        events: ``id`` for a request, ``~id`` for its end.
        sizes: by id, as requested. [B]
        settings: of the allocator.
        start: events before this index only build the heap; peaks count from there.
        empty_at: indices of events before which ``empty_cache`` is called.

    Raises:
        DoesNotFit: a limit is set and is not enough.
    """
    run = _Run(sizes, settings)
    stops = sorted({start, *empty_at, len(events)})
    at = unsplit = 0
    for stop in stops:
        run.events(events[at:stop])
        at = stop
        if stop in empty_at:
            run.allocator.empty_cache()
        if stop == start:
            run.allocator.reset_peaks()
            unsplit = run.unsplit_bytes()
    return replace(run.result(), unsplit_bytes=unsplit)


def replay_steps(
    load: Sequence[int],
    steps: Sequence[Step],
    order: Sequence[int],
    sizes: Sequence[int],
    settings: AllocatorSettings | None = None,
    *,
    empty_before: Collection[int] = (),
) -> Replay:
    """Run steps through a fresh allocator; a step from a state in which it has run before is not run again.

    Args:
        load: events that only build the heap; peaks count from their end.
        steps: those that differ.
        order: indices of ``steps``, in the order they are made.
        sizes: by id, as requested. [B]
        settings: of the allocator.
        empty_before: places in ``order`` before which ``empty_cache`` is called.

    Raises:
        DoesNotFit: a limit is set and is not enough.
    """
    run = _Run(sizes, settings)
    run.events(load)
    run.allocator.reset_peaks()
    unsplit = run.unsplit_bytes()
    # Only steps that can be met again are worth a look at the state.
    watched = len(order) > len(steps) + 1
    ends: dict[tuple[object, int, int, bool], tuple[object, int, int]] = {}
    waiting: list[tuple[Step, Step | None, bool]] = []
    state: object = None
    skipped_retries, reserved, before, before_index = 0, run.allocator.reserved_bytes, None, -1
    for place, index in enumerate(order):
        step, empty = steps[index], place in empty_before
        seen = None if state is None else ends.get((state, before_index, index, empty))
        if seen is not None:
            waiting.append((step, before, empty))
            skipped_retries += seen[1]
            state, reserved = seen[0], seen[2]
        else:
            for late in waiting:
                run.step(late[0], late[1], empty=late[2])
            if waiting:
                skipped_retries = 0
                waiting.clear()
            retries = run.allocator.retries
            run.step(step, before, empty=empty)
            reserved, start = run.allocator.reserved_bytes, state
            state = run.allocator.state(run.blocks.items()) if watched else None
            if start is not None:
                ends[start, before_index, index, empty] = state, run.allocator.retries - retries, reserved
        before, before_index = step, index
    found = run.result()
    return Replay(
        found.peak_allocated_bytes, found.peak_reserved_bytes, reserved, found.retries + skipped_retries, unsplit
    )
