"""The largest blocks alive at the highest instant, from a snapshot of torch's allocator.

References:
    torch 2.13 torch/cuda/memory.py, ``_snapshot``: segments, blocks and trace entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_OWN = ("/torch/", "/vramcalc/profiling/")
"""Frames that say little about who asked for a block."""
MAX_ENTRIES = 1_000_000

Snapshot = Mapping[str, Any]


def peak_blocks(snapshot: Snapshot, *, device: int = 0) -> list[tuple[int, str]]:
    """Blocks alive when their sum was highest, each with its size and where it was asked for.

    The snapshot says what is alive at its end; walking its trace backwards undoes what happened since.

    Args:
        snapshot: of an allocator whose history was recorded.
        device: index of the GPU.

    Returns:
        ``(size, where)``; blocks that were there before the recording began have no place. [B]
    """
    alive = {
        block["address"]: (block["size"], _where(block.get("frames", ())))
        for segment in snapshot["segments"]
        if segment.get("device", 0) == device
        for block in _addressed(segment)
        if block["state"].startswith("active")
    }
    trace = snapshot["device_traces"][device]
    best, total = dict(alive), sum(size for size, _ in alive.values())
    highest = total
    for entry, where in zip(reversed(trace), reversed(_places(trace)), strict=True):
        if entry["action"] == "alloc":
            gone = alive.pop(entry["addr"], None)
            total -= gone[0] if gone else 0
        elif entry["action"] == "free_completed":
            alive[entry["addr"]] = (entry["size"], where)
            total += entry["size"]
        if total > highest:
            highest, best = total, dict(alive)
    return list(best.values())


def _places(trace: Iterable[Mapping[str, Any]]) -> list[str]:
    """Of every entry, where the block at its address was asked for."""
    now: dict[int, str] = {}
    found = []
    for entry in trace:
        if entry["action"] == "alloc":
            now[entry["addr"]] = _where(entry.get("frames", ()))
        found.append(now.get(entry.get("addr", -1), ""))
    return found


def largest(blocks: Iterable[tuple[int, str]], n: int) -> list[dict[str, Any]]:
    """The ``n`` places with the most bytes, as ``profiles.Block`` names them."""
    by_place: dict[str, list[int]] = {}
    for size, where in blocks:
        by_place.setdefault(where or "before the recorded step", []).append(size)
    ranked = sorted(by_place.items(), key=lambda item: (-sum(item[1]), item[0]))
    return [{"n_bytes": sum(sizes), "count": len(sizes), "where": where} for where, sizes in ranked[:n]]


def _addressed(segment: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """Blocks with their addresses; releases of torch that leave those out list blocks in order."""
    address = segment["address"]
    for block in segment["blocks"]:
        yield {"address": address, **block}
        address += block["size"]


def _where(frames: Iterable[Mapping[str, Any]]) -> str:
    """The innermost frame that is neither torch's nor ours, without the folders above its package."""
    for frame in frames:
        name = frame["filename"]
        if name.endswith(".py") and not any(own in name for own in _OWN):
            return f"{name.rpartition('site-packages/')[2]}:{frame['line']} {frame['name']}"
    return ""
