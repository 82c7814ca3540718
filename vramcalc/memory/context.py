"""How much the CUDA context of a process takes on each GPU generation, from published out-of-memory messages.

Such a message says what the process has in use, what torch allocated and what it keeps unallocated; the rest is the
context. ``tables/runtime.csv`` has the messages that people published of a single process, each rounded as printed.
What measured runs say comes first, see :mod:`vramcalc.memory.calibration.calibration`.

References:
    pytorch c10/cuda/CUDACachingAllocator.cpp, the text of ``OutOfMemoryError``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import NamedTuple

from vramcalc import tables
from vramcalc.units import GIB

_SHARE = 0.9
"""Share of readings that the spread common to all generations holds on either side."""


@dataclass(frozen=True)
class Context:
    """Memory that a process takes on the device before its first tensor.

    Attributes:
        n_bytes: size. [B]
        basis: ``calibrated`` by readings of its generation, else ``assumed``.
        source: where it comes from.
        low_bytes: lower end of its 90 % interval. [B]
        high_bytes: upper end. [B]
    """

    n_bytes: int
    basis: str
    source: str
    low_bytes: int
    high_bytes: int


Generation = tuple[str, tuple[int, int]]
"""Architecture and compute capability."""


class Reading(NamedTuple):
    """One message.

    Attributes:
        reading_id: name of its row.
        generations: architecture and compute capability of the cards that it may be of.
        n_bytes: context. [B]
        rounding_bytes: how far it may be off as its figures are rounded. [B]
        recipes: that it was read off, one for a message; the middle counts each.
    """

    reading_id: str
    generations: frozenset[Generation]
    n_bytes: int
    rounding_bytes: int
    recipes: int


@cache
def readings() -> tuple[Reading, ...]:
    """Every row of the table."""
    known = _generations()
    return tuple(
        Reading(
            row["reading_id"],
            frozenset(known[gpu] for gpu in row["gpus"].split()),
            round(float(row["context_gib"]) * GIB),
            round(float(row["rounding_gib"]) * GIB),
            int(row["recipes"]),
        )
        for row in tables.read("runtime")
    )


@cache
def _generations() -> dict[str, Generation]:
    """Of every card of NVIDIA's in the table."""
    found = {}
    for row in tables.read("gpus"):
        if row["vendor"] == "NVIDIA":
            major, minor = row["compute_capability"].split(".")
            found[row["gpu_id"]] = row["architecture"], (int(major), int(minor))
    return found


def capability_of(gpu_id: str) -> tuple[int, int] | None:
    """Compute capability of a card of the table, None for another one."""
    found = _generations().get(gpu_id)
    return found[1] if found else None


def documented(architecture: str | None, capability: tuple[int, int] | None = None) -> Context:
    """The CUDA context and kernel modules on a GPU generation.

    Readings of its compute capability count, else those of its architecture; of one that has none, or is not named,
    those of all generations, whose middle is then an assumption.

    Args:
        architecture: such as ``Ampere``, None where no GPU is named.
        capability: compute capability, None where it is not known.
    """
    for own in (
        [r for r in readings() if any(g[1] == capability for g in r.generations)],
        [r for r in readings() if any(g[0] == architecture for g in r.generations)],
    ):
        if own:
            return _context(own, "calibrated")
    return _context(readings(), "assumed")


def _context(own: Sequence[Reading], basis: str) -> Context:
    """The middle of some readings, between the least and the most of them.

    Where they are few, the ends are at least as far off as most readings are from the middle of their generation.
    """
    middle = _middle(own)
    low = min(r.n_bytes - r.rounding_bytes for r in own)
    high = max(r.n_bytes + r.rounding_bytes for r in own)
    apart = _spread()
    named = f"{len(own)} readings, most of torch's messages about missing memory, tables/runtime.csv"
    return Context(round(middle), basis, named, min(low, int(middle / apart)), max(high, math.ceil(middle * apart)))


def _middle(own: Sequence[Reading]) -> float:
    return median(r.n_bytes for r in own for _ in range(r.recipes))


@cache
def _spread() -> float:
    """Factor that holds most readings about the middle of their generation, those of one reading apart."""
    groups: dict[frozenset[Generation], list[Reading]] = {}
    for r in readings():
        groups.setdefault(r.generations, []).append(r)
    off = sorted(abs(math.log(r.n_bytes / _middle(g))) for g in groups.values() if len(g) > 1 for r in g)
    return math.exp(off[math.ceil(_SHARE * len(off)) - 1])
