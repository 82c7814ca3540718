"""A sequence of requests through a fresh allocator."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from vramcalc.shadow.allocator import AllocatorSettings, CachingAllocator
from vramcalc.shadow.blocks import Block


@dataclass(frozen=True)
class Replay:
    """What a sequence of requests made of the allocator.

    Attributes:
        peak_allocated_bytes: highest sum of blocks in use.
        peak_reserved_bytes: highest sum of segments.
        end_reserved_bytes: segments at the end.
        retries: times everything unused was given back.
    """

    peak_allocated_bytes: int
    peak_reserved_bytes: int
    end_reserved_bytes: int
    retries: int


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
    allocator = CachingAllocator(settings)
    blocks: dict[int, Block] = {}
    malloc, free = allocator.malloc, allocator.free
    stops = sorted({start, *empty_at, len(events)})
    at = 0
    for stop in stops:
        for event in events[at:stop]:
            if event >= 0:
                blocks[event] = malloc(sizes[event])
            else:
                free(blocks.pop(~event))
        at = stop
        if stop in empty_at:
            allocator.empty_cache()
        if stop == start:
            allocator.reset_peaks()
    return Replay(
        allocator.peak_allocated_bytes, allocator.peak_reserved_bytes, allocator.reserved_bytes, allocator.retries
    )
