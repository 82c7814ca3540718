"""Expandable segments: one stretch of addresses per pool, backed by pages where it is in use.

torch reserves addresses for 9/8 of the device's memory and starts another segment when they run out; here they never
do.

References:
    pytorch c10/cuda/CUDACachingAllocator.cpp: ``get_free_block``, ``find_expandable_block``,
    ``try_allocate_expandable_block``, ``map_block``, ``unmap_block``.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable

from vramcalc.shadow.allocator.blocks import LARGE_SEGMENT, Block, Pool, cut, join

ADDRESSES = LARGE_SEGMENT << 24
"""Addresses of one segment: whole pages of either pool, hundreds of TiB."""


class ExpandableSegments:
    """Grows and shrinks pools by pages.

    Args:
        reserve: takes memory from the device, all of it or none; whether it could.
    """

    def __init__(self, reserve: Callable[[int], bool]) -> None:
        self._reserve = reserve

    def choose(self, pool: Pool, i: int) -> int:
        """Index of the best fit from the smallest large enough block on: one that can grow counts as grown."""
        keys, blocks = pool.keys, pool.blocks
        block = blocks[keys[i]]
        if block.next is None or block.next.mapped:
            return i
        room = block.size + block.next.size
        while i + 1 < len(keys) and (following := _room(blocks[keys[i + 1]])) < room:
            i, room = i + 1, following
        return i

    def grow(self, pool: Pool, size: int) -> Block | None:
        """Map pages at the lowest addresses where free and unmapped blocks have room for ``size``.

        Returns:
            A block of at least ``size``, not in its pool; None where the device is full. What was mapped by then stays
            mapped and free.
        """
        block = self._stretch(pool, size)
        if not block.mapped:
            mapped = self._map(block, min(size, block.size))
            if mapped is None:
                return None
            block = mapped
        while block.size < size:
            following = block.next
            assert following is not None
            mapped = self._map(following, min(size - block.size, following.size))
            if mapped is None:
                return None
            block = mapped
        pool.remove(block)
        return block

    def _stretch(self, pool: Pool, size: int) -> Block:
        if not pool.unmapped:
            start = Block(pool, 0 if pool.small else ADDRESSES, ADDRESSES, None, None)
            start.mapped = False
            pool.unmapped.append(start)
        for block in pool.unmapped:
            first = block.prev if block.prev is not None and not block.prev.used else block
            room, at = 0, first
            while at is not None and not at.used and room < size:
                room, at = room + at.size, at.next  # type: ignore[assignment]
            if room >= size:
                return first
        raise AssertionError("the last stretch is endless")

    def _map(self, block: Block, size: int) -> Block | None:
        """Back the start of an unmapped block with whole pages; the free block they end up in."""
        pool = block.pool
        n = -(-size // pool.page) * pool.page
        if not self._reserve(n):
            return None
        pool.unmapped.remove(block)
        if n < block.size:
            rest = cut(block, n)
            rest.mapped = False
            insort(pool.unmapped, rest, key=_address)
        block.mapped = True
        return pool.take_back(block)

    def shrink(self, block: Block) -> int:
        """Unmap the whole pages inside a free block; their size."""
        pool = block.pool
        page, end = pool.page, block.address + block.size
        first, last = -(-block.address // page) * page, end // page * page
        if first >= last:
            return 0
        pool.remove(block)
        hole = block
        if first > block.address:
            hole = cut(block, first - block.address)
            pool.add(block)
        if end > last:
            pool.add(cut(hole, last - first))
        hole.mapped = False
        if hole.prev is not None and not hole.prev.mapped:
            pool.unmapped.remove(hole.prev)
            hole = join(hole.prev, hole)
        if hole.next is not None and not hole.next.mapped:
            pool.unmapped.remove(hole.next)
            join(hole, hole.next)
        insort(pool.unmapped, hole, key=_address)
        return last - first


def _room(block: Block) -> int:
    following = block.next
    return block.size if following is None or following.mapped else block.size + following.size


def _address(block: Block) -> int:
    return block.address
