"""From the last hidden state to the loss, chunk by chunk: TRL's log-probabilities, Liger's fused linear loss.

Loops over chunks of tokens run their first two and their last chunk only: those between repeat the second, byte for
byte.
"""

from __future__ import annotations

from collections.abc import Iterator

from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients, Parameter
from vramcalc.shadow.engine.ops import Saved
from vramcalc.shadow.engine.sizes import Size, minimum
from vramcalc.shadow.engine.tape import Shape, Storage, Tensor
from vramcalc.shadow.training.cross_entropy import shifted_labels

TRL_TOKENS, TRL_VOCABULARY = 4096, 32768
"""Tile of TRL's chunked log-probabilities (trl 1.16 kernels/chunked_logprob.py, trainer/utils.py)."""


def ends(n: Size, chunk: int) -> Iterator[Size]:
    """Lengths of the first two and, if there are several, the last chunk of ``n``."""
    if n <= chunk:
        yield n
        return
    yield chunk
    if n >= 2 * chunk:
        yield chunk
    yield (n - 1) % chunk + 1


# -- Liger -----------------------------------------------------------------------------------------------------------


def fused_linear_loss(e: Engine, hidden: Tensor, weight: Parameter, compute_capability: tuple[int, int]) -> Tensor:
    """``LigerFusedLinearCrossEntropyFunction``: gradients are made in the forward pass, chunk by chunk of tokens.

    References:
        liger-kernel 0.8.5 ops/fused_linear_cross_entropy.py.
    """
    batch, seq, width = hidden.shape
    padded_labels, labels = shifted_labels(e, batch, seq)
    tokens, w = batch * seq, weight.tensor
    vocab = int(w.shape[0])
    for_w = w.node is not None
    node = e.node("fused_linear_cross_entropy", [hidden, w], (), lambda s, g: [s[0], s[1] if for_w else None])
    grad_input = Tensor(Storage(e.tape, hidden.shape, hidden.dtype, "grad_input"), hidden.shape, hidden.dtype)
    grad_weight = e.new(w.shape, w.dtype, "grad_weight") if for_w and node is not None else None
    loss_1d = e.new((tokens,), "float32", "loss per token")
    target_mask = e.new((tokens,), "bool", "target mask")
    step = next_power_of_2(-(-tokens // -(-vocab // int(width))))
    chunk = minimum(step, tokens)
    low = e.autocast or hidden.dtype
    e.work.multiplied(weight.name, low, hidden.shape, vocab)
    for_x = hidden.node is not None
    if node is not None:
        e.work.differentiated(weight.name, low, hidden.shape, vocab, for_input=for_x, for_weight=for_w)
    direct = hidden.dtype == w.dtype and e.autocast in (None, hidden.dtype)
    logits = e.new((chunk, vocab), hidden.dtype, "logits of a chunk") if direct else None
    for rows in ends(tokens, step):
        chunk_logits = logits if direct else _liger_products(e, rows, hidden.dtype, weight)
        if grad_weight is not None:
            _liger_weight_gradient(e, rows, hidden.dtype, w, compute_capability)
        del chunk_logits
    del logits
    loss = Tensor(Storage(e.tape, (), "float32", "loss"), (), "float32", node)
    if node is not None:
        e.save(node, [grad_input, *([grad_weight] if grad_weight is not None else [])])
    del loss_1d, target_mask, labels, padded_labels
    return loss


def _liger_products(e: Engine, rows: Size, dtype: str, weight: Parameter) -> Tensor:
    """Logits of one chunk and its input gradient, where autocast casts the operands of every product.

    The first product takes a transposed view of the weight, whose cast autocast does not keep.
    """
    (vocab, width), low = weight.tensor.shape, e.autocast or dtype
    w_copy: Tensor | None = e.new((width, vocab), low, "autocast copy") if weight.tensor.dtype != low else None
    x_copy = e.new((rows, width), low, "autocast copy") if dtype != low else None
    logits = e.new((rows, vocab), low, "logits of a chunk")
    del w_copy, x_copy
    w_copy = ops.cast_weight(e, weight)
    product = e.new((rows, width), low, "grad_input of a chunk")
    del w_copy, product
    return logits


def _liger_weight_gradient(e: Engine, rows: Size, dtype: str, w: Tensor, compute_capability: tuple[int, int]) -> None:
    """One chunk's share: added in place from compute capability 8.0 on, by way of a float32 copy elsewhere."""
    low = e.autocast or dtype
    x_copy = e.new((rows, w.shape[1]), low, "cast of a chunk") if dtype != low else None
    if compute_capability >= (8, 0) and low != "float32" and w.dtype in ("float32", low):
        return
    product = e.new(w.shape, low, "grad_weight of a chunk")
    del x_copy
    raised = e.new(w.shape, "float32", "grad_weight of a chunk, float32") if low != "float32" else None
    del product, raised


def next_power_of_2(n: Size) -> int:
    """The least power of two that is no smaller."""
    power = 1
    while power < n:
        power *= 2
    return power


# -- TRL -------------------------------------------------------------------------------------------------------------


def chunked_outputs(e: Engine, hidden: Tensor, weight: Parameter) -> list[Tensor]:
    """TRL's fused LM head: log-probability, entropy and top-1 per token, without the logits; and its own loss.

    Every label counts; the last position has none.

    References:
        trl 1.16 trainer/utils.py, ``add_fused_lm_head``, and kernels/chunked_logprob.py.
    """
    batch, seq, width = shape = hidden.shape
    dtype, shorter = hidden.dtype, (batch, seq - 1, width)
    tokens = batch * (seq - 1)
    cut = e.view("slice", hidden, shorter, lambda s, g: [e.new(shape, dtype, "slice backward")])
    mask = e.new((batch, seq - 1), "bool", "label mask")
    indices = e.new((tokens, 2), "int64", "nonzero")

    def put(_saved: Saved, g: Tensor) -> Gradients:
        result = e.new(shorter, dtype, "index backward")
        positions = e.new((tokens, 2), "int64", "nonzero")
        del positions
        return [result]

    rows = e.apply("index", [cut], (tokens, width), dtype, [mask], put)
    del indices
    target_indices = e.new((tokens, 2), "int64", "nonzero")
    targets = e.new((tokens,), "int64", "labels")
    del target_indices
    per_token = _chunked_log_probs(e, rows, weight, targets)
    del rows, cut
    outputs = [_scattered(e, x, mask, (batch, seq - 1)) for x in per_token]
    del per_token
    total = sum_of(e, outputs[0])
    negative = e.apply("neg", [total], (), "float32", (), lambda s, g: [e.new((), "float32", "neg backward")])
    del total
    return [*outputs, divided(e, negative, _count(e))]


def sft_loss(e: Engine, log_probs: Tensor) -> Tensor:
    """``SFTTrainer.compute_loss`` from the log-probabilities of the fused head.

    References:
        trl 1.16 trainer/sft_trainer.py.
    """
    shape = log_probs.shape
    per_token = e.apply(
        "neg", [log_probs], shape, "float32", (), lambda s, g: [e.new(shape, "float32", "neg backward")]
    )
    num_tokens = e.new((), "int64", "sum of the mask")
    total = sum_of(e, per_token)
    clamped = e.new((), "int64", "clamp")
    loss = divided(e, total, clamped)
    del total, per_token, num_tokens, clamped
    return loss


def _count(e: Engine) -> Tensor:
    """``mask.sum().clamp(min=1)``."""
    number = e.new((), "int64", "sum of the mask")
    clamped = e.new((), "int64", "clamp")
    del number
    return clamped


def sum_of(e: Engine, x: Tensor) -> Tensor:
    """``x.sum()`` in float32, whose gradient is expanded."""
    shape = x.shape
    return e.apply("sum", [x], (), "float32", (), lambda s, g: [Tensor(g.storage, shape, g.dtype, None, True)])


def divided(e: Engine, x: Tensor, by: Tensor) -> Tensor:
    """``x / by`` of scalars."""
    return e.apply("div", [x], (), "float32", [by], lambda s, g: [e.new((), "float32", "div backward")])


def _scattered(e: Engine, x: Tensor, mask: Tensor, shape: Shape) -> Tensor:
    """``x.new_zeros(shape).masked_scatter(mask, x)``."""
    zeros = e.new(shape, x.dtype, "zeros")
    own = x.shape
    result = e.apply(
        "masked_scatter", [x], shape, x.dtype, [mask], lambda s, g: [e.new(own, "float32", "masked_select")]
    )
    del zeros
    return result


def _chunked_log_probs(e: Engine, hidden: Tensor, weight: Parameter, targets: Tensor) -> list[Tensor]:
    """``ChunkedLogProbFunction``: a tile of logits at a time; statistics and summed gradients in float32."""
    tokens, width = h_shape = hidden.shape
    h_dtype, w = hidden.dtype, weight.tensor
    w_shape, w_dtype, for_h, for_w = w.shape, w.dtype, hidden.node is not None, w.node is not None
    compute, owner = e.autocast or h_dtype, weight.name

    def cast(shape: tuple[Size, ...], source: str) -> Tensor | None:
        return e.new(shape, compute, "cast of a tile") if source != compute else None

    def vocabulary() -> list[int]:
        vocab = int(w_shape[0])
        return [min(TRL_VOCABULARY, vocab - start) for start in range(0, vocab, TRL_VOCABULARY)]

    def backward(_saved: list[Tensor], g: Tensor) -> Gradients:
        e.work.multiplied(owner, compute, h_shape, w_shape[0], "recomputation")
        e.work.differentiated(owner, compute, h_shape, w_shape[0], for_input=for_h, for_weight=for_w)
        grad_hidden = e.new(h_shape, "float32", "grad_hidden") if for_h else None
        grad_weight = e.new(w_shape, "float32", "grad_weight") if for_w else None
        tile = e.new((minimum(tokens, TRL_TOKENS), TRL_VOCABULARY), compute, "tile of logits")
        w_chunk = h_chunk = None
        for n in ends(tokens, TRL_TOKENS):
            h_chunk = cast((n, width), h_dtype)
            for columns in vocabulary():
                w_chunk = cast((columns, width), w_dtype)
        grads: Gradients = [_lowered(e, grad_hidden, h_dtype), _lowered(e, grad_weight, w_dtype)]
        del grad_hidden, grad_weight, h_chunk, w_chunk, tile
        return grads

    node = e.node("chunked_log_probs", [hidden, w], (), backward)
    e.work.multiplied(owner, compute, h_shape, w_shape[0])
    statistics = [e.new((tokens,), "float32", f"statistic {i}") for i in range(7)]
    tile = e.new((minimum(tokens, TRL_TOKENS), TRL_VOCABULARY), compute, "tile of logits")
    h_chunk = None
    for n in ends(tokens, TRL_TOKENS):
        h_chunk = cast((n, width), h_dtype)
        for columns in vocabulary():
            w_chunk = cast((columns, width), w_dtype)
            del w_chunk
    log = e.new((tokens,), "float32", "log")
    log_z = e.new((tokens,), "float32", "log_z")
    del log
    y = Tensor(Storage(e.tape, (tokens,), "float32", "log_probs"), (tokens,), "float32", node)
    ratio = e.new((tokens,), "float32", "div")
    entropy = e.new((tokens,), "float32", "entropy")
    del ratio
    comparisons = [e.new((tokens,), "bool", what) for what in ("ge", "gt")]
    is_top1 = e.new((tokens,), "bool", "top-1")
    del comparisons
    if node is not None:
        e.save(node, [hidden, w, targets, log_z, entropy])
    del statistics, h_chunk, tile
    return [y, entropy, is_top1]


def _lowered(e: Engine, x: Tensor | None, dtype: str) -> Tensor | None:
    return x if x is None or x.dtype == dtype else e.new(x.shape, dtype, "to")
