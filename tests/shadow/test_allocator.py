"""The replay of torch's caching allocator: its rules, the laws they imply, and agreement with a slow second model.

Rules are those of pytorch's c10/cuda/CUDACachingAllocator.cpp; the function is named where it is not obvious.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise, permutations, zip_longest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slow_allocator import SETTINGS, Op, SlowAllocator, perform, programs, untimed

from vramcalc.errors import DoesNotFit, InvalidValue
from vramcalc.inputs.alloc_conf import AllocatorSettings
from vramcalc.shadow.allocator.blocks import UNIT, Block
from vramcalc.shadow.allocator.caching import CachingAllocator
from vramcalc.shadow.allocator.replay import Replay, Step, replay, replay_steps
from vramcalc.units import MIB

any_settings = st.sampled_from(list(SETTINGS.values()))
unlimited = st.sampled_from([s for s in SETTINGS.values() if s.limit_bytes is None and s.allowed_bytes is None])


def allocator(**changes: Any) -> CachingAllocator:
    return CachingAllocator(AllocatorSettings(**changes))


def segment(block: Block) -> Iterator[Block]:
    """All blocks of a block's segment, from the first address on."""
    at: Block | None = block
    while at is not None and at.prev is not None:
        at = at.prev
    while at is not None:
        yield at
        at = at.next


# -- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "allocated"),
    [(1, 512), (512, 512), (513, 1024), (MIB - 1, MIB), (MIB + 1, MIB + 512), (10 * MIB - 1, 10 * MIB)],
)
def test_a_request_is_rounded_up_to_512_bytes(asked: int, allocated: int) -> None:
    a = allocator()
    a.malloc(asked)
    assert a.allocated_bytes == allocated


@pytest.mark.parametrize(
    ("asked", "reserved"),
    [
        (1, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 1, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB - 511, 10 * MIB),
        (10 * MIB + 1, 12 * MIB),
        (20 * MIB + 1, 22 * MIB),
        (33 * MIB, 34 * MIB),
    ],
)
def test_a_segment_is_2_mib_or_20_mib_or_the_request_in_steps_of_2_mib(asked: int, reserved: int) -> None:
    a = allocator()
    a.malloc(asked)
    assert a.reserved_bytes == reserved


@pytest.mark.parametrize(
    ("asked", "allocated"), [(19 * MIB - 512, 19 * MIB - 512), (19 * MIB, 20 * MIB), (19 * MIB + 512, 20 * MIB)]
)
def test_a_remainder_of_up_to_1_mib_stays_with_a_large_block(asked: int, allocated: int) -> None:
    a = allocator()
    a.malloc(asked)
    assert a.allocated_bytes == allocated


def test_a_small_block_is_split_down_to_512_bytes() -> None:
    a = allocator()
    for asked in (MIB, MIB - 512, 512):
        a.malloc(asked)
    assert (a.allocated_bytes, a.reserved_bytes) == (2 * MIB, 2 * MIB)
    a.malloc(1)
    assert a.reserved_bytes == 4 * MIB


def test_the_smallest_large_enough_block_is_taken() -> None:
    a = allocator()
    blocks = [a.malloc(n * MIB) for n in (30, 12, 16, 10)]
    for block in blocks:
        a.free(block)
    assert a.malloc(11 * MIB) is blocks[1]


def test_among_equal_blocks_the_lowest_address_is_taken() -> None:
    a = allocator()
    blocks = [a.malloc(12 * MIB) for _ in range(3)]
    for block in (blocks[1], blocks[2], blocks[0]):
        a.free(block)
    assert [a.malloc(12 * MIB) for _ in range(3)] == blocks


def test_small_and_large_requests_never_share_a_segment() -> None:
    a = allocator()
    a.free(a.malloc(20 * MIB))
    a.free(a.malloc(MIB))
    assert a.reserved_bytes == 22 * MIB
    a.malloc(MIB + 1)
    assert a.reserved_bytes == 22 * MIB


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_free_neighbours_become_one_in_any_order(order: tuple[int, ...]) -> None:
    a = allocator()
    blocks = [a.malloc(6 * MIB) for _ in range(3)]
    for k in order:
        a.free(blocks[k])
    assert a.malloc(20 * MIB).size * UNIT == a.reserved_bytes == 20 * MIB


def test_free_segments_never_become_one() -> None:
    a = allocator()
    for block in [a.malloc(10 * MIB) for _ in range(2)]:
        a.free(block)
    a.malloc(20 * MIB)
    assert a.reserved_bytes == 40 * MIB


def test_emptying_the_cache_keeps_segments_in_use() -> None:
    a = allocator()
    blocks = [a.malloc(n * MIB) for n in (6, 6, 30)]
    for block in (blocks[0], blocks[2]):
        a.free(block)
    a.empty_cache()
    assert (a.allocated_bytes, a.reserved_bytes) == (6 * MIB, 20 * MIB)


@pytest.mark.parametrize(
    ("asked", "divisions", "allocated"),
    [
        (1200 * MIB, 4, 1280 * MIB),  # the example of roundup_power2_next_division, a mebibyte for a byte
        (1200 * MIB, 2, 1536 * MIB),
        (1200 * MIB, 1, 1200 * MIB),
        (1280 * MIB, 4, 1280 * MIB),
        (1024 * MIB, 4, 1024 * MIB),
        (1800 * MIB, 4, 2048 * MIB),
        (2048, 4, 2048),
        (2049, 4, 2560),
        (2049, 8, 2560),
        (1, 4, 512),
        (MIB - 1, 4, MIB),
    ],
)
def test_roundup_power2_divisions_rounds_to_steps_between_powers_of_two(
    asked: int, divisions: int, allocated: int
) -> None:
    a = allocator(roundup_power2_divisions=divisions)
    a.malloc(asked)
    assert a.allocated_bytes == allocated


@pytest.mark.parametrize(
    ("asked", "allocated"),
    [
        (MIB - 1, MIB),
        (MIB + MIB // 5, MIB + MIB // 4),
        (2 * MIB + 1, 3 * MIB),
        (5 * MIB + 1, 5 * MIB + 512),
        (9 * MIB, 9 * MIB),
        (17 * MIB, 24 * MIB),
    ],
    ids=["as the first range", "by 4", "by 2", "not at all", "by 1 is not at all", "the last range"],
)
def test_divisions_may_differ_by_the_power_of_two_below_a_size(asked: int, allocated: int) -> None:
    divisions = (4, 2, 0, 1) + (2,) * 12
    a = allocator(roundup_power2_divisions=divisions)
    a.malloc(asked)
    assert a.allocated_bytes == allocated


def collecting(threshold: float = 0.5) -> CachingAllocator:
    return allocator(garbage_collection_threshold=threshold, allowed_bytes=100 * MIB)


@pytest.mark.parametrize(
    ("threshold", "reserved"), [(0.6, 20 + 34 + 40), (0.5, 34 + 40), (0.2, 40)], ids=["none", "the older", "both"]
)
def test_above_the_threshold_unused_segments_are_given_back_the_older_ones_first(
    threshold: float, reserved: int
) -> None:
    a = collecting(threshold)
    older, younger = a.malloc(20 * MIB), a.malloc(34 * MIB)
    for block in (older, younger):
        a.free(block)
    a.free(a.malloc(34 * MIB))
    a.malloc(40 * MIB)
    assert (a.reserved_bytes, a.retries) == (reserved * MIB, 0)


def test_nothing_is_collected_at_the_threshold_nor_what_is_in_use() -> None:
    a = collecting()
    blocks = [a.malloc(6 * MIB) for _ in range(2)]
    a.free(blocks[0])
    a.free(a.malloc(30 * MIB))
    a.malloc(32 * MIB)
    assert a.reserved_bytes == 82 * MIB
    a.malloc(40 * MIB)
    assert a.reserved_bytes == (20 + 32 + 40) * MIB


@pytest.mark.parametrize(
    "settings", [{"garbage_collection_threshold": 0.1}, {"garbage_collection_threshold": 0.1, "limit_bytes": 100 * MIB}]
)
def test_without_a_memory_fraction_nothing_is_collected(settings: dict[str, Any]) -> None:
    a = allocator(**settings)
    a.free(a.malloc(30 * MIB))
    a.malloc(40 * MIB)
    assert a.reserved_bytes == 70 * MIB


def test_an_oversize_block_serves_requests_up_to_20_mib_smaller_and_is_never_split() -> None:
    a = allocator(max_split_size_bytes=64 * MIB)
    a.free(a.malloc(100 * MIB))
    a.malloc(30 * MIB)
    assert (a.allocated_bytes, a.reserved_bytes) == (30 * MIB, 130 * MIB)
    a.malloc(80 * MIB)
    assert (a.allocated_bytes, a.reserved_bytes) == (110 * MIB, 210 * MIB)
    a.malloc(80 * MIB + 512)
    assert (a.allocated_bytes, a.reserved_bytes) == (210 * MIB, 210 * MIB)


@pytest.mark.parametrize(
    ("asked", "reserved", "retries"),
    [(12, 2 + 40 + 30 + 12, 0), (60, 2 + 22 + 60, 0), (90, 2 + 90, 0), (94, 94, 1)],
    ids=["the smallest with room", "the largest first", "all of them", "everything else too"],
)
def test_oversize_blocks_are_given_back_before_all_others(asked: int, reserved: int, retries: int) -> None:
    a = allocator(max_split_size_bytes=20 * MIB, limit_bytes=100 * MIB)
    for block in [a.malloc(n * MIB) for n in (1, 40, 30, 22)]:
        a.free(block)
    a.malloc(asked * MIB)
    assert (a.reserved_bytes, a.retries) == (reserved * MIB, retries)


def test_at_the_limit_everything_unused_is_given_back_and_tried_again() -> None:
    a = allocator(limit_bytes=50 * MIB)
    for block in [a.malloc(MIB), a.malloc(20 * MIB)]:
        a.free(block)
    a.malloc(40 * MIB)
    assert (a.reserved_bytes, a.peak_reserved_bytes, a.retries) == (40 * MIB, 40 * MIB, 1)
    a.malloc(10 * MIB)
    assert (a.reserved_bytes, a.retries) == (50 * MIB, 1)


def test_fragmentation_can_leave_no_room() -> None:
    a = allocator(limit_bytes=20 * MIB)
    blocks = [a.malloc(6 * MIB) for _ in range(3)]
    a.free(blocks[0])
    a.free(blocks[2])
    with pytest.raises(DoesNotFit):
        a.malloc(9 * MIB)
    assert a.malloc(8 * MIB).address == blocks[2].address


def test_what_does_not_fit_is_told_with_the_limit_and_a_remedy() -> None:
    a = allocator(limit_bytes=50 * MIB)
    a.malloc(40 * MIB)
    with pytest.raises(DoesNotFit) as caught:
        a.malloc(20 * MIB)
    for part in ("20,971,520 bytes asked for", "41,943,040 in use", "limit 52,428,800", "raise limit_bytes"):
        assert part in str(caught.value)


def test_peaks_outlive_what_made_them_until_they_are_reset() -> None:
    a = allocator()
    a.free(a.malloc(40 * MIB))
    assert (a.peak_allocated_bytes, a.peak_reserved_bytes) == (40 * MIB, 40 * MIB)
    a.reset_peaks()
    assert (a.peak_allocated_bytes, a.peak_reserved_bytes) == (0, 40 * MIB)
    a.empty_cache()
    assert (a.reserved_bytes, a.peak_reserved_bytes) == (0, 40 * MIB)
    a.reset_peaks()
    assert a.peak_reserved_bytes == 0


@pytest.mark.parametrize(
    ("name", "value", "parts"),
    [
        ("max_split_size_bytes", 19 * MIB, ("19922944", "whole MiB, at least 20", "None")),
        ("max_split_size_bytes", 20 * MIB + 1, ("20971521", "whole MiB, at least 20", "None")),
        ("roundup_power2_divisions", 3, ("3", "a power of two", "0 not to round")),
        ("roundup_power2_divisions", -4, ("-4", "a power of two", "0 not to round")),
        ("roundup_power2_divisions", (2, 2), ("(2, 2)", "one number", "16 of them")),
        ("max_non_split_rounding_bytes", MIB, ("1048576", "whole MiB, at least 20", "leave it out")),
        ("garbage_collection_threshold", 1.0, ("1.0", "a share below 1", "0 never to collect")),
    ],
)
def test_settings_that_torch_refuses_are_refused(name: str, value: Any, parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue) as caught:
        AllocatorSettings(**{name: value})
    for part in (name, *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("start", "empty_at", "expected"),
    [
        (0, (), Replay(40 * MIB, 40 * MIB, 40 * MIB, 0)),
        (2, (), Replay(12 * MIB, 40 * MIB, 40 * MIB, 0)),
        (0, (2,), Replay(40 * MIB, 40 * MIB, 12 * MIB, 0)),
        (2, (2,), Replay(12 * MIB, 12 * MIB, 12 * MIB, 0)),
        (2, (1, 3), Replay(12 * MIB, 40 * MIB, 40 * MIB, 0)),
    ],
    ids=["whole", "from the start", "emptied", "emptied at the start", "emptied with nothing to give"],
)
def test_a_replay_counts_from_its_start_and_empties_before_events(
    start: int, empty_at: tuple[int, ...], expected: Replay
) -> None:
    assert replay([0, ~0, 1], [40 * MIB, 12 * MIB], start=start, empty_at=empty_at) == expected


@pytest.mark.parametrize(("asked", "unsplit"), [(12 * MIB, 0), (12 * MIB - MIB // 2, MIB // 2), (11 * MIB - 512, 0)])
def test_what_loading_leaves_unsplit_is_told(asked: int, unsplit: int) -> None:
    """In a hole of 12 MiB: up to 1 MiB stays with a block."""
    assert replay_steps([0, ~0, 1], [], [], [12 * MIB, asked]).unsplit_bytes == unsplit


# -- laws ------------------------------------------------------------------------------------------------------------


@untimed
@given(any_settings, programs)
def test_reserved_covers_allocated_covers_what_was_asked_for(chosen: AllocatorSettings, program: list[Op]) -> None:
    a = CachingAllocator(chosen)
    for alive in perform(a, program):
        sizes = [r.block.size * UNIT for r in alive]
        assert all(size >= r.n_bytes for size, r in zip(sizes, alive, strict=True))
        assert a.reserved_bytes >= a.allocated_bytes == sum(sizes)


@untimed
@given(any_settings, programs)
def test_blocks_tile_their_segments_and_free_neighbours_are_one(chosen: AllocatorSettings, program: list[Op]) -> None:
    a = CachingAllocator(chosen)
    for alive in perform(a, program):
        assert all(r.block.used and r.block.mapped for r in alive)
        segments = {id(blocks[0]): blocks for blocks in ([*segment(r.block)] for r in alive)}.values()
        assert sum(b.used for blocks in segments for b in blocks) == len(alive)
        for blocks in segments:
            for left, right in pairwise(blocks):
                assert left.address + left.size == right.address
                assert right.prev is left
                assert left.used or right.used or left.mapped != right.mapped
        ends = sorted((blocks[0].address, blocks[-1].address + blocks[-1].size) for blocks in segments)
        assert all(stop <= start for (_, stop), (start, _) in pairwise(ends))


@untimed
@given(any_settings, programs)
def test_an_emptied_cache_leaves_the_segments_in_use(chosen: AllocatorSettings, program: list[Op]) -> None:
    a = CachingAllocator(chosen)
    *_, alive = perform(a, program)
    before = [(r.block.address, r.block.size) for r in alive]
    a.empty_cache()
    assert [(r.block.address, r.block.size) for r in alive] == before
    assert a.allocated_bytes == sum(size for _, size in before) * UNIT
    in_use = {id(b): b for r in alive for b in segment(r.block) if b.mapped}
    assert a.reserved_bytes == sum(b.size for b in in_use.values()) * UNIT


@untimed
@given(any_settings, programs)
def test_with_everything_freed_an_emptied_cache_leaves_nothing(chosen: AllocatorSettings, program: list[Op]) -> None:
    a = CachingAllocator(chosen)
    *_, alive = perform(a, program)
    for request in alive:
        a.free(request.block)
    a.empty_cache()
    assert (a.allocated_bytes, a.reserved_bytes) == (0, 0)


@untimed
@given(any_settings, programs)
def test_peaks_never_fall_and_are_never_below_the_present(chosen: AllocatorSettings, program: list[Op]) -> None:
    a = CachingAllocator(chosen)
    highest = allocated = reserved = 0
    for _ in perform(a, program):
        highest = max(highest, a.allocated_bytes)
        assert a.peak_allocated_bytes == highest >= allocated
        assert a.peak_reserved_bytes >= max(a.reserved_bytes, reserved)
        allocated, reserved = a.peak_allocated_bytes, a.peak_reserved_bytes
    a.reset_peaks()
    assert (a.peak_allocated_bytes, a.peak_reserved_bytes) == (a.allocated_bytes, a.reserved_bytes)


def events_of(program: list[Op]) -> tuple[list[int], list[int], list[int]]:
    """A program as ``replay`` takes it: events, sizes, where the cache is emptied."""
    events: list[int] = []
    sizes: list[int] = []
    empty_at: list[int] = []
    alive: list[int] = []
    for op, argument in program:
        if op == "malloc":
            alive.append(len(sizes))
            events.append(len(sizes))
            sizes.append(argument)
        elif op == "free" and alive:
            events.append(~alive.pop(argument % len(alive)))
        elif op == "empty":
            empty_at.append(len(events))
    return events, sizes, empty_at


@untimed
@given(unlimited, programs)
def test_a_replay_is_its_steps_one_by_one(chosen: AllocatorSettings, program: list[Op]) -> None:
    a = CachingAllocator(chosen)
    for _ in perform(a, program):
        pass
    events, sizes, empty_at = events_of(program)
    assert replay(events, sizes, chosen, empty_at=empty_at) == Replay(
        a.peak_allocated_bytes, a.peak_reserved_bytes, a.reserved_bytes, a.retries
    )


@pytest.mark.parametrize("n_steps", [1, 2, 5, 40])
def test_retries_of_steps_that_are_not_run_again_count(n_steps: int) -> None:
    """A small and a large request that never fit together: each has everything unused given back for the other."""
    steps = [Step([0, ~0, 1, ~1], first=0, found_first=0, ends=())]
    chosen, sizes = AllocatorSettings(limit_bytes=32 * MIB), [MIB, 31 * MIB]
    found = replay_steps([], steps, [0] * n_steps, sizes, chosen)
    assert found == replay([0, ~0, 1, ~1] * n_steps, sizes, chosen)
    assert found.retries == 2 * n_steps - 1


@untimed
@given(unlimited, programs)
def test_a_limit_that_is_not_reached_changes_nothing(chosen: AllocatorSettings, program: list[Op]) -> None:
    events, sizes, empty_at = events_of(program)
    free = replay(events, sizes, chosen, empty_at=empty_at)
    at_peak = AllocatorSettings(
        chosen.expandable_segments,
        chosen.max_split_size_bytes,
        chosen.roundup_power2_divisions,
        free.peak_reserved_bytes,
    )
    assert free.retries == 0
    assert replay(events, sizes, at_peak, empty_at=empty_at) == free


@untimed
@given(st.booleans(), st.integers(1, 300), programs)
def test_a_limited_replay_keeps_to_the_limit_or_does_not_fit(expandable: bool, mib: int, program: list[Op]) -> None:
    limited = AllocatorSettings(expandable_segments=expandable, limit_bytes=mib * MIB)
    events, sizes, empty_at = events_of(program)
    in_use = highest = 0
    for event in events:
        in_use += sizes[event] if event >= 0 else -sizes[~event]
        highest = max(highest, in_use)
    try:
        found = replay(events, sizes, limited, empty_at=empty_at)
    except DoesNotFit:
        return
    assert highest <= found.peak_reserved_bytes <= mib * MIB


# -- a second opinion ------------------------------------------------------------------------------------------------


def assert_agreement(chosen: AllocatorSettings, program: list[Op]) -> None:
    fast, slow = CachingAllocator(chosen), SlowAllocator(chosen)
    for ours, theirs in zip_longest(perform(fast, program), perform(slow, program)):
        assert [r.n_bytes for r in ours] == [r.n_bytes for r in theirs]
        for name in ("allocated_bytes", "reserved_bytes", "peak_allocated_bytes", "peak_reserved_bytes", "retries"):
            assert getattr(fast, name) == getattr(slow, name), name


@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS.keys())
@settings(untimed, max_examples=60)
@given(program=programs)
def test_the_slow_allocator_agrees_to_the_byte(chosen: AllocatorSettings, program: list[Op]) -> None:
    assert_agreement(chosen, program)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("chosen", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_slow_allocator_agrees_on_long_runs_of_recurring_sizes(chosen: AllocatorSettings, seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    recurring = [int(2 ** rng.uniform(8, 26)) for _ in range(12)]
    program: list[Op] = []
    for _ in range(800):
        size = rng.choice(recurring) if rng.random() < 0.8 else int(2 ** rng.uniform(5, 26))
        program.append(rng.choices([("malloc", size), ("free", rng.randrange(64)), ("empty", 0)], [50, 49, 1])[0])
    assert_agreement(chosen, program)
