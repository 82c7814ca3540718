"""From logits to the loss: the model's own, in float32, and cross entropy as a loop calls it."""

from __future__ import annotations

from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Storage, Tensor


def causal_lm_loss(e: Engine, logits: Tensor, *, shifts_logits: bool) -> Tensor:
    """``ForCausalLMLoss`` on ``(batch, seq, vocab)`` logits: a float32 copy, its log-softmax, the mean over tokens.

    Args:
        e: the engine.
        logits: of every position.
        shifts_logits: the last position is left out, which copies the others; later releases move the labels.

    References:
        transformers loss/loss_utils.py; before 4.46 at the end of ``LlamaForCausalLM.forward``.
    """
    batch, seq, _ = logits.shape
    raised = x = ops.to(e, logits, "float32")
    if shifts_logits:
        x = without_last(e, raised)
        padded_labels, labels = None, e.new((batch, seq - 1) if batch > 1 else (), "int64", "shifted labels")
    else:
        padded_labels, labels = shifted_labels(e, batch, seq)
    shape = x.shape
    log_probs = e.apply(
        "log_softmax",
        [x],
        shape,
        "float32",
        (),
        lambda s, g: [e.new(shape, "float32", "log_softmax backward")],
        saves_result=True,
    )
    node = e.node(
        "nll_loss", [log_probs], [log_probs, labels], lambda s, g: [e.new(shape, "float32", "nll_loss backward")]
    )
    loss = Tensor(Storage(e.tape, (), "float32", "loss"), (), "float32", node)
    total_weight = e.new((), "float32", "nll_loss total weight")
    if node is not None:
        e.save(node, [total_weight])
    del padded_labels, raised
    return loss


def cross_entropy(e: Engine, logits: Tensor, labels: Tensor, *, shifts_logits: bool, autocast: bool) -> Tensor:
    """``F.cross_entropy`` on ``(batch, seq, vocab)`` logits as they are.

    Args:
        e: the engine.
        logits: of every position.
        labels: of the batch.
        shifts_logits: the last position is left out of a copy; else the labels were shifted by whoever made them.
        autocast: the loss is under autocast, which on CUDA raises log-probabilities to float32, and not the logits.

    References:
        pytorch aten/src/ATen/native/LossNLL.cpp, ``cross_entropy_loss_symint``, which names the dtype of the softmax;
        aten/src/ATen/autocast_mode.h, ``AT_FORALL_FP32_SET_OPT_DTYPE``, which minds that.
    """
    batch, seq, _ = logits.shape
    x = without_last(e, logits) if shifts_logits else logits
    if shifts_logits and batch > 1:
        labels = e.new((batch, seq - 1), "int64", "shifted labels")
    shape, dtype = x.shape, x.dtype
    log_probs = e.apply(
        "log_softmax", [x], shape, dtype, (), lambda s, g: [e.new(shape, dtype, "log_softmax backward")],
        saves_result=True,
    )  # fmt: skip
    if autocast:
        log_probs = ops.to(e, log_probs, "float32")
    low = log_probs.dtype
    node = e.node("nll_loss", [log_probs], [log_probs, labels], lambda s, g: [e.new(shape, low, "nll_loss backward")])
    loss = Tensor(Storage(e.tape, (), low, "loss"), (), low, node)
    total_weight = e.new((), low, "nll_loss total weight")
    if node is not None:
        e.save(node, [total_weight])
    return loss


def without_last(e: Engine, logits: Tensor) -> Tensor:
    """``logits[..., :-1, :].contiguous()``: a copy, of a single row none; backward fills a zero tensor of full size."""
    shape, dtype = logits.shape, logits.dtype
    batch, seq, vocab = shape
    shorter = (batch, seq - 1, vocab)
    view = e.view("slice", logits, shorter, lambda s, g: [e.new(shape, dtype, "slice backward")])
    return ops.clone(e, view) if batch > 1 else view


def shifted_labels(e: Engine, batch: Size, seq: Size) -> tuple[Tensor, Tensor]:
    """Labels padded by one, and shifted: a view of one row, a copy of several."""
    padded = e.new((batch, seq + 1), "int64", "padded labels")
    return padded, e.new((batch, seq), "int64", "shifted labels") if batch > 1 else padded
