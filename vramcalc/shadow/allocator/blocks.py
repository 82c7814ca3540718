"""Blocks of a segment and the pools they wait in, as torch's CUDA caching allocator keeps them.

Sizes and addresses are in units of 512 bytes.

References:
    pytorch c10/cuda/CUDACachingAllocator.cpp: ``BlockComparatorSize``, ``try_merge_blocks``, ``free_block``.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from vramcalc.units import MIB

UNIT = 512
SMALL = MIB // UNIT
"""Largest request of the small pool."""
SMALL_SEGMENT = 2 * MIB // UNIT
LARGE_SEGMENT = 20 * MIB // UNIT
MIN_LARGE = 10 * MIB // UNIT
"""Requests from here on get a segment of their own size."""
ROUND_LARGE = 2 * MIB // UNIT
SHIFT = 44
"""A free block's key is its size above its address, so that sorted keys give the best fit at the lowest address."""
TOP = 1 << 40
"""Behind the last address of large segments: half a pebibyte, in units."""


class Block:
    """A stretch of a segment; free, in use, or addresses without memory.

    ``freed_at`` is the number of requests of large blocks before it was last freed.
    """

    __slots__ = ("address", "freed_at", "mapped", "next", "pool", "prev", "size", "used")
    freed_at: int

    def __init__(self, pool: Pool, address: int, size: int, prev: Block | None, next_: Block | None) -> None:
        self.pool, self.address, self.size, self.prev, self.next = pool, address, size, prev, next_
        self.used, self.mapped = False, True


class Pool:
    """Free blocks of the small or the large requests.

    Attributes:
        small: whether its requests are the small ones.
        keeps: largest remainder that stays with a block instead of being split off.
        page: what an expandable segment grows by.
        keys: of the free blocks, sorted.
        blocks: the free blocks by key.
        unmapped: addresses of expandable segments without memory, the lowest first.
    """

    __slots__ = ("blocks", "keeps", "keys", "page", "small", "unmapped")

    def __init__(self, small: bool, keeps: int) -> None:
        self.small, self.keeps = small, keeps
        self.page = SMALL_SEGMENT if small else LARGE_SEGMENT
        self.keys: list[int] = []
        self.blocks: dict[int, Block] = {}
        self.unmapped: list[Block] = []

    def add(self, block: Block) -> None:
        """Offer a block as it is."""
        key = block.size << SHIFT | block.address
        insort(self.keys, key)
        self.blocks[key] = block

    def remove(self, block: Block) -> None:
        """Take a free block away."""
        key = block.size << SHIFT | block.address
        del self.keys[bisect_left(self.keys, key)]
        del self.blocks[key]

    def take_back(self, block: Block) -> Block:
        """Offer a block together with its free neighbours, as one."""
        other = block.prev
        if other is not None and not other.used and other.mapped:
            self.remove(other)
            block = join(other, block)
        other = block.next
        if other is not None and not other.used and other.mapped:
            self.remove(other)
            join(block, other)
        key = block.size << SHIFT | block.address
        insort(self.keys, key)
        self.blocks[key] = block
        return block


def join(left: Block, right: Block) -> Block:
    """Two neighbours as one."""
    left.size += right.size
    following = right.next
    left.next = following
    if following is not None:
        following.prev = left
    return left


def cut(block: Block, size: int) -> Block:
    """Shorten a block to ``size``; what is behind, as a block of its own."""
    following = block.next
    rest = Block(block.pool, block.address + size, block.size - size, block, following)
    if following is not None:
        following.prev = rest
    block.next, block.size = rest, size
    return rest
