"""Attention masks as transformers builds them: none at all when ``is_causal`` says everything."""

from __future__ import annotations

from vramcalc.inputs.releases import Release
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Tensor


def causal_mask(
    e: Engine,
    batch: Size,
    seq: Size,
    *,
    release: Release,
    implementation: str,
    padded: bool,
    passed: bool,
    cached: bool,
    sliding_window: int | None,
    dtype: str,
    past: int = 0,
) -> Tensor | None:
    """``create_causal_mask`` and ``create_sliding_window_causal_mask``.

    Args:
        e: the engine.
        batch: sequences.
        seq: tokens per sequence.
        release: of transformers.
        implementation: of attention; the eager one always gets a mask, flash-attn never.
        padded: the batch holds padding.
        passed: the model is handed an ``attention_mask``.
        cached: the model fills a cache; without either, positions are looked at for packed sequences.
        sliding_window: of every layer; a sequence that does not reach it needs no mask.
        dtype: of the hidden states.
        past: keys that the cache holds already, which every token sees.

    Returns:
        None, or ``(batch, 1, seq, past + seq)``: boolean for SDPA, additive for eager attention.

    References:
        transformers masking_utils.py, ``_preprocess_mask_arguments``, ``_ignore_causal_mask_sdpa``, ``sdpa_mask``,
        ``eager_mask``; before 4.53 models/llama/modeling_llama.py and models/mistral/modeling_mistral.py,
        ``_update_causal_mask``.
    """
    if implementation == "flash_attention_2":
        return None
    eager = implementation == "eager"
    keys = seq + past if past else seq
    attention_mask = e.new((batch, keys), "bool", "attention mask") if passed else None
    asks = not (passed or cached or release.additive_mask)
    sequences = _sequence_indices(e, batch, seq) if asks else None
    if not release.packs_unmasked:
        sequences = None
    windowed = sliding_window is not None and keys >= sliding_window
    finds_keys = past > 0 and seq > 1
    if not eager and not padded and not finds_keys and not windowed and sequences is None:
        return None
    windows = sliding_window is not None
    if release.additive_mask:
        return _additive_mask(e, batch, seq, windows=windows, passed=passed, dtype=dtype)
    if sequences is not None:
        mask = _packed_mask(e, sequences, windows=windows)
    else:
        mask = _boolean_mask(e, batch, seq, keys, windows=windows, passed=passed)
    if not eager:
        return mask
    zero = e.new((), dtype, "zeros")
    lowest = e.new((), dtype, "scalar_tensor")
    bias = e.new((batch, 1, seq, keys), dtype, "attention mask")
    del attention_mask, sequences, mask, zero, lowest
    return bias


def _sequence_indices(e: Engine, batch: Size, seq: Size) -> Tensor:
    """``find_packed_sequence_indices``: which sequence of its row each token belongs to."""
    before = e.new((batch, 1), "int64", "sub")
    joined = e.new((batch, seq + 1), "int64", "cat")
    steps = e.new((batch, seq), "int64", "diff")
    del joined
    starts = e.new((batch, seq), "bool", "ne")
    found = e.new((batch, seq), "int64", "sequence indices")
    del before, steps, starts
    return found


def _packed_mask(e: Engine, sequences: Tensor, *, windows: bool) -> Tensor:
    """Causal, and within one sequence of each row."""
    batch, seq = shape = sequences.shape
    square = (seq, seq)
    aranges = [e.new((n,), "int64", "arange") for n in (seq, batch, 1)]
    true = e.new((), "bool", "new_ones")
    causal = _windowed_causal(e, seq, seq) if windows else e.new(square, "bool", "le")
    allowed = e.new(square, "bool", "bitwise_and")
    del causal, true
    of_queries = e.new(shape, "int64", "index")
    of_keys = e.new(shape, "int64", "index")
    same = e.new((batch, *square), "bool", "eq")
    del of_queries, of_keys
    mask = e.new((batch, 1, *square), "bool", "attention mask")
    del same, allowed, aranges
    return mask


def _additive_mask(e: Engine, batch: Size, seq: Size, *, windows: bool, passed: bool, dtype: str) -> Tensor:
    """The lowest number where a token must not look, made for one sequence and copied for the batch's padding.

    Without an ``attention_mask`` there is one column more, and one mask for all sequences.
    """
    columns, every = (seq if passed else seq + 1), (batch, 1, seq, seq)
    square = (seq, columns)
    lowest = e.new(square, dtype, "full")
    if not windows:
        lowest = e.new(square, dtype, "triu")
    arange = e.new((columns,), "int64", "arange")
    later = e.new(square, "bool", "gt")
    del arange
    if windows:
        arange = e.new((columns,), "int64", "arange")
        start = e.new((seq, 1), "int64", "sub")
        outside = e.new(square, "bool", "le")
        del arange, start, outside
    if not windows or not passed:
        del later
    if not passed:
        return Tensor(lowest.storage, every, dtype)
    mask = e.new(every, dtype, "attention mask")
    del lowest
    summed = e.new(every, dtype, "add")
    padding = e.new(every, "bool", "eq")
    del summed
    filled = e.new(every, dtype, "masked_fill")
    del filled, padding
    return mask


def _boolean_mask(e: Engine, batch: Size, seq: Size, keys: Size, *, windows: bool, passed: bool) -> Tensor:
    """Causal, and without padding; where nothing says what is padding, one mask for all sequences."""
    square = (1, 1, seq, keys)
    aranges = [e.new((batch,), "int64", "arange"), e.new((1,), "int64", "arange")]
    for n in (seq, keys):
        arange = e.new((n,), "int64", "arange")
        aranges.append(e.new((n,), "int64", "add offset"))
        del arange
    true = e.new((), "bool", "new_ones")
    causal = _windowed_causal(e, seq, keys) if windows else e.new(square, "bool", "le")
    if not passed:
        del true, aranges
        return Tensor(causal.storage, (batch, 1, seq, keys), "bool")
    allowed = e.new(square, "bool", "bitwise_and")
    del causal, true
    padding = e.new((batch, 1, 1, keys), "bool", "index")
    mask = e.new((batch, 1, seq, keys), "bool", "attention mask")
    del padding, allowed, aranges
    return mask


def _windowed_causal(e: Engine, seq: Size, keys: Size) -> Tensor:
    """``sliding_window_overlay`` and the causal rule, joined."""
    square = (1, 1, seq, keys)
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
