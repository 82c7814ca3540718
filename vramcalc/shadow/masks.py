"""Attention masks as transformers builds them: none at all when ``is_causal`` says everything."""

from __future__ import annotations

from vramcalc.shadow.autograd import Engine
from vramcalc.shadow.dims import Size
from vramcalc.shadow.tape import Tensor


def causal_mask(
    e: Engine,
    batch: Size,
    seq: Size,
    *,
    implementation: str,
    additive: bool,
    padded: bool,
    sliding_window: int | None,
    dtype: str,
) -> Tensor | None:
    """``create_causal_mask`` and ``create_sliding_window_causal_mask``.

    Args:
        e: the engine.
        batch: sequences.
        seq: tokens per sequence.
        implementation: of attention; the eager one always gets a mask, flash-attn never.
        additive: SDPA, too, is given a mask in the model's dtype, made without a boolean one before.
        padded: the batch holds padding.
        sliding_window: of every layer; a sequence that does not reach it needs no mask.
        dtype: of the hidden states.

    Returns:
        None, or ``(batch, 1, seq, seq)``: boolean for SDPA, additive for eager attention.

    References:
        transformers masking_utils.py, ``_ignore_causal_mask_sdpa``, ``sdpa_mask``, ``eager_mask``; before 4.53
        models/llama/modeling_llama.py and models/mistral/modeling_mistral.py, ``_update_causal_mask``.
    """
    if implementation == "flash_attention_2":
        return None
    eager = implementation == "eager"
    attention_mask = e.new((batch, seq), "bool", "attention mask")
    windowed = sliding_window is not None and seq >= sliding_window
    if not eager and not padded and not windowed:
        return None
    if additive:
        return _additive_mask(e, batch, seq, windows=sliding_window is not None, dtype=dtype)
    mask = _boolean_mask(e, batch, seq, windows=sliding_window is not None)
    if not eager:
        return mask
    zero = e.new((), dtype, "zeros")
    lowest = e.new((), dtype, "scalar_tensor")
    bias = e.new((batch, 1, seq, seq), dtype, "attention mask")
    del attention_mask, mask, zero, lowest
    return bias


def _additive_mask(e: Engine, batch: Size, seq: Size, *, windows: bool, dtype: str) -> Tensor:
    """The lowest number where a token must not look, made for one sequence and copied for the batch's padding."""
    square, every = (seq, seq), (batch, 1, seq, seq)
    lowest = e.new(square, dtype, "full")
    if not windows:
        lowest = e.new(square, dtype, "triu")
    arange = e.new((seq,), "int64", "arange")
    later = e.new(square, "bool", "gt")
    del arange
    if windows:
        arange = e.new((seq,), "int64", "arange")
        start = e.new((seq, 1), "int64", "sub")
        outside = e.new(square, "bool", "le")
        del arange, start, outside
    else:
        del later
    mask = e.new(every, dtype, "attention mask")
    del lowest
    summed = e.new(every, dtype, "add")
    padding = e.new(every, "bool", "eq")
    del summed
    filled = e.new(every, dtype, "masked_fill")
    del filled, padding
    return mask


def _boolean_mask(e: Engine, batch: Size, seq: Size, *, windows: bool) -> Tensor:
    square = (1, 1, seq, seq)
    aranges = [e.new((batch,), "int64", "arange"), e.new((1,), "int64", "arange")]
    for _ in ("queries", "keys"):
        arange = e.new((seq,), "int64", "arange")
        aranges.append(e.new((seq,), "int64", "add offset"))
        del arange
    true = e.new((), "bool", "new_ones")
    causal = _windowed_causal(e, seq) if windows else e.new(square, "bool", "le")
    allowed = e.new(square, "bool", "bitwise_and")
    del causal, true
    padding = e.new((batch, 1, 1, seq), "bool", "index")
    mask = e.new((batch, 1, seq, seq), "bool", "attention mask")
    del padding, allowed, aranges
    return mask


def _windowed_causal(e: Engine, seq: Size) -> Tensor:
    """``sliding_window_overlay`` and the causal rule, joined."""
    square = (1, 1, seq, seq)
    true = e.new((), "bool", "new_ones")
    start = e.new((1, 1, seq, 1), "int64", "sub")
    inside = e.new(square, "bool", "gt")
    del start
    window = e.new(square, "bool", "bitwise_and")
    del inside, true
    causal = e.new(square, "bool", "le")
    both = e.new(square, "bool", "bitwise_and")
    del causal, window
    return both
