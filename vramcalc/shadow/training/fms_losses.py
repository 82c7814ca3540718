"""Losses as the fused-ops-and-kernels plugin of foundation-model-stack carries them: Unsloth's, and an older Liger's.

References:
    foundation-model-stack/fms-acceleration plugins/fused-ops-and-kernels (fms_acceleration_foak 0.4).
"""

from __future__ import annotations

from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients, Parameter
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Storage, Tensor
from vramcalc.shadow.training.cross_entropy import without_last
from vramcalc.shadow.training.losses import divided, ends, next_power_of_2, sum_of

FUSED_VOCABULARY = 65536
"""Logits of a row that one block of Unsloth's kernel takes."""


def fused_cross_entropy(e: Engine, logits: Tensor) -> Tensor:
    """Unsloth's cross entropy on ``(batch, seq, vocab)`` logits: their gradient is written over the float32 copy.

    References:
        kernels/unsloth/cross_entropy_loss.py, ``Fast_CrossEntropyLoss``.
    """
    batch, seq, vocab = logits.shape
    raised = ops.to(e, logits, "float32")
    x = without_last(e, raised)
    shape, rows = x.shape, batch * (seq - 1)
    labels = e.new((rows,), "int64", "shifted labels")

    def backward(saved: list[Tensor], g: Tensor) -> Gradients:
        e.work.writes_over(saved[0])
        return [Tensor(saved[0].storage, shape, "float32", None, True)]

    node = e.node("fast_cross_entropy", [x], (), backward)
    losses = Tensor(Storage(e.tape, (rows,), "float32", "loss per token"), (rows,), "float32", node)
    logsumexp = _logsumexp(e, rows, -(-int(vocab) // FUSED_VOCABULARY))
    if node is not None:
        e.save(node, [x, logsumexp, labels])
    counted = e.new((rows,), "bool", "label mask")
    n_items = e.new((), "int64", "count_nonzero")
    del counted
    loss = divided(e, sum_of(e, losses), n_items)
    del raised
    return loss


def _logsumexp(e: Engine, rows: Size, chunks: int) -> Tensor:
    """Per row; a vocabulary too wide for one block is summed over its chunks."""
    if chunks == 1:
        return e.new((rows,), "float32", "logsumexp")
    by_chunk = e.new((rows, chunks), "float32", "logsumexp by chunk")
    result = e.new((rows,), "float32", "logsumexp")
    highest = e.new((rows, 1), "float32", "amax")
    exponents = e.new((rows, chunks), "float32", "exp")
    del exponents, highest, by_chunk
    return result


def fused_linear_loss(e: Engine, hidden: Tensor, weight: Parameter) -> Tensor:
    """Liger's loss with a float32 copy of each chunk of logits, and without the last position of every sequence.

    Everything but the copy is in one 16-bit dtype. What a chunk leaves in local variables lives until the next chunk
    replaces it.

    References:
        fused_ops/liger_ce/fused_linear_cross_entropy_loss.py, ``lce_forward``.
    """
    batch, seq, width = hidden.shape
    dtype, w = hidden.dtype, weight.tensor
    shape, rows, vocab = (batch, seq - 1, width), batch * (seq - 1), int(w.shape[0])
    cut = e.view("slice", hidden, shape, lambda s, g: [e.new((batch, seq, width), dtype, "slice backward")])
    shifted = ops.clone(e, cut)
    labels = e.new((rows,), "int64", "shifted labels")
    for_x, for_w = shifted.node is not None, w.node is not None
    node = e.node("fused_linear_cross_entropy", [shifted, w], (), lambda s, g: [s[0], s[1] if for_w else None])
    e.work.multiplied(weight.name, dtype, shape, vocab)
    if node is not None:
        e.work.differentiated(weight.name, dtype, shape, vocab, for_input=for_x, for_weight=for_w)
    grad_weight = e.new(w.shape, w.dtype, "grad_weight") if for_w and node is not None else None
    grad_input = Tensor(Storage(e.tape, shape, dtype, "grad_input"), shape, dtype)
    loss_1d = e.new((rows,), "float32", "loss per token")
    n_items = e.new((), "int64", "sum of the mask")
    step = next_power_of_2(-(-rows // -(-vocab // int(width))))
    for n in ends(rows, step):
        chunk = e.new((n, vocab), dtype, "logits of a chunk")
        chunk = e.new((n, vocab), "float32", "logits of a chunk, float32")
        chunk = e.new((n, vocab), dtype, "gradient of a chunk")
        scaled = e.new((n, vocab), dtype, "gradient of a chunk, scaled")
        product = e.new((n, width), dtype, "grad_input of a chunk")
        del product
    del chunk, scaled
    loss = Tensor(Storage(e.tape, (), "float32", "loss"), (), "float32", node)
    if node is not None:
        e.save(node, [grad_input, *([grad_weight] if grad_weight is not None else [])])
    del loss_1d, n_items, labels
    return loss
