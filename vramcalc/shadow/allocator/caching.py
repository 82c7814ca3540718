"""torch's CUDA caching allocator, block by block.

One stream, one thread, no graph capture; ``large_segment_size_mb`` is at its default of 20. Where ``cudaMalloc`` puts a
segment is unknown; here each lies behind all before it, so that among equal free blocks that of the oldest segment is
taken.

Sizes are in units of 512 bytes inside; arguments and results are bytes.

References:
    pytorch c10/cuda/CUDACachingAllocator.cpp: ``round_size``, ``get_allocation_size``, ``get_free_block``,
    ``should_split``, ``alloc_block``, ``release_available_cached_blocks``, ``release_cached_blocks``,
    ``garbage_collect_cached_blocks``;
    c10/core/AllocatorConfig.cpp;
    docs/source/notes/cuda.rst, "Optimizing memory usage with PYTORCH_CUDA_ALLOC_CONF".
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence

from vramcalc.errors import DoesNotFit
from vramcalc.inputs.alloc_conf import INTERVALS, AllocatorSettings
from vramcalc.shadow.allocator.blocks import (
    LARGE_SEGMENT,
    MIN_LARGE,
    ROUND_LARGE,
    SHIFT,
    SMALL,
    SMALL_SEGMENT,
    TOP,
    UNIT,
    Block,
    Pool,
)
from vramcalc.shadow.allocator.expandable import ExpandableSegments
from vramcalc.units import MIB

UNLIMITED = 1 << 62
_FIRST_INTERVAL = MIB.bit_length()
"""Bits of the smallest size with divisions of its own; smaller ones are rounded as it is."""


class CachingAllocator:
    """The allocator of one device.

    Attributes:
        allocated_bytes: in blocks that are in use, unsplit remainders included; ``torch.cuda.memory_allocated()``.
        reserved_bytes: in segments; ``torch.cuda.memory_reserved()``.
        peak_allocated_bytes: highest ``allocated_bytes`` since ``reset_peaks``.
        peak_reserved_bytes: highest ``reserved_bytes`` since ``reset_peaks``.
        retries: times everything unused was given back because the limit was reached.
    """

    def __init__(self, settings: AllocatorSettings | None = None) -> None:
        s = settings or AllocatorSettings()
        self._expandable = ExpandableSegments(self._reserve) if s.expandable_segments else None
        self._small, self._large = Pool(True, 0), Pool(False, 0 if s.expandable_segments else SMALL)
        self._allocated = self._reserved = self._peak_allocated = self._peak_reserved = 0
        self._oversize = s.max_split_size_bytes // UNIT if s.max_split_size_bytes is not None else UNLIMITED
        self._unsplit = UNLIMITED if s.expandable_segments else self._oversize
        self._rounding = s.max_non_split_rounding_bytes // UNIT
        self._divisions = s.divisions if max(s.divisions) > 1 else None
        limits = [n // UNIT for n in (s.limit_bytes, s.allowed_bytes) if n is not None]
        self._limit = min(limits, default=UNLIMITED)
        self._collects_above = UNLIMITED
        if s.garbage_collection_threshold and s.allowed_bytes is not None and not s.expandable_segments:
            self._collects_above = int(s.garbage_collection_threshold * s.allowed_bytes)
        self._requests = 0
        self._above, self._below = 0, TOP
        self.retries = 0

    @property
    def allocated_bytes(self) -> int:
        """Bytes in blocks that are in use."""
        return self._allocated * UNIT

    @property
    def reserved_bytes(self) -> int:
        """Bytes in segments."""
        return self._reserved * UNIT

    @property
    def peak_allocated_bytes(self) -> int:
        """Highest ``allocated_bytes``."""
        return self._peak_allocated * UNIT

    @property
    def peak_reserved_bytes(self) -> int:
        """Highest ``reserved_bytes``."""
        return self._peak_reserved * UNIT

    def reset_peaks(self) -> None:
        """``torch.cuda.reset_peak_memory_stats()``."""
        self._peak_allocated, self._peak_reserved = self._allocated, self._reserved

    # -- requests ----------------------------------------------------------------------------------------------------

    def _round(self, n_bytes: int, table: Sequence[int]) -> int:
        divisions = table[min(max(n_bytes.bit_length() - _FIRST_INTERVAL, 0), INTERVALS - 1)]
        if divisions <= 1 or n_bytes <= UNIT * divisions:
            return -(-n_bytes // UNIT) or 1
        step = (1 << (n_bytes.bit_length() - 1)) // divisions
        return -(-n_bytes // step) * step // UNIT

    def malloc(self, n_bytes: int) -> Block:
        """Give out a block.

        Args:
            n_bytes: more than none: for an empty tensor torch does not ask its allocator.

        Raises:
            DoesNotFit: the limit leaves no room, even with everything unused given back.
        """
        table = self._divisions
        size = -(-n_bytes // UNIT) or 1 if table is None else self._round(n_bytes, table)
        pool = self._small if size <= SMALL else self._large
        keys = pool.keys
        if self._collects_above != UNLIMITED and pool is self._large:
            self._requests += 1
        i = bisect_left(keys, size << SHIFT)
        if self._expandable is not None and i < len(keys):
            i = self._expandable.choose(pool, i)
        if i < len(keys) and (self._oversize == UNLIMITED or self._accepts(keys[i] >> SHIFT, size)):
            block = pool.blocks.pop(keys.pop(i))
        else:
            block = self._grow(pool, size)
        left = block.size - size
        if left > pool.keeps and size < self._unsplit:
            following = block.next
            rest = Block(pool, block.address + size, left, block, following)
            if following is not None:
                following.prev = rest
            block.next, block.size = rest, size
            key = left << SHIFT | rest.address
            insort(keys, key)
            pool.blocks[key] = rest
        block.used = True
        self._allocated += block.size
        if self._allocated > self._peak_allocated:
            self._peak_allocated = self._allocated
        return block

    def free(self, block: Block) -> None:
        """Take a block back and merge it with its free neighbours."""
        self._allocated -= block.size
        block.used = False
        block.pool.take_back(block).freed_at = self._requests

    def _accepts(self, found: int, size: int) -> bool:
        """Whether a free block may serve a request under ``max_split_size``."""
        return found < self._oversize if size < self._oversize else found < size + self._rounding

    # -- segments ----------------------------------------------------------------------------------------------------

    def _grow(self, pool: Pool, size: int) -> Block:
        """Take memory from the device, giving back what is unused if it has none left."""
        if self._reserved * UNIT > self._collects_above:
            self._collect()
        block = self._segment(pool, size)
        if block is None and self._release_oversize(pool, size):
            block = self._segment(pool, size)
        if block is None:
            self.retries += 1
            self.empty_cache()
            block = self._segment(pool, size)
        if block is None:
            raise DoesNotFit(
                f"out of memory: {size * UNIT:,} bytes asked for with {self.allocated_bytes:,} in use and "
                f"{self.reserved_bytes:,} reserved, limit {self._limit * UNIT:,}; raise limit_bytes or ask for less"
            )
        return block

    def _segment(self, pool: Pool, size: int) -> Block | None:
        if self._expandable is not None:
            return self._expandable.grow(pool, size)
        if size <= SMALL:
            n = SMALL_SEGMENT
        elif size < MIN_LARGE:
            n = LARGE_SEGMENT
        else:
            n = -(-size // ROUND_LARGE) * ROUND_LARGE
        if not self._reserve(n):
            return None
        return Block(pool, self._address(n), n, None, None)

    def _address(self, n: int) -> int:
        """Where the driver puts a segment: small ones one above the other, larger ones from the top down.

        Addresses decide between free blocks of one size. No source says how the driver chooses; on a Tesla T4 the
        reserved memory of every published run of LoRA with eager attention, whose score matrices are alike, is met to
        the byte by this order and missed by one matrix by the other (tests/memory/test_measured.py).
        """
        if n <= LARGE_SEGMENT:
            self._above += n
            return self._above - n
        self._below -= n
        return self._below

    def _reserve(self, n: int) -> bool:
        if self._reserved + n > self._limit:
            return False
        self._reserved += n
        if self._reserved > self._peak_reserved:
            self._peak_reserved = self._reserved
        return True

    def _release_oversize(self, pool: Pool, size: int) -> bool:
        """Give back the free block never split that has room, or as many as have it together; whether they do."""
        wanted, released, keys = max(size, self._oversize), 0, pool.keys
        while keys and released < wanted and self._expandable is None:
            i = min(bisect_left(keys, wanted << SHIFT), len(keys) - 1)
            n = keys[i] >> SHIFT
            if n < self._oversize:
                break
            del pool.blocks[keys.pop(i)]
            self._reserved -= n
            released += n
        return released >= wanted

    def _collect(self) -> None:
        """Give back unused segments as old as the average of them, again and again until it is enough.

        A block's age is the number of requests of its pool since it was freed, the present one included.
        """
        goal, pool = self._reserved * UNIT - self._collects_above, self._large
        unused = [b for b in pool.blocks.values() if b.prev is None and b.next is None]
        while unused and goal > 0:
            average = sum(b.freed_at for b in unused) / len(unused)
            for block in [b for b in unused if b.freed_at <= average]:
                pool.remove(block)
                self._reserved -= block.size
                goal -= block.size * UNIT
            unused = [b for b in unused if b.freed_at > average]

    def state(self, in_use: Iterable[tuple[int, Block]]) -> object | None:
        """What decides all that follows, given the blocks in use and their names; None where it cannot be told."""
        if self._collects_above != UNLIMITED:
            return None
        free = [(-1, pool.blocks[key]) for pool in (self._small, self._large) for key in pool.keys]
        return tuple(
            (name, b.address, b.size, b.prev is None, b.next is None, b.pool.small) for name, b in (*free, *in_use)
        )

    def empty_cache(self) -> None:
        """``torch.cuda.empty_cache()``: give back segments, or pages, that hold nothing."""
        for pool in (self._small, self._large):
            for block in list(pool.blocks.values()):
                if self._expandable is not None:
                    self._reserved -= self._expandable.shrink(block)
                elif block.prev is None and block.next is None:
                    pool.remove(block)
                    self._reserved -= block.size
