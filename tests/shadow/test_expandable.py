"""Expandable segments: pages instead of segments.

Rules are those of pytorch's c10/cuda/CUDACachingAllocator.cpp: ``get_free_block``, ``find_expandable_block``,
``map_block``, ``unmap_block``.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from slow_allocator import PAGE, Op, perform, programs, untimed

from vramcalc.errors import DoesNotFit
from vramcalc.inputs.alloc_conf import AllocatorSettings
from vramcalc.shadow.allocator.blocks import UNIT, Block
from vramcalc.shadow.allocator.caching import CachingAllocator
from vramcalc.shadow.allocator.expandable import ADDRESSES
from vramcalc.units import MIB, round_up


def allocator(**changes: int) -> CachingAllocator:
    return CachingAllocator(AllocatorSettings(expandable_segments=True, **changes))  # type: ignore[arg-type]


def stretch(block: Block) -> tuple[int, int]:
    """First byte and the one behind the last, in the block's segment."""
    start = block.address % ADDRESSES
    return start * UNIT, (start + block.size) * UNIT


@pytest.mark.parametrize(
    ("asked", "reserved"), [(1, 2), (MIB, 2), (MIB + 1, 20), (20 * MIB, 20), (20 * MIB + 1, 40), (45 * MIB, 60)]
)
def test_pages_are_2_mib_for_small_and_20_mib_for_large_requests(asked: int, reserved: int) -> None:
    a = allocator()
    a.malloc(asked)
    assert a.reserved_bytes == reserved * MIB


def test_a_large_block_is_split_down_to_512_bytes() -> None:
    a = allocator()
    a.malloc(20 * MIB - 512)
    assert a.allocated_bytes == 20 * MIB - 512
    a.malloc(20 * MIB + 512)
    assert (a.allocated_bytes, a.reserved_bytes) == (40 * MIB, 40 * MIB)


def test_a_free_tail_is_grown_by_what_it_lacks() -> None:
    a = allocator()
    a.malloc(12 * MIB)
    block = a.malloc(28 * MIB)
    assert stretch(block) == (12 * MIB, 40 * MIB)
    assert a.reserved_bytes == 40 * MIB


def test_the_tail_that_can_grow_is_taken_last() -> None:
    a = allocator()
    hole, _ = a.malloc(10 * MIB), a.malloc(2 * MIB)
    a.free(hole)
    assert stretch(a.malloc(7 * MIB)) == (0, 7 * MIB)  # 8 MiB of mapped tail would be the tighter fit
    assert stretch(a.malloc(4 * MIB)) == (12 * MIB, 16 * MIB)


def test_of_two_that_can_grow_the_one_with_less_room_is_taken() -> None:
    a = allocator()
    _, hole, _ = a.malloc(26 * MIB), a.malloc(44 * MIB), a.malloc(2 * MIB)
    a.free(hole)
    a.empty_cache()  # free: 26 to 40 with a page behind it, 60 to 70, 72 to 80 with no end behind it
    assert stretch(a.malloc(10 * MIB)) == (60 * MIB, 70 * MIB)
    assert stretch(a.malloc(8 * MIB)) == (26 * MIB, 34 * MIB)
    assert a.reserved_bytes == 60 * MIB


def test_emptying_the_cache_unmaps_the_whole_pages_of_free_blocks() -> None:
    a = allocator()
    first, _ = a.malloc(30 * MIB), a.malloc(30 * MIB)
    a.free(first)
    a.empty_cache()
    assert a.reserved_bytes == 40 * MIB


@pytest.mark.parametrize(
    ("asked", "place", "reserved"),
    [(10 * MIB, 20, 40), (25 * MIB, 0, 60), (30 * MIB, 0, 60), (30 * MIB + 512, 60, 80), (41 * MIB, 60, 100)],
)
def test_unmapped_pages_are_mapped_again_at_the_lowest_place_with_room(asked: int, place: int, reserved: int) -> None:
    a = allocator()
    first, _ = a.malloc(30 * MIB), a.malloc(30 * MIB)
    a.free(first)
    a.empty_cache()
    assert stretch(a.malloc(asked)) == (place * MIB, place * MIB + asked)
    assert a.reserved_bytes == reserved * MIB


def test_max_split_size_does_not_keep_blocks_whole() -> None:
    a = allocator(max_split_size_bytes=20 * MIB)
    a.malloc(25 * MIB)
    assert a.allocated_bytes == 25 * MIB


def test_at_the_limit_pages_move_to_where_they_are_wanted() -> None:
    a = allocator(limit_bytes=60 * MIB)
    first, _ = a.malloc(20 * MIB), a.malloc(20 * MIB)
    a.free(first)
    assert stretch(a.malloc(30 * MIB)) == (40 * MIB, 70 * MIB)
    assert (a.reserved_bytes, a.retries) == (60 * MIB, 1)


def test_a_request_that_does_not_fit_leaves_a_heap_to_go_on_with() -> None:
    a = allocator(limit_bytes=60 * MIB)
    a.malloc(30 * MIB)
    with pytest.raises(DoesNotFit):
        a.malloc(31 * MIB)
    assert stretch(a.malloc(30 * MIB)) == (30 * MIB, 60 * MIB)
    assert a.reserved_bytes == 60 * MIB


@untimed
@given(programs)
def test_blocks_in_use_have_no_remainders(program: list[Op]) -> None:
    a = allocator()
    for alive in perform(a, program):
        assert a.allocated_bytes == sum(round_up(r.n_bytes, 512) for r in alive)


@untimed
@given(programs)
def test_without_emptying_the_pages_are_those_up_to_the_highest_block_so_far(program: list[Op]) -> None:
    a = allocator()
    highest = {True: 0, False: 0}
    for alive in perform(a, [op for op in program if op[0] != "empty"]):
        for block in (r.block for r in alive):
            highest[block.pool.small] = max(highest[block.pool.small], stretch(block)[1])
        assert a.reserved_bytes == sum(round_up(n, PAGE[small]) for small, n in highest.items())


@untimed
@given(programs)
def test_after_emptying_the_pages_are_those_that_blocks_in_use_touch(program: list[Op]) -> None:
    a = allocator()
    *_, alive = perform(a, program)
    a.empty_cache()
    touched = set()
    for small, (start, stop) in ((r.block.pool.small, stretch(r.block)) for r in alive):
        touched |= {(small, page) for page in range(start // PAGE[small], -(-stop // PAGE[small]))}
    assert a.reserved_bytes == sum(PAGE[small] for small, _ in touched)
