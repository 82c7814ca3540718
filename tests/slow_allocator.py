"""torch's caching allocator again, slowly, in bytes: only what is backed by memory and what is in use is kept.

Free blocks are the gaps between the two, so nothing is ever split, merged or linked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

from vramcalc.errors import DoesNotFit
from vramcalc.inputs.alloc_conf import AllocatorSettings
from vramcalc.units import MIB, round_up

Stretch = tuple[int, int]
"""First address and the one behind the last."""
PAGE = {True: 2 * MIB, False: 20 * MIB}
"""Smallest segment of the small and of the large pool, and what their expandable segments grow by."""

SETTINGS = {
    "default": AllocatorSettings(),
    "limit": AllocatorSettings(limit_bytes=96 * MIB),
    "max_split": AllocatorSettings(max_split_size_bytes=24 * MIB),
    "max_split, limit": AllocatorSettings(max_split_size_bytes=20 * MIB, limit_bytes=128 * MIB),
    "roundup": AllocatorSettings(roundup_power2_divisions=4),
    "roundup by size": AllocatorSettings(roundup_power2_divisions=(8, 4, 2, 0, 1, 4) + (2,) * 10),
    "collecting": AllocatorSettings(garbage_collection_threshold=0.4, allowed_bytes=160 * MIB),
    "collecting, max_split, rounding": AllocatorSettings(
        max_split_size_bytes=24 * MIB,
        max_non_split_rounding_bytes=28 * MIB,
        garbage_collection_threshold=0.7,
        allowed_bytes=120 * MIB,
    ),
    "expandable": AllocatorSettings(expandable_segments=True),
    "expandable, limit": AllocatorSettings(expandable_segments=True, limit_bytes=96 * MIB),
    "expandable, max_split, roundup": AllocatorSettings(True, 24 * MIB, 8),
}

Op = tuple[str, int]
_EDGES = [512, 2048, MIB // 2, MIB, 2 * MIB, 9 * MIB, 10 * MIB, 20 * MIB, 24 * MIB, 32 * MIB, 44 * MIB]
_MALLOCS = [("malloc", edge + off) for edge in _EDGES for off in (-511, -1, 0, 1, MIB // 3)]
_FREES = [("free", k) for k in range(len(_MALLOCS))]
programs = st.lists(st.sampled_from([*_MALLOCS, *_FREES, ("empty", 0)]), min_size=30, max_size=90)
"""Requests around every threshold, frees of one that is alive, and now and then an emptied cache."""
untimed = settings(deadline=None)


@dataclass(frozen=True)
class Request:
    """A request that is alive: its size and what the allocator gave for it."""

    n_bytes: int
    block: Any


def perform(allocator: Any, program: Iterable[Op]) -> Iterator[list[Request]]:
    """Run a program, yielding what is alive after each step; requests that do not fit are passed over."""
    alive: list[Request] = []
    for op, argument in program:
        if op == "empty":
            allocator.empty_cache()
        elif op == "free":
            if alive:
                allocator.free(alive.pop(argument % len(alive)).block)
        else:
            with suppress(DoesNotFit):
                alive.append(Request(argument, allocator.malloc(argument)))
        yield alive


def runs(numbers: set[int]) -> list[Stretch]:
    """Consecutive numbers as stretches."""
    starts = sorted(n for n in numbers if n - 1 not in numbers)
    stops = sorted(n + 1 for n in numbers if n + 1 not in numbers)
    return list(zip(starts, stops, strict=True))


class SlowAllocator:
    """Every rule a search through lists."""

    def __init__(self, settings: AllocatorSettings) -> None:
        self.settings = settings
        self.segments: dict[bool, list[Stretch]] = {True: [], False: []}
        self.pages: dict[bool, set[int]] = {True: set(), False: set()}
        self.live: dict[bool, list[Stretch]] = {True: [], False: []}
        self.requests = 0
        self.freed: dict[Stretch, int] = {}
        self.low, self.high = 0, 1 << 49
        self.peak_allocated_bytes = self.peak_reserved_bytes = self.retries = 0

    @property
    def allocated_bytes(self) -> int:
        return sum(b - a for small in (True, False) for a, b in self.live[small])

    @property
    def reserved_bytes(self) -> int:
        return sum(b - a for small in (True, False) for a, b in self.backed(small))

    def backed(self, small: bool) -> list[Stretch]:
        """Segments, or runs of pages."""
        page = PAGE[small]
        return self.segments[small] + [(a * page, b * page) for a, b in runs(self.pages[small])]

    def gaps(self, small: bool) -> list[Stretch]:
        """Free blocks."""
        found = []
        for start, stop in self.backed(small):
            at = start
            for a, b in sorted(s for s in self.live[small] if start <= s[0] < stop):
                found.append((at, a))
                at = b
            found.append((at, stop))
        return [(a, b) for a, b in found if a < b]

    def rounded(self, n_bytes: int) -> int:
        floor, doubled = 1, 0
        while 2 * floor <= n_bytes:
            floor *= 2
            doubled += floor > MIB
        divisions = self.settings.divisions[min(doubled, 15)]
        if divisions <= 1 or n_bytes <= 512 * divisions:
            return round_up(n_bytes, 512)
        return round_up(n_bytes, floor // divisions)

    def malloc(self, n_bytes: int) -> tuple[bool, Stretch]:
        size = self.rounded(n_bytes)
        small = size <= MIB
        self.requests += not small
        start, stop = self.cached(small, size) or self.grown(small, size)
        if small or self.settings.expandable_segments:
            splits = stop - start > size
        else:
            splits = stop - start > size + MIB and size < (self.settings.max_split_size_bytes or size + 1)
        taken = (start, start + size if splits else stop)
        self.live[small].append(taken)
        self.peak_allocated_bytes = max(self.peak_allocated_bytes, self.allocated_bytes)
        return small, taken

    def free(self, block: tuple[bool, Stretch]) -> None:
        small, taken = block
        self.live[small].remove(taken)
        for segment in self.segments[small]:
            if segment[0] <= taken[0] < segment[1]:
                self.freed[segment] = self.requests

    def cached(self, small: bool, size: int) -> Stretch | None:
        fits = sorted((b - a, a, b) for a, b in self.gaps(small) if b - a >= size)
        while len(fits) > 1 and self.room(small, fits[1][1:]) < self.room(small, fits[0][1:]):
            del fits[0]
        if not fits:
            return None
        found, a, b = fits[0]
        oversize = self.settings.max_split_size_bytes
        if oversize and (
            found >= oversize if size < oversize else found >= size + self.settings.max_non_split_rounding_bytes
        ):
            return None
        return a, b

    def room(self, small: bool, gap: Stretch) -> float:
        """Bytes of a gap and of the pages that could be mapped behind it."""
        a, b = gap
        page, pages = PAGE[small], self.pages[small]
        if not self.settings.expandable_segments or b % page or b // page in pages:
            return b - a
        return min((p * page for p in pages if p * page > b), default=float("inf")) - a

    def grown(self, small: bool, size: int) -> Stretch:
        self.collect()
        found = self.more(small, size)
        if not found and self.release_oversize(small, size):
            found = self.more(small, size)
        if not found:
            self.retries += 1
            self.empty_cache()
            found = self.more(small, size)
        if not found:
            raise DoesNotFit("")
        return found

    def more(self, small: bool, size: int) -> Stretch | None:
        if self.settings.expandable_segments:
            return self.mapped(small, size)
        n = PAGE[small] if size < 10 * MIB else round_up(size, 2 * MIB)
        if not self.has(n):
            return None
        if n <= PAGE[False]:
            segment = (self.low, self.low + n)
            self.low += n
        else:
            self.high -= n
            segment = (self.high, self.high + n)
        self.segments[small].append(segment)
        self.noted()
        return segment

    def mapped(self, small: bool, size: int) -> Stretch | None:
        """The lowest place for the request that begins in, or just in front of, pages without memory."""
        page, pages = PAGE[small], self.pages[small]
        ends = {b: a for a, b in self.gaps(small)}
        for hole in sorted({0, *(p + 1 for p in pages)} - pages):
            start = ends.get(hole * page, hole * page)
            behind = min((a for a, _ in self.live[small] if a >= hole * page), default=start + size)
            if behind - start >= size:
                break
        wanted = {p for p in range(start // page, (start + size - 1) // page + 1) if p not in pages}
        for a, b in runs(wanted):
            if not self.has((b - a) * page):
                return None
            pages.update(range(a, b))
            self.noted()
        return next(g for g in self.gaps(small) if g[0] == start)

    def has(self, n: int) -> bool:
        limits = [n for n in (self.settings.limit_bytes, self.settings.allowed_bytes) if n is not None]
        return not limits or self.reserved_bytes + n <= min(limits)

    def noted(self) -> None:
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def collect(self) -> None:
        share, allowed = self.settings.garbage_collection_threshold, self.settings.allowed_bytes
        if not share or allowed is None:
            return
        goal = self.reserved_bytes - int(share * allowed)
        ages = {s: self.requests - self.freed[s] for s in set(self.segments[False]) & set(self.gaps(False))}
        while ages and goal > 0:
            average = sum(ages.values()) / len(ages)
            for a, b in [s for s in ages if ages[s] >= average]:
                self.segments[False].remove((a, b))
                goal -= b - a
                del ages[a, b]

    def release_oversize(self, small: bool, size: int) -> bool:
        oversize = self.settings.max_split_size_bytes
        if oversize is None or self.settings.expandable_segments:
            return False
        wanted = max(size, oversize)
        gaps = sorted((b - a, a, b) for a, b in self.gaps(small) if b - a >= oversize)
        enough = [g for g in gaps if g[0] >= wanted]
        released = 0
        for n, a, b in enough[:1] or gaps[::-1]:
            if released < wanted:
                self.segments[small].remove((a, b))
                released += n
        return released >= wanted

    def empty_cache(self) -> None:
        for small in (True, False):
            page = PAGE[small]
            for a, b in self.gaps(small):
                self.pages[small] -= set(range(-(-a // page), b // page))
                if (a, b) in self.segments[small]:
                    self.segments[small].remove((a, b))
