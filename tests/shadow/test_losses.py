"""From logits to the loss and back, line by line beside the libraries' own code.

References:
    transformers loss/loss_utils.py; pytorch LossNLL.cpp; liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py;
    trl 1.16 kernels/chunked_logprob.py and trainer/; fms_acceleration_foak 0.4.
"""

from __future__ import annotations

import pytest
from hypothesis import given as draws
from hypothesis import strategies as st
from played import engine, given, parameter, peak, played

from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.training import fms_losses, losses
from vramcalc.shadow.training.cross_entropy import causal_lm_loss, cross_entropy

BATCH, SEQ, VOCAB = 2, 5, 7


def backward(e: Engine, loss: Tensor) -> str:
    gradient = given(e, loss.shape, loss.dtype, grad=False)
    return ", ".join(played(e, lambda: e.backward(loss.node, gradient))[0])


@pytest.mark.parametrize(
    ("batch", "shifts", "forward", "back"),
    [
        (
            2,
            False,
            "+280 to, +96 padded labels, +80 shifted labels, +280 log_softmax, +4 loss, +4 nll_loss total weight, "
            "-96 padded labels, -280 to",
            "+280 nll_loss backward, -4 nll_loss total weight, -80 shifted labels, +280 log_softmax backward, "
            "-280 nll_loss backward, -280 log_softmax, +140 to backward, -280 log_softmax backward",
        ),
        (
            1,
            False,
            "+140 to, +48 padded labels, +140 log_softmax, +4 loss, +4 nll_loss total weight, -140 to",
            "+140 nll_loss backward, -4 nll_loss total weight, -48 padded labels, +140 log_softmax backward, "
            "-140 nll_loss backward, -140 log_softmax, +70 to backward, -140 log_softmax backward",
        ),
        (
            2,
            True,
            "+280 to, +224 clone, +64 shifted labels, +224 log_softmax, +4 loss, +4 nll_loss total weight, "
            "-280 to, -224 clone",
            "+224 nll_loss backward, -4 nll_loss total weight, -64 shifted labels, +224 log_softmax backward, "
            "-224 nll_loss backward, -224 log_softmax, +280 slice backward, -224 log_softmax backward, "
            "+140 to backward, -280 slice backward",
        ),
    ],
)
def test_the_models_own_loss_is_in_float32(batch: int, shifts: bool, forward: str, back: str) -> None:
    """``ForCausalLMLoss``: labels are padded and moved; before 4.46 the logits lose their last position."""
    e = engine()
    logits = given(e, (batch, SEQ, VOCAB))
    found, loss = played(e, lambda: causal_lm_loss(e, logits, shifts_logits=shifts))
    assert ", ".join(found) == forward
    gradient = given(e, (), "float32", grad=False)
    assert ", ".join(played(e, lambda: e.backward(loss.node, gradient))[0]) == back


@pytest.mark.parametrize(
    ("batch", "shifts", "autocast", "forward"),
    [
        (2, False, False, "+140 log_softmax, +2 loss, +2 nll_loss total weight"),
        (2, False, True, "+140 log_softmax, +280 to, +4 loss, +4 nll_loss total weight"),
        (1, True, False, "+56 log_softmax, +2 loss, +2 nll_loss total weight"),
        (
            2,
            True,
            True,
            "+112 clone, +64 shifted labels, +112 log_softmax, +224 to, +4 loss, +4 nll_loss total weight, -112 clone",
        ),
    ],
)
def test_cross_entropy_of_a_loop_is_in_the_dtype_of_the_logits(
    batch: int, shifts: bool, autocast: bool, forward: str
) -> None:
    """Autocast raises what ``nll_loss`` is given and not the softmax; a single row is cut without a copy."""
    e = engine()
    logits, labels = given(e, (batch, SEQ, VOCAB)), given(e, (batch, SEQ), "int64", grad=False)
    found, _ = played(e, lambda: cross_entropy(e, logits, labels, shifts_logits=shifts, autocast=autocast))
    assert ", ".join(found) == forward


# -- chunks ----------------------------------------------------------------------------------------------------------


@draws(st.integers(1, 60), st.integers(1, 20))
def test_the_ends_of_a_loop_are_its_first_two_and_its_last_chunk(n: int, chunk: int) -> None:
    every = [min(chunk, n - start) for start in range(0, n, chunk)]
    found = list(losses.ends(n, chunk))
    expected = every if len(every) < 3 else [every[0], every[1], every[-1]]
    # Two whole chunks may be told three times: all are alike.
    assert found == expected or (len(every) == 2 and found == [chunk] * 3 == [*every, chunk])


@draws(st.integers(1, 5000))
def test_a_power_of_two_is_rounded_up_as_triton_does(n: int) -> None:
    assert losses.next_power_of_2(n) == 1 << (n - 1).bit_length()


def test_liger_makes_gradients_in_the_forward_pass() -> None:
    """Chunks of ``next_power_of_2(ceil(tokens / ceil(vocab / width)))`` tokens: 4 of 10, for 11 words of width 4."""
    e = engine()
    hidden, weight = given(e, (BATCH, SEQ, 4)), parameter(e, (11, 4))
    found, loss = played(e, lambda: losses.fused_linear_loss(e, hidden, weight, (8, 0)))
    assert ", ".join(found) == (
        "+96 padded labels, +80 shifted labels, +80 grad_input, +88 grad_weight, +40 loss per token, "
        "+10 target mask, +88 logits of a chunk, -88 logits of a chunk, +4 loss, -40 loss per token, "
        "-10 target mask, -80 shifted labels, -96 padded labels"
    )
    assert backward(e, loss) == ""


def test_liger_of_a_frozen_head_has_no_gradient_of_it() -> None:
    e = engine()
    hidden, weight = given(e, (BATCH, SEQ, 4)), parameter(e, (11, 4), trained=False)
    found, _ = played(e, lambda: losses.fused_linear_loss(e, hidden, weight, (8, 0)))
    assert not [line for line in found if "grad_weight" in line]


def test_liger_under_autocast_casts_operands_chunk_by_chunk() -> None:
    """The first product takes a transposed view, whose cast is not kept; that of the second one is, of a parameter."""
    e = engine("bfloat16")
    hidden, weight = given(e, (BATCH, SEQ, 4), "float32"), parameter(e, (11, 4), "float32")
    found, _ = played(e, lambda: losses.fused_linear_loss(e, hidden, weight, (8, 0)))

    def chunk(rows: int, cached: str) -> str:
        product, x, logits = 8 * rows, 8 * rows, 22 * rows
        return (
            f"+88 autocast copy, +{x} autocast copy, +{logits} logits of a chunk, -88 autocast copy, "
            f"-{x} autocast copy, {cached}+{product} grad_input of a chunk, -{product} grad_input of a chunk, "
            f"+{x} cast of a chunk, -{x} cast of a chunk, -{logits} logits of a chunk"
        )

    assert ", ".join(found) == (
        "+96 padded labels, +80 shifted labels, +160 grad_input, +176 grad_weight, +40 loss per token, "
        f"+10 target mask, {chunk(4, '+88 to, ')}, {chunk(4, '')}, {chunk(2, '')}, +4 loss, -40 loss per token, "
        "-10 target mask, -80 shifted labels, -96 padded labels"
    )


@pytest.mark.parametrize(
    ("capability", "autocast", "dtype", "copies"),
    [
        ((8, 0), None, "bfloat16", False),
        ((8, 0), "bfloat16", "float32", False),
        ((7, 5), None, "float16", True),
        ((8, 0), None, "float32", True),
    ],
)
def test_liger_adds_a_chunks_weight_gradient_in_place_from_ampere_on(
    capability: tuple[int, int], autocast: str | None, dtype: str, copies: bool
) -> None:
    e = engine(autocast)
    hidden, weight = given(e, (BATCH, SEQ, 4), dtype), parameter(e, (11, 4), dtype)
    found, _ = played(e, lambda: losses.fused_linear_loss(e, hidden, weight, capability))
    grads = [line for line in found if "grad_weight of a chunk" in line]
    each = ["+176 grad_weight of a chunk", "-176 grad_weight of a chunk"]
    if dtype == "float16":
        each = [
            "+88 grad_weight of a chunk",
            "+176 grad_weight of a chunk, float32",
            "-88 grad_weight of a chunk",
            "-176 grad_weight of a chunk, float32",
        ]
    assert grads == each * 3 * copies


def test_trl_works_out_log_probabilities_tile_by_tile() -> None:
    """``ChunkedLogProbFunction``: seven statistics, one tile of 32,768 words, and no logits; then its own loss."""
    e = engine()
    hidden, weight = given(e, (BATCH, SEQ, 4)), parameter(e, (11, 4))
    found, outputs = played(e, lambda: losses.chunked_outputs(e, hidden, weight))
    statistics = [f"32 statistic {i}" for i in range(7)]
    assert ", ".join(found) == (
        "+8 label mask, +128 nonzero, +64 index, -128 nonzero, +128 nonzero, +64 labels, -128 nonzero, "
        f"{', '.join('+' + s for s in statistics)}, +524288 tile of logits, +32 log, +32 log_z, -32 log, "
        "+32 log_probs, +32 div, +32 entropy, -32 div, +8 ge, +8 gt, +8 top-1, -8 gt, -8 ge, "
        f"{', '.join('-' + s for s in reversed(statistics))}, -524288 tile of logits, +32 zeros, "
        "+32 masked_scatter, -32 zeros, +32 zeros, +32 masked_scatter, -32 zeros, +8 zeros, +8 masked_scatter, "
        "-8 zeros, -8 top-1, -32 log_probs, +4 sum, +4 neg, -4 sum, +8 sum of the mask, +8 clamp, "
        "-8 sum of the mask, +4 div, -4 neg"
    )
    assert backward(e, outputs[-1]) == (
        "+4 div backward, -8 clamp, +4 neg backward, -4 div backward, +32 masked_select, -4 neg backward, "
        "+128 grad_hidden, +176 grad_weight, +524288 tile of logits, +64 to, +88 to, -128 grad_hidden, "
        "-176 grad_weight, -524288 tile of logits, -32 masked_select, -32 entropy, -32 log_z, -64 labels, "
        "-64 index, +64 index backward, +128 nonzero, -128 nonzero, -64 to, -8 label mask, +80 slice backward, "
        "-64 index backward"
    )


def test_trl_casts_the_last_and_shorter_tile_of_the_vocabulary() -> None:
    """Float32 weights under autocast: 32,768 words at a time, and 4,096 tokens."""
    e = engine("bfloat16")
    hidden, weight = given(e, (1, 9001, 2), "float32"), parameter(e, (40_000, 2), "float32")
    found, _ = played(e, lambda: losses.chunked_outputs(e, hidden, weight))
    tiles = [line for line in found if line.startswith("+") and "tile" in line]
    words = ["+131072 cast of a tile", "+28928 cast of a tile"]
    tokens = ["+16384 cast of a tile", "+16384 cast of a tile", f"+{4 * (9000 - 2 * 4096)} cast of a tile"]
    assert tiles == ["+268435456 tile of logits", *(line for n in tokens for line in (n, *words))]


def test_sfts_loss_divides_the_sum_by_the_number_of_tokens() -> None:
    e = engine()
    log_probs = given(e, (BATCH, SEQ), "float32")
    found, loss = played(e, lambda: losses.sft_loss(e, log_probs))
    assert ", ".join(found) == (
        "+40 neg, +8 sum of the mask, +4 sum, +8 clamp, +4 div, -4 sum, -40 neg, -8 sum of the mask"
    )
    assert backward(e, loss) == "+4 div backward, -8 clamp, +40 neg backward, -4 div backward"


# -- the plugin's ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocab", "chunks"), [(65_536, 1), (65_537, 2), (131_073, 3)])
def test_unsloths_loss_sums_a_wide_vocabulary_by_chunks(vocab: int, chunks: int) -> None:
    """``MAX_FUSED_SIZE`` is 65,536; ``torch.logsumexp`` over chunks has maxima and exponents of its own."""
    e = engine()
    logits = given(e, (BATCH, 3, vocab))
    found, _ = played(e, lambda: fms_losses.fused_cross_entropy(e, logits))
    copy, shorter, by = 4 * BATCH * 3 * vocab, 4 * BATCH * 2 * vocab, 4 * 4 * chunks
    sums = "+16 logsumexp"
    if chunks > 1:
        sums = f"+{by} logsumexp by chunk, {sums}, +16 amax, +{by} exp, -{by} exp, -16 amax, -{by} logsumexp by chunk"
    assert ", ".join(found) == (
        f"+{copy} to, +{shorter} clone, +32 shifted labels, +16 loss per token, {sums}, +4 label mask, "
        f"+8 count_nonzero, -4 label mask, +4 sum, +4 div, -4 sum, -{copy} to, -16 loss per token"
    )


def test_the_plugins_linear_loss_raises_each_chunk() -> None:
    """``lce_forward``: rows of 8 in chunks of 4; at most a chunk in float32 beside its gradients of the last one."""
    e = engine()
    hidden, weight = given(e, (BATCH, SEQ, 4)), parameter(e, (11, 4))
    kept = 64 + 64 + 88 + 64 + 32 + 8
    assert peak(e, lambda: fms_losses.fused_linear_loss(e, hidden, weight)) == kept + 88 + 88 + 176
    found, loss = played(e, lambda: fms_losses.fused_linear_loss(e, hidden, weight))
    assert ", ".join(found[:7]) == (
        "+64 clone, +64 shifted labels, +88 grad_weight, +64 grad_input, +32 loss per token, +8 sum of the mask, "
        "+88 logits of a chunk"
    )
    assert found.count("+32 grad_input of a chunk") == 3
    assert found[-5:] == ["+4 loss", "-32 loss per token", "-8 sum of the mask", "-64 shifted labels", "-64 clone"]
    assert backward(e, loss) == "+80 slice backward, -64 grad_input"
