"""What ``PYTORCH_CUDA_ALLOC_CONF`` (new name ``PYTORCH_ALLOC_CONF``) asks torch's caching allocator for.

Nothing here reads the environment: the text is given, so that a result does not depend on the shell. Where torch would
read on past a broken value or separator (``20x``, ``-5``, ``;``), the text is refused instead.

References:
    torch 2.13 c10/core/AllocatorConfig.h and .cpp, ``parseArgs``; c10/cuda/CUDAAllocatorConfig.h and .cpp;
    c10/cuda/CUDACachingAllocator.cpp, ``setMemoryFraction``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from vramcalc.errors import InvalidValue, UnknownName, Unsupported
from vramcalc.units import MIB

LARGE_SEGMENT_MB = 20
INTERVALS = 16
"""Ranges of request sizes that may be rounded differently: up to 2 MiB, up to 4 MiB ... from 32 GiB on."""

_INERT = {
    "release_lock_on_cudamalloc": "True or False",
    "release_lock_on_hipmalloc": "True or False",
    "graph_capture_record_stream_reuse": "True or False",
    "pinned_use_cuda_host_register": "True or False",
    "pinned_use_hip_host_register": "True or False",
    "pinned_use_background_threads": "True or False",
    "pinned_free_catch_all": "True or False",
    "pinned_num_register_threads": "a power of two, at most 128",
    "pinned_reserve_segment_size_mb": "a whole number, at least 1",
    "pinned_max_round_threshold_mb": "a whole number, at least 1",
    "pinned_max_cached_size_mb": "a whole number, at least 1",
}
"""Keys without effect on what the device's allocator hands out, and what torch takes for them."""

ENVIRONMENT = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


@dataclass(frozen=True)
class AllocatorSettings:
    """What the variable can change, and what the device has.

    Attributes:
        expandable_segments: one growing segment per pool instead of many.
        max_split_size_bytes: blocks from this size on are never split, ``max_split_size_mb``. [B]
        roundup_power2_divisions: requests are rounded up to one of so many steps between powers of two; one number
            for all sizes, or one for each of the ``INTERVALS`` ranges of sizes.
        limit_bytes: memory that segments or pages can be made of; beyond it what is unused is given back first. [B]
        max_non_split_rounding_bytes: how much larger a block that is never split may be than the request. [B]
        garbage_collection_threshold: share of ``allowed_bytes`` above which old unused blocks are given back before
            memory is asked for; 0 for never.
        allowed_bytes: what ``set_per_process_memory_fraction`` leaves the process, a limit as well; for expandable
            segments torch holds it against the segment it would have made without them. [B]

    Raises:
        InvalidValue: a value that torch refuses.
    """

    expandable_segments: bool = False
    max_split_size_bytes: int | None = None
    roundup_power2_divisions: int | tuple[int, ...] = 0
    limit_bytes: int | None = None
    max_non_split_rounding_bytes: int = LARGE_SEGMENT_MB * MIB
    garbage_collection_threshold: float = 0.0
    allowed_bytes: int | None = None

    def __post_init__(self) -> None:
        split, rounding, share = (
            self.max_split_size_bytes,
            self.max_non_split_rounding_bytes,
            self.garbage_collection_threshold,
        )
        if split is not None and _not_whole_mib(split):
            raise InvalidValue("max_split_size_bytes", split, "whole MiB, at least 20", "or None to split every block")
        if _not_whole_mib(rounding):
            raise InvalidValue("max_non_split_rounding_bytes", rounding, "whole MiB, at least 20", "or leave it out")
        if not 0 <= share < 1:
            raise InvalidValue("garbage_collection_threshold", share, "a share below 1", "or 0 never to collect")
        if isinstance(self.roundup_power2_divisions, tuple) and len(self.roundup_power2_divisions) != INTERVALS:
            raise InvalidValue(
                "roundup_power2_divisions", self.roundup_power2_divisions, f"one number, or {INTERVALS} of them"
            )
        for divisions in self.divisions:
            if divisions < 0 or divisions & (divisions - 1):
                raise InvalidValue("roundup_power2_divisions", divisions, "a power of two", "or 0 not to round")

    @property
    def divisions(self) -> tuple[int, ...]:
        """``roundup_power2_divisions`` of each range of sizes."""
        given = self.roundup_power2_divisions
        return given if isinstance(given, tuple) else (given,) * INTERVALS


def _not_whole_mib(n_bytes: int) -> bool:
    return n_bytes < LARGE_SEGMENT_MB * MIB or n_bytes % MIB != 0


@dataclass(frozen=True)
class AllocConf:
    """A text that was read.

    Attributes:
        settings: what it asks for.
        expandable_segments: as it was given, None where the text does not say.
        notes: what it names that changes no byte.
    """

    settings: AllocatorSettings
    expandable_segments: bool | None = None
    notes: tuple[str, ...] = field(default=())


def parse(text: str) -> AllocatorSettings:
    """The settings that a value of ``PYTORCH_CUDA_ALLOC_CONF`` asks for.

    Raises:
        InvalidValue: text that is no list of ``key:value``, or a value that torch refuses.
        UnknownName: a key that torch does not have.
        Unsupported: a setting that is not replayed.
    """
    return read(text).settings


@lru_cache(maxsize=64)
def read(text: str) -> AllocConf:
    """The settings together with what was given; see :func:`parse`."""
    found: dict[str, Any] = {}
    inert: list[str] = []
    for key, value in _pairs(text):
        if key in _READERS:
            _READERS[key](found, key, value)
        elif key in _INERT:
            _check_inert(key, value)
            inert.append(key)
        else:
            raise UnknownName(
                "alloc_conf key", key, [*_READERS, *_INERT], "torch takes " + ", ".join([*_READERS, *_INERT])
            )
    settings = AllocatorSettings(**found)
    notes = [f"alloc_conf: {key} changes nothing in the device's memory" for key in dict.fromkeys(inert)]
    if settings.garbage_collection_threshold:
        notes.append("alloc_conf: garbage_collection_threshold does nothing unless the process has a memory fraction")
    if "max_non_split_rounding_bytes" in found and settings.max_split_size_bytes is None:
        notes.append("alloc_conf: max_non_split_rounding_mb does nothing without max_split_size_mb")
    return AllocConf(settings, found.get("expandable_segments"), tuple(notes))


# -- text ------------------------------------------------------------------------------------------------------------


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    """Keys and values; white space means nothing, and a list in brackets is one value."""
    rest = "".join(text.split())
    while rest:
        match = re.match(r"(?P<key>[^,:\[\]]+):(?P<value>\[[^\[\]]*\]|[^,:\[\]]+)(?:,|$)", rest)
        if match is None:
            raise InvalidValue(
                "alloc_conf", text, f"key:value pairs with commas between them, not {rest!r}",
                "write it as max_split_size_mb:128,expandable_segments:True",
            )  # fmt: skip
        yield match["key"], match["value"]
        rest = rest[match.end() :]


def _whole(key: str, value: str, expected: str, valid: Callable[[int], bool], remedy: str = "") -> int:
    if not re.fullmatch(r"\+?\d+", value, re.ASCII) or not valid(int(value)):
        raise InvalidValue(f"alloc_conf {key}", value, expected, remedy or "or leave the key out")
    return int(value)


def _truth(key: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise InvalidValue(f"alloc_conf {key}", value, "True or False, spelled so", "or leave the key out")
    return value == "True"


def _share(key: str, value: str, expected: str, valid: Callable[[float], bool]) -> float:
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if not valid(share):
        raise InvalidValue(f"alloc_conf {key}", value, expected, "or leave the key out")
    return share


def _power_of_two(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


def _check_inert(key: str, value: str) -> None:
    expected = _INERT[key]
    if expected.startswith("True"):
        _truth(key, value)
    elif "power" in expected:
        _whole(key, value, expected, lambda n: _power_of_two(n) and n <= 128)
    else:
        _whole(key, value, expected, lambda n: n > 0)


# -- keys ------------------------------------------------------------------------------------------------------------


def _expandable(found: dict[str, Any], key: str, value: str) -> None:
    found["expandable_segments"] = _truth(key, value)


def _mebibytes(found: dict[str, Any], key: str, value: str) -> None:
    n = _whole(key, value, f"whole MiB, at least {LARGE_SEGMENT_MB}", lambda n: n >= LARGE_SEGMENT_MB)
    found[key.replace("_mb", "_bytes")] = n * MIB


def _threshold(found: dict[str, Any], key: str, value: str) -> None:
    found[key] = _share(key, value, "a share between 0 and 1, both excluded", lambda share: 0 < share < 1)


def _roundup(found: dict[str, Any], key: str, value: str) -> None:
    """One number, or a list that says for sizes from so many MiB on: what is below the first is as the first."""
    if not value.startswith("["):
        divisions = _whole(key, value, "a power of two, or a list such as [256:1,512:2,>:8]", _power_of_two)
        found[key] = (divisions,) * INTERVALS
        return
    table, last, first = list(found.get(key, (0,) * INTERVALS)), 0, True
    for entry in filter(None, value[1:-1].split(",")):
        bound, _, text = entry.partition(":")
        divisions = _whole(
            key, text, f"a power of two after the colon of {entry!r}", lambda n: n == 0 or _power_of_two(n), "or 0"
        )
        if bound == ">":
            table[last + 1 :] = [divisions] * (INTERVALS - last - 1)
            continue
        mib = _whole(key, bound, f"a power of two, in MiB, or > before the colon of {entry!r}", _power_of_two)
        last = min(mib.bit_length() - 1, INTERVALS - 1)
        if first:
            table[:last] = [divisions] * last
            first = False
        table[last] = divisions
    found[key] = tuple(table)


def _backend(found: dict[str, Any], key: str, value: str) -> None:
    if value == "cudaMallocAsync":
        raise Unsupported(
            "alloc_conf backend:cudaMallocAsync hands memory to CUDA's own pool, whose rules are not published; "
            "use backend:native, torch's caching allocator"
        )
    if value != "native":
        raise InvalidValue("alloc_conf backend", value, "native or cudaMallocAsync", "or leave the key out")


def _segment_size(found: dict[str, Any], key: str, value: str) -> None:
    n = _whole(key, value, "whole MiB, more than 10", lambda n: n > 10)
    if n != LARGE_SEGMENT_MB:
        raise Unsupported(f"alloc_conf {key}:{n} is not replayed; leave it at its default of {LARGE_SEGMENT_MB}")


def _fraction(found: dict[str, Any], key: str, value: str) -> None:
    if _share(key, value, "a share from 0 to 1", lambda share: 0 <= share <= 1) < 1:
        raise Unsupported(
            f"alloc_conf {key}:{value} is a share of one device's memory and is not replayed; leave it out, and say "
            "what the process may have as the GPU's memory"
        )


def _early_failure(found: dict[str, Any], key: str, value: str) -> None:
    if _truth(key, value):
        raise Unsupported(f"alloc_conf {key}:True fails before memory is given back and is not replayed; leave it out")


_READERS: Mapping[str, Callable[[dict[str, Any], str, str], None]] = {
    "expandable_segments": _expandable,
    "max_split_size_mb": _mebibytes,
    "max_non_split_rounding_mb": _mebibytes,
    "roundup_power2_divisions": _roundup,
    "garbage_collection_threshold": _threshold,
    "backend": _backend,
    "large_segment_size_mb": _segment_size,
    "per_process_memory_fraction": _fraction,
    "throw_on_cudamalloc_oom": _early_failure,
}
