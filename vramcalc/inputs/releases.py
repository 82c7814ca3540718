"""What memory depends on that changed between releases of transformers.

Read off the sources of the releases and compared with traces of them; ``tables/traces.csv`` has rows of each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Minor = tuple[int, int]
"""A minor release, such as ``(4, 45)``."""


@dataclass(frozen=True)
class Release:
    """Releases from one on, up to the next in ``RELEASES``.

    Attributes:
        since: first release.
        checked: last release whose traces were compared.
        shifts_logits: the loss drops the last position of the logits, which copies them; later the labels are moved.
        repeats_heads: key and value heads are copied to the number of query heads before SDPA.
        contiguous: queries, keys and values are laid out head by head before SDPA.
        additive_mask: one additive mask for all layers, where later releases hand SDPA a boolean one.
        caches: a model in training fills a KV cache.
        copies_into_cache: what is put into the cache is copied.
        warms_up: what a quantised model is given one block for before it is read: what stays of it, or half of what it
            takes in 16 bits.
        projects_first: queries, keys and values are all projected before any is split into heads.
        fuses_experts: a mixture of experts holds the weights of all in one tensor, and sorts tokens by expert.
        legacy_cache: the cache is handed out as tuples, which accelerate raises to float32 with the other outputs.
        packs_unmasked: a batch without ``attention_mask`` and cache is taken for packed sequences, and gets a mask.
        ignores_window: SDPA is given no mask for a sliding window.
        lists_tokens: the tokens of an expert are named by lists, which are copied to the GPU whenever they are used.
    """

    since: Minor
    checked: Minor
    shifts_logits: bool = False
    repeats_heads: bool = False
    contiguous: bool = False
    additive_mask: bool = False
    caches: bool = True
    copies_into_cache: bool = True
    warms_up: Literal["no", "half", "what stays"] = "no"
    projects_first: bool = False
    fuses_experts: bool = False
    legacy_cache: bool = False
    packs_unmasked: bool = False
    ignores_window: bool = False
    lists_tokens: bool = False


_UNTIL_4_47 = Release(
    since=(4, 46),
    checked=(4, 47),
    shifts_logits=True,
    repeats_heads=True,
    additive_mask=True,
    copies_into_cache=False,
    projects_first=True,
    legacy_cache=True,
)
_FROM_4_43 = replace(_UNTIL_4_47, since=(4, 43), checked=(4, 44), caches=False)
_FROM_4_42 = replace(_FROM_4_43, since=(4, 42), checked=(4, 42), caches=True)
_FROM_4_41 = replace(_FROM_4_42, since=(4, 41), checked=(4, 41), ignores_window=True)
_FROM_4_40 = replace(_FROM_4_41, since=(4, 40), checked=(4, 40))
_FROM_4_39 = replace(_FROM_4_40, since=(4, 39), checked=(4, 39), lists_tokens=True)
_FROM_4_48 = Release(
    (4, 48),
    (4, 48),
    shifts_logits=True,
    repeats_heads=True,
    contiguous=True,
    additive_mask=True,
    copies_into_cache=False,
)
_FROM_4_50 = replace(_FROM_4_48, since=(4, 50), checked=(4, 52), shifts_logits=False, warms_up="half")

RELEASES = (
    replace(_FROM_4_39, since=(4, 36), checked=(4, 36)),
    replace(_FROM_4_39, since=(4, 37), checked=(4, 37)),
    replace(_FROM_4_39, since=(4, 38), checked=(4, 38)),
    _FROM_4_39,
    _FROM_4_40,
    _FROM_4_41,
    _FROM_4_42,
    _FROM_4_43,
    replace(_UNTIL_4_47, since=(4, 45), checked=(4, 45)),
    _UNTIL_4_47,
    _FROM_4_48,
    replace(_FROM_4_48, since=(4, 49), checked=(4, 49), shifts_logits=False),
    _FROM_4_50,
    replace(_FROM_4_50, since=(4, 53), checked=(4, 53), additive_mask=False, packs_unmasked=True),
    Release((4, 54), (4, 55), contiguous=True, copies_into_cache=False, warms_up="half", packs_unmasked=True),
    Release((4, 56), (4, 57), warms_up="half", packs_unmasked=True),
    Release((5, 0), (5, 23), warms_up="what stays", fuses_experts=True),
)
"""The oldest first. What changed for some families only is said in their own files, which is why neighbours may be
alike here."""

PADDING_CHECKED = (4, 48)
"""First release whose padded batches were compared, whatever the implementation of attention."""

ROTARY_PRODUCT_UNTIL = (5, 18)
"""Last release that works out rotary positions by a matrix product; later ones multiply them element by element.

It is no trait of a release, as it moves nothing but cuBLAS's workspace.
"""

PEFT_CHECKED = ((0, 11), (0, 21))
"""First and last minor release of PEFT that is modelled; ``tables/traces.csv`` has rows of most of them."""

PEFT_DORA = (0, 16)
"""First release of PEFT whose DoRA is a variant with a call of its own."""
PEFT_ADALORA = (0, 15)
"""First release of PEFT whose AdaLoRA was compared with traces."""
PROMPTS = {"transformers": (4, 52), "peft": (0, 15)}
"""First releases whose prompt tuning and p-tuning were compared with traces."""
PREFIXES = {"transformers": (4, 56), "peft": (0, 18)}
"""The same of prefix tuning: those before make a cache, and masks over its keys, in other ways."""
PEFT_RAISES_ADAPTERS = (0, 12)
"""First release that raises 16-bit adapters to float32 (``autocast_adapter_dtype``)."""

BITSANDBYTES_CHECKED = ((0, 43), (0, 50))
"""First and last minor release of bitsandbytes that is modelled.

Before 0.46 its operators take pointers, so that no fake tensor can be traced through them: 0.43 to 0.45 were read
(``autograd/_functions.py``, ``MatMul4Bit``) and held against published runs only.
"""

EXPERTS_CHECKED = ((5, 13), (5, 23))
"""Releases with all experts in one tensor whose traces were compared; 5.0 and 5.17 copy sorted tokens more often."""


def minor_release(version: str) -> Minor | None:
    """``4.45.2`` as ``(4, 45)``, None for what is no version; of a release that is not known, the likeliest."""
    parts = version.partition("@")[0].split(".")[:2]
    if len(parts) < 2 or not all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        return None
    return int(parts[0]), int(parts[1])


def release_of(minor: Minor) -> Release | None:
    """What a minor release belongs to, None where it has not been checked."""
    return next((r for r in RELEASES if r.since <= minor <= r.checked), None)


def checked_releases() -> str:
    """The releases that have been checked, in words."""
    found = []
    for major in sorted({r.since[0] for r in RELEASES}):
        mine = [r for r in RELEASES if r.since[0] == major]
        found.append(f"{major}.{mine[0].since[1]} to {major}.{mine[-1].checked[1]}")
    return " or ".join(found)
