"""Masks, positions and attention, line by line beside what transformers and torch do.

References:
    transformers masking_utils.py, integrations/sdpa_attention.py, models/llama/modeling_llama.py; pytorch
    aten/src/ATen/native/transformers/attention.cpp and cuda/attention.cu.
"""

from __future__ import annotations

import pytest
from played import engine, given, played

from vramcalc.inputs.releases import release_of
from vramcalc.shadow.engine import attention
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.families.common import rotary
from vramcalc.shadow.families.common.masks import causal_mask

BATCH, SEQ, HEADS, WIDTH = 2, 10, 4, 12
WINDOW = 8


def mask_lines(
    version: tuple[int, int], *, passed: bool, window: int | None, how: str = "sdpa", padded: bool = True
) -> str:
    e, release = engine(), release_of(version)
    assert release
    found, mask = played(
        e,
        lambda: causal_mask(
            e, 3, SEQ, release=release, implementation=how, padded=padded, passed=passed, cached=False,
            sliding_window=window, dtype="bfloat16",
        ),
    )  # fmt: skip
    assert mask is None or [int(n) for n in mask.shape] == [3, 1, SEQ, SEQ]
    return ", ".join(found)


PACKED = (
    "+24 sub, +264 cat, +240 diff, -264 cat, +30 ne, +240 sequence indices, -24 sub, -240 diff, -30 ne, "
)  # fmt: skip
"""``find_packed_sequence_indices``."""
OFFSETS = "+80 arange, +80 add offset, -80 arange, +80 arange, +80 add offset, -80 arange"
OVERLAY = (
    "+1 new_ones, +80 sub, +100 gt, -80 sub, +100 bitwise_and, -100 gt, -1 new_ones, +100 le, +100 bitwise_and, "
    "-100 le, -100 bitwise_and"
)
"""``sliding_window_overlay`` and the causal rule: ``and_mask`` starts with a scalar of ones."""


@pytest.mark.parametrize(("window", "causal"), [(None, "+100 le"), (WINDOW, OVERLAY)])
def test_a_boolean_mask_is_joined_with_the_padding(window: int | None, causal: str) -> None:
    ends = "-100 bitwise_and, -80 add offset, -80 add offset, -8 arange, -24 arange, -30 attention mask"
    of = "-100 le" if window is None else "-100 bitwise_and"
    assert mask_lines((5, 23), passed=True, window=window) == (
        f"+30 attention mask, +24 arange, +8 arange, {OFFSETS}, +1 new_ones, {causal}, +100 bitwise_and, {of}, "
        f"-1 new_ones, +30 index, +300 attention mask, -30 index, {ends}"
    )


@pytest.mark.parametrize(("window", "causal"), [(None, "+100 le"), (WINDOW, OVERLAY)])
def test_without_a_mask_nothing_says_what_is_padding(window: int | None, causal: str) -> None:
    """From 5.0 packed sequences are looked for and nothing comes of it; the mask is one for the whole batch."""
    assert mask_lines((5, 23), passed=False, window=window) == (
        f"{PACKED}-240 sequence indices, +24 arange, +8 arange, {OFFSETS}, +1 new_ones, {causal}, -1 new_ones, "
        "-80 add offset, -80 add offset, -8 arange, -24 arange"
    )


def test_packed_sequences_are_masked_before_5() -> None:
    assert mask_lines((4, 55), passed=False, window=None, padded=False) == (
        f"{PACKED}+80 arange, +24 arange, +8 arange, +1 new_ones, +100 le, +100 bitwise_and, -100 le, -1 new_ones, "
        "+240 index, +240 index, +300 eq, -240 index, -240 index, +300 attention mask, -300 eq, -100 bitwise_and, "
        "-8 arange, -24 arange, -80 arange, -240 sequence indices"
    )


def test_eager_attention_turns_a_boolean_mask_into_a_bias() -> None:
    """``eager_mask``: a zero, the lowest number, and ``where`` of the two while the boolean mask is alive."""
    found = mask_lines((5, 23), passed=True, window=None, how="eager", padded=False).split(", ")
    assert found[-7:] == [
        "+2 zeros", "+2 scalar_tensor", "+600 attention mask", "-30 attention mask", "-300 attention mask", "-2 zeros",
        "-2 scalar_tensor",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("passed", "window", "lines"),
    [
        (
            True,
            None,
            "+30 attention mask, +200 full, +200 triu, -200 full, +80 arange, +100 gt, -80 arange, -100 gt, "
            "+600 attention mask, -200 triu, +600 add, +300 eq, -600 add, +600 masked_fill, -600 masked_fill, "
            "-300 eq, -30 attention mask",
        ),
        (
            True,
            WINDOW,
            "+30 attention mask, +200 full, +80 arange, +100 gt, -80 arange, +80 arange, +80 sub, +100 le, "
            "-80 arange, -80 sub, -100 le, +600 attention mask, -200 full, +600 add, +300 eq, -600 add, "
            "+600 masked_fill, -600 masked_fill, -300 eq, -100 gt, -30 attention mask",
        ),
        (False, None, "+220 full, +220 triu, -220 full, +88 arange, +110 gt, -88 arange, -110 gt"),
        (
            False,
            WINDOW,
            "+220 full, +88 arange, +110 gt, -88 arange, +88 arange, +80 sub, +110 le, -88 arange, -80 sub, "
            "-110 le, -110 gt",
        ),
    ],
)
def test_an_additive_mask_is_made_before_4_53(passed: bool, window: int | None, lines: str) -> None:
    """``_update_causal_mask``: ``triu`` of the whole, or the comparisons of a window kept until the end."""
    assert mask_lines((4, 48), passed=passed, window=window) == lines


@pytest.mark.parametrize(("window", "made"), [(None, False), (SEQ + 1, False), (SEQ, True), (SEQ - 1, True)])
def test_a_window_that_is_not_reached_needs_no_mask(window: int | None, made: bool) -> None:
    """``_ignore_causal_mask_sdpa``: ``kv_length < local_attention_size``; the batch's own mask is let go of."""
    found = mask_lines((5, 23), passed=True, window=window, padded=False)
    assert (found != "+30 attention mask, -30 attention mask") is made


def test_flash_attn_has_no_mask() -> None:
    assert mask_lines((5, 23), passed=True, window=WINDOW, how="flash_attention_2") == ""


# -- positions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scales", "lines"),
    [
        (
            True,
            "+40 to, +160 freqs, -40 to, +320 cat, +320 cos, +320 cos, -320 cos, +320 sin, +320 sin, -320 sin, "
            "+160 to, +160 to, -160 freqs, -320 cat, -320 cos, -320 sin",
        ),
        (
            False,
            "+40 to, +160 freqs, -40 to, +320 cat, +320 cos, +320 sin, +160 to, +160 to, -160 freqs, -320 cat, "
            "-320 cos, -320 sin",
        ),
    ],
)
def test_rotary_positions_are_worked_out_in_float32(scales: bool, lines: str) -> None:
    e = engine()
    assert ", ".join(played(e, lambda: rotary.rotary_embedding(e, SEQ, 8, "bfloat16", scales=scales))[0]) == lines


# -- attention -------------------------------------------------------------------------------------------------------


def attended(
    kernel: str,
    kv_heads: int,
    mask: str | None,
    *,
    batch: int = BATCH,
    autocast: str | None = None,
    repeats: bool = False,
) -> tuple[str, str]:
    e = engine(autocast)
    dtype = "float32" if autocast else "bfloat16"
    q, k, v = (given(e, (batch, n, SEQ, WIDTH), dtype) for n in (HEADS, kv_heads, kv_heads))
    bias = given(e, (batch, 1, SEQ, SEQ), mask, grad=False) if mask else None

    def forward() -> Tensor:
        return attention.attend(e, kernel, q, k, v, bias, (8, 0), repeats=repeats)[0]

    lines, y = played(e, forward)
    gradient = given(e, y.shape, y.dtype, grad=False)
    return ", ".join(lines), ", ".join(played(e, lambda: e.backward(y.node, gradient))[0])


def test_eager_attention_in_bfloat16() -> None:
    """Scores, scaled, raised to float32 for the softmax and lowered again; operands of several rows are copied."""
    assert attended("eager", HEADS, "bool") == (
        "+1920 clone, +1920 clone, +1600 bmm, +1600 mul, -1600 bmm, +3200 add mask, -1600 mul, +3200 softmax, "
        "+1600 to, -3200 add mask, +1920 clone, +1920 bmm, +1920 clone, -1920 bmm",
        "+1920 view backward, +1920 bmm backward, +1600 bmm backward, -1920 view backward, -1920 clone, -1600 to, "
        "+3200 to backward, -1600 bmm backward, +3200 softmax backward: gradient times result, "
        "+3200 softmax backward, -3200 softmax backward: gradient times result, -3200 to backward, -3200 softmax, "
        "+1600 add backward, -3200 softmax backward, +1600 mul backward, -1600 add backward, +1920 bmm backward, "
        "+1920 bmm backward, -1600 mul backward, -1920 clone, -1920 clone",
    )


def test_eager_attention_of_one_row_and_one_key_head_copies_no_operand() -> None:
    """One key head is expanded, not copied: its gradient is summed over the heads."""
    forward, backward = attended("eager", 1, "bfloat16", batch=1)
    assert forward == (
        "+800 bmm, +800 mul, -800 bmm, +800 add mask, -800 mul, +1600 to, +1600 softmax, -1600 to, +800 to, "
        "-800 add mask, +960 bmm, +960 clone, -960 bmm"
    )
    assert backward.endswith("+240 sum over heads, -960 bmm backward, +240 sum over heads, -960 bmm backward")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("kv_heads", "clones"), [(1, (0, 3)), (2, (0, 1)), (4, (0, 3))])
def test_operands_that_are_not_one_block_are_copied(batch: int, kv_heads: int, clones: tuple[int, int]) -> None:
    """Queries, keys and values lie token by token; repeated keys and values are blocks, an expanded one never is."""
    forward, _ = attended("eager", kv_heads, None, batch=batch)
    assert forward.count("+1920 clone" if batch == 2 else "+960 clone") == 1 + clones[batch - 1]


def test_the_math_kernel_works_in_float32() -> None:
    """``_scaled_dot_product_attention_math``: no autocast inside, a causal mask of its own, safe softmax."""
    softmax = (
        "+3200 safe softmax: unmasked result, +800 safe softmax: which scores are -inf, "
        "+80 safe softmax: which rows are masked, +3200 safe_softmax, -80 safe softmax: which rows are masked, "
        "-800 safe softmax: which scores are -inf, -3200 safe softmax: unmasked result"
    )
    forward, backward = attended("math", 2, None)
    assert forward == (
        "+3840 to, +1920 to, +1920 to, +3840 mul, +100 ones, +100 tril, -100 ones, +4 zeros, +4 full, +400 where, "
        "-4 full, -4 zeros, -100 tril, +3840 repeat_kv, +3840 repeat_kv, +3840 mul, +3840 clone, +3200 bmm, "
        f"{softmax}, -3200 bmm, +1600 attention weights, +3840 bmm, +1920 to, -3840 bmm, -1600 attention weights, "
        "-400 where, -3840 to, -3840 mul, -1920 to, -1920 to, -3840 repeat_kv, +1920 clone, -1920 to"
    )
    assert backward == (
        "+3840 to backward, +3840 view backward, -3840 to backward, +3840 bmm backward, +3200 bmm backward, "
        "-3840 view backward, -3840 repeat_kv, +3200 softmax backward: gradient times result, "
        "+3200 softmax backward, -3200 softmax backward: gradient times result, -3200 bmm backward, "
        "-3200 safe_softmax, +3840 bmm backward, +3840 bmm backward, -3200 softmax backward, -3840 mul, "
        "-3840 clone, +3840 mul backward, -3840 bmm backward, +1920 sum over heads, -3840 bmm backward, "
        "+1920 sum over heads, -3840 mul backward, +3840 mul backward, -3840 bmm backward, +960 to backward, "
        "-1920 sum over heads, +960 to backward, -1920 sum over heads, +1920 to backward, -3840 mul backward"
    )


def test_memory_efficient_attention_pads_a_mask_to_8_columns() -> None:
    """``pad_bias``; log-sum-exp is padded to 32 rows, and seed and offset are scalars."""
    rest = "+1920 efficient attention, +1024 efficient attention log-sum-exp, +8 efficient attention seed, "
    mask = "+2 zeros, +2 full, +400 where, -2 full, +640 constant_pad_nd, -400 where, -2 zeros"
    assert attended("efficient", HEADS, "bool")[0] == f"{mask}, {rest}+8 efficient attention offset"
    assert attended("efficient", HEADS, "bfloat16")[0] == f"+640 pad, {rest}+8 efficient attention offset"
    assert attended("efficient", HEADS, None)[0] == f"{rest}+8 efficient attention offset"


def test_cudnn_attention_has_a_sum_for_each_row_and_no_more() -> None:
    forward, backward = attended("cudnn", 2, None)
    assert forward == (
        "+1920 cudnn attention, +320 cudnn attention log-sum-exp, +8 cudnn attention seed, +8 cudnn attention offset"
    )
    assert backward == (
        "+4160 cuDNN backward: dq and row sums in float32, +1920 cudnn backward, +960 cudnn backward, "
        "+960 cudnn backward, -4160 cuDNN backward: dq and row sums in float32, -8 cudnn attention offset, "
        "-8 cudnn attention seed, -320 cudnn attention log-sum-exp"
    )


@pytest.mark.parametrize("autocast", [None, "bfloat16"])
def test_flash_attention_pads_heads_to_a_multiple_of_8(autocast: str | None) -> None:
    """``pad_last_dim<8>``: 12 becomes 16, and the gradient that comes back is made contiguous."""
    casts = ("+960 to, +960 to, +1920 to, ", ", -960 to, -960 to, -1920 to") if autocast else ("", "")
    forward, backward = attended("flash", 2, None, autocast=autocast)
    assert forward == (
        f"{casts[0]}+2560 pad, +1280 pad, +1280 pad, +2560 flash attention, +320 flash attention log-sum-exp, "
        f"+16 flash attention rng state, +8 flash attention rng state, +1920 clone{casts[1]}"
    )
    assert backward.startswith(
        "+2560 slice backward, +4096 flash backward: softmax_d, +131072 flash backward: dq in float32, "
        "+2560 flash backward: dk per query head, +2560 flash backward: dv per query head, "
        "+2560 flash backward: contiguous grad_out, +2560 flash backward, +1280 flash backward, "
        "+1280 flash backward, -2560 flash backward: contiguous grad_out"
    )
    ends = "+960 pad backward, -1280 flash backward, +960 pad backward, -1280 flash backward, +1920 pad backward"
    assert ends in backward
