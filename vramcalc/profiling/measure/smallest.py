"""The smallest memory under which a job just runs, by bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from vramcalc.units import MIB, round_up

GRAIN_BYTES = 2 * MIB
"""torch's allocator asks the device for multiples of this."""
LEAST_BYTES = 32 * MIB
"""Differences below this are not looked for."""
_STEPS_UP = 3


@dataclass
class Search:
    """Where bisection ended.

    Attributes:
        suffices_bytes: smallest limit that the job ran under. [B]
        fails_bytes: largest that does not do. [B]
        resolution_bytes: the two are at most this far apart. [B]
        trials: ``(limit, whether it ran)``, in the order they were made.
    """

    suffices_bytes: int
    fails_bytes: int
    resolution_bytes: int
    trials: list[tuple[int, bool]] = field(default_factory=list)


def resolution_of(reserved_bytes: int) -> int:
    """Half a percent of what the job reserves when it may, at least 32 MiB. [B]"""
    return max(LEAST_BYTES, round_up(reserved_bytes // 200, GRAIN_BYTES))


def search(runs: Callable[[int], bool], *, allocated_bytes: int, reserved_bytes: int, most_bytes: int) -> Search | None:
    """Bisect between what a job allocates, below which no limit can do, and what it reserves when nothing presses.

    Args:
        runs: whether the job runs under a limit. [B]
        allocated_bytes: its allocated peak. [B]
        reserved_bytes: its reserved peak without a limit. [B]
        most_bytes: largest limit there is. [B]

    Returns:
        The search; None where the job did not run even with a little more than it had reserved.
    """
    resolution = resolution_of(reserved_bytes)
    trials: list[tuple[int, bool]] = []

    def tried(limit: int) -> bool:
        trials.append((limit, runs(limit)))
        return trials[-1][1]

    fails, suffices = allocated_bytes - 1, min(round_up(reserved_bytes, GRAIN_BYTES), most_bytes)
    for _ in range(_STEPS_UP):
        if tried(suffices):
            break
        fails, suffices = suffices, min(suffices + resolution, most_bytes)
        if fails == suffices:
            return None
    else:
        return None
    while suffices - fails > resolution:
        middle = round_up((suffices + fails) // 2, GRAIN_BYTES)
        if not fails < middle < suffices:
            break
        if tried(middle):
            suffices = middle
        else:
            fails = middle
    return Search(suffices, fails, resolution, trials)
