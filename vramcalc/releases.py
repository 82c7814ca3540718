"""What memory depends on that changed between releases of transformers.

Read off the sources of the releases and compared with traces of them; ``tables/traces.csv`` has rows of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Release:
    """Releases from one on, up to the next in ``RELEASES``.

    Attributes:
        since: first release.
        checked: last release whose traces were compared.
        raises_logits: model types that return float32 logits, made before the loss.
        shifts_logits: the loss drops the last position of the logits, which copies them; later the labels are moved.
        repeats_heads: key and value heads are copied to the number of query heads before SDPA.
        contiguous: queries, keys and values are laid out head by head before SDPA.
        layer_rotary: model types whose every attention works out the rotary positions.
        repeats_before_flash: model types that copy heads before flash-attn, which does not need it.
        additive_mask: one additive mask for all layers, where later releases hand SDPA a boolean one.
        caches: a model in training fills a KV cache.
        copies_into_cache: what is put into the cache is copied.
        cached_rotary: of ``layer_rotary``, model types that keep a table of every position there could be.
    """

    since: tuple[int, int]
    checked: tuple[int, int]
    raises_logits: frozenset[str] = frozenset()
    shifts_logits: bool = False
    repeats_heads: bool = False
    contiguous: bool = False
    layer_rotary: frozenset[str] = frozenset()
    repeats_before_flash: frozenset[str] = frozenset()
    additive_mask: bool = False
    caches: bool = True
    copies_into_cache: bool = True
    cached_rotary: frozenset[str] = frozenset()


_MISTRAL, _QWEN = frozenset({"mistral"}), frozenset({"qwen2"})
_EVERY = frozenset({"llama"}) | _MISTRAL | _QWEN

_UNTIL_4_47 = Release((4, 46), (4, 47), _MISTRAL, True, True, False, _MISTRAL, _MISTRAL | _QWEN, True, True, False)
_UNTIL_4_52 = Release(
    (4, 49), (4, 52), repeats_heads=True, contiguous=True, additive_mask=True, copies_into_cache=False
)

RELEASES = (
    replace(
        _UNTIL_4_47,
        since=(4, 43),
        checked=(4, 44),
        raises_logits=_EVERY,
        layer_rotary=_MISTRAL | _QWEN,
        cached_rotary=_QWEN,
        caches=False,
    ),
    replace(_UNTIL_4_47, since=(4, 45), checked=(4, 45), raises_logits=_EVERY),
    _UNTIL_4_47,
    replace(_UNTIL_4_52, since=(4, 48), checked=(4, 48), shifts_logits=True),
    _UNTIL_4_52,
    replace(_UNTIL_4_52, since=(4, 53), checked=(4, 53), additive_mask=False),
    Release((4, 54), (4, 55), contiguous=True),
    Release((4, 56), (4, 57)),
    Release((5, 0), (5, 23)),
)
"""The oldest first."""


def minor_release(version: str) -> tuple[int, int] | None:
    """``4.45.2`` as ``(4, 45)``, None for what is no version."""
    try:
        major, minor = (int(part) for part in version.split(".")[:2])
    except ValueError:
        return None
    return major, minor


def release_of(minor: tuple[int, int]) -> Release | None:
    """What a minor release belongs to, None where it has not been checked."""
    return next((r for r in RELEASES if r.since <= minor <= r.checked), None)


def checked_releases() -> str:
    """The releases that have been checked, in words."""
    found = []
    for major in sorted({r.since[0] for r in RELEASES}):
        mine = [r for r in RELEASES if r.since[0] == major]
        found.append(f"{major}.{mine[0].since[1]} to {major}.{mine[-1].checked[1]}")
    return " or ".join(found)
