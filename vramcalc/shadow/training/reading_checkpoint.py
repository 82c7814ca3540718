"""What reading a quantised checkpoint leaves in the allocator: memory that is cached before training begins.

transformers reads every weight onto the GPU in 16 bits, and bitsandbytes quantises it there, so that each 4-bit weight
leaves a hole four times its size. Releases from 4.50 on ask for the whole model in one block before, and let go of it,
so that weights come to lie in one segment. PEFT's k-bit preparation then makes a float32 copy of each weight left in 16
bits; where TRL casts embedding and head to bfloat16, it does so once adapters are there. A model that is loaded in the
memory of the host and moved leaves no such holes.

References:
    transformers modeling_utils.py, ``caching_allocator_warmup``; bitsandbytes nn/modules.py, ``Params4bit._quantize``;
    peft utils/other.py, ``prepare_model_for_kbit_training``; trl trainer/utils.py, ``peft_module_casting_to_bf16``.
"""

from __future__ import annotations

from collections.abc import Sequence

from vramcalc.inputs.releases import Release
from vramcalc.inputs.stack import Stack
from vramcalc.shadow.engine.tape import ITEMSIZE, Birth

_PACKED = "packed 4-bit weight"


def read_quantised(
    load: Sequence[int], births: Sequence[Birth], sizes: Sequence[int], stack: Stack
) -> tuple[list[int], list[int]]:
    """Requests of loading with those that end before training.

    Args:
        load: requests of the walk for what stays, ``id`` each, ``~id`` where one ends.
        births: by id.
        sizes: by id, as requested. [B]
        stack: the release of transformers, the dtype the checkpoint is read in, and the casts after it.

    Returns:
        Events, and sizes with those of the ids that are new.
    """
    all_sizes, events, release, dtype = list(sizes), list[int](), stack.release, stack.dtype

    def sized(n_bytes: int) -> int:
        all_sizes.append(n_bytes)
        return len(all_sizes) - 1

    def new(n_bytes: int) -> int:
        events.append(sized(n_bytes))
        return events[-1]

    base = [e for e in load if e >= 0 and not _added(births[e]) and births[e].op in (_PACKED, *_PLAIN)]
    cast = {e for e in base if stack.casts_embeddings_to_bf16 and births[e].module.endswith(_ENDS)}
    raised = {e for e in base if births[e].dtype == "float32" != dtype}
    if warm := _warm_up(release, sum(sizes[e] // 2 if e in raised else sizes[e] for e in base), base, births, sizes):
        events.append(~new(warm))
    whole: int | None = None
    low: list[tuple[int, int]] = []
    high: list[tuple[int, int]] = []
    for event in load:
        quantised = event >= 0 and births[event].op == _PACKED
        if whole is not None and (quantised or not _of_quantised(event, births)):
            events.append(~whole)
            whole = None
        if event in raised:
            low.append((event, new(sizes[event] // 2)))
            continue
        if event in cast:
            read = new(sizes[event] // ITEMSIZE["bfloat16"] * ITEMSIZE[dtype])
            if dtype != "float32":
                low.append((sized(2 * sizes[event]), read))
            high.append((event, low[-1][0] if dtype != "float32" else read))
            continue
        if low and event >= 0 and _added(births[event]):
            events += _replaced(low)
        if quantised:
            whole = new(4 * sizes[event])
        events.append(event)
    if whole is not None:
        events.append(~whole)
    return events + _replaced(low) + _replaced(high), all_sizes


_PLAIN = ("weight", "bias")
_ENDS = ("embed_tokens.weight", "lm_head.weight")


def _added(birth: Birth) -> bool:
    """Whether PEFT made it, after the checkpoint was read."""
    return ".lora_" in birth.module or ".modules_to_save." in birth.module


def _of_quantised(event: int, births: Sequence[Birth]) -> bool:
    """Scales and code books, which are made while the 16-bit weight is still there."""
    return event >= 0 and any(word in births[event].op for word in ("scales", "code book"))


def _replaced(copies: list[tuple[int, int]]) -> list[int]:
    """Copies in another dtype, one after the other, each before its original goes."""
    found = [event for made, before in copies for event in (made, ~before)]
    copies.clear()
    return found


def _warm_up(release: Release, n_bytes: int, base: Sequence[int], births: Sequence[Birth], sizes: Sequence[int]) -> int:
    match release.warms_up:
        case "what stays":
            return n_bytes
        case "half":
            packed = sum(sizes[e] for e in base if births[e].op == _PACKED)
            return (n_bytes + 3 * packed) // 2
        case _:
            return 0
