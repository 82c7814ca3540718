"""Kernels of the fused-ops-and-kernels plugin of foundation-model-stack, as they allocate.

Norms and rotary positions write their gradients over what they are given; LoRA over four-bit layers is one autograd
function that dequantises by itself and writes the gradient of its input over the input.

References:
    foundation-model-stack/fms-acceleration plugins/fused-ops-and-kernels (fms_acceleration_foak 0.4): kernels/unsloth
    and fused_ops/unsloth_lora, which are Unsloth's of April 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients, Node, Parameter
from vramcalc.shadow.engine.modules import RMSNorm
from vramcalc.shadow.engine.tape import Shape, Storage, Tensor
from vramcalc.shadow.quantization.bitsandbytes import BLOCK, Packed4bit

Saved = list[Tensor]


class FusedRMSNorm(RMSNorm):
    """``fast_rms_layernorm``: keeps its input, and writes its gradient over the one that comes in.

    Its weight gets no gradient, whether it trains or not.

    References:
        kernels/unsloth/rms_layernorm.py.
    """

    def forward(self, *args: Tensor) -> Tensor:
        """Normalise the last dimension, in the input's dtype."""
        e, x = self.engine, args[0]
        shape, dtype = x.shape, x.dtype

        def backward(_saved: Saved, g: Tensor) -> Gradients:
            e.work.writes_over(g)
            return [Tensor(g.storage, shape, dtype, None, True)]

        node = e.node("fast_rms_layernorm", [x], (), backward)
        y = Tensor(Storage(e.tape, shape, dtype, "fast_rms_layernorm"), shape, dtype, node)
        inverse = e.new(shape[:-1], "float32", "inverse variance")
        if node is not None:
            e.save(node, [x, self.weight.tensor, inverse])
        return y


def rotary(e: Engine, x: Tensor, cos: Tensor, sin: Tensor, *, head_major_grad: bool) -> Tensor:
    """``fast_rope_embedding`` on ``(batch, heads, seq, head_dim)``: in place, forward and backward.

    A gradient that does not lie token by token is copied first.

    References:
        kernels/unsloth/rope_embedding.py.
    """
    shape, dtype = x.shape, x.dtype
    copies = head_major_grad and shape[1] != 1 and shape[2] != 1

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        if copies:
            return [e.new(shape, dtype, "fast_rope_embedding backward", view=True)]
        e.work.writes_over(g)
        return [Tensor(g.storage, shape, dtype, None, True)]

    e.work.begins("fast_rope_embedding", [x])
    e.work.writes_over(x)
    y = e.view("fast_rope_embedding", x, shape, backward)
    if y.node is not None:
        y.node.keep = (cos.storage, sin.storage)
    return y


# -- LoRA over four-bit layers -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adapted:
    """One four-bit projection and its adapter, as ``get_lora_parameters`` reads them."""

    name: str
    packed: Packed4bit
    a: Parameter
    b: Parameter
    drops: bool


def lora_products(e: Engine, x: Tensor, projections: Sequence[Adapted], name: str, *, over_input: bool) -> list[Tensor]:
    """``LoRA_QKV`` or ``LoRA_W``: several projections of one input, each with its adapter, as one function.

    Args:
        e: the engine.
        x: ``(batch, seq, d_in)`` in the dtype that everything is computed in.
        projections: with equal ``d_in``.
        name: of the function.
        over_input: the gradient of the input is written over the input.

    Returns:
        One result per projection.

    References:
        fused_ops/unsloth_lora/bnb/fast_lora.py and fused_ops/unsloth_lora/utils.py, ``matmul_lora``.
    """
    shape, dtype = x.shape, x.dtype
    waiting: list[Tensor] = []
    weights = [p.tensor for q in projections for p in (q.a, q.b)]

    def backward(saved: Saved, g: Tensor) -> Gradients:
        gradients: Gradients = [t for q in projections for t in _adapter_gradients(e, shape, dtype, q)]
        grad_x = Tensor(saved[0].storage, shape, dtype, None, True) if over_input else None
        for index, q in enumerate(projections):
            grad_x = _input_gradient(e, shape, dtype, q, grad_x, first=index == 0)
        waiting.clear()
        return [grad_x, *gradients]

    node = e.node(name, [x, *weights], (), backward)
    before, e.grad_enabled = e.grad_enabled, False
    results, dropped = [], []
    for q in projections:
        y, x_dropped = _matmul_lora(e, x, q)
        results.append(y)
        dropped.append(x_dropped)
        del y, x_dropped
    e.grad_enabled = before
    if node is None:
        return results
    e.save(node, [x, *weights, *dropped])
    return _outputs(e, node, results, waiting)


def _outputs(e: Engine, node: Node, results: list[Tensor], waiting: list[Tensor]) -> list[Tensor]:
    """The results of one node: gradients of all but the first wait for it, as in torch's input buffer."""

    def first(_saved: Saved, g: Tensor) -> Gradients:
        return [g]

    def other(_saved: Saved, g: Tensor) -> Gradients:
        waiting.append(g)
        return [None]

    outputs = []
    for index, y in enumerate(results):
        handle = Tensor(y.storage, y.shape, y.dtype, node)
        outputs.append(e.view("output", handle, y.shape, other if index else first))
    return outputs


def _dequantize(e: Engine, packed: Packed4bit) -> Tensor:
    """``fast_dequantize``: the weight in the dtype it was loaded in, by way of its scales in float32."""
    w = e.new((packed.d_out, packed.d_in), packed.dtype, "dequantised weight")
    scales = e.new((packed.d_out * packed.d_in // BLOCK,), "float32", "dequantised scales")
    del scales
    return w


def _cast(e: Engine, p: Parameter, dtype: str) -> Tensor | None:
    """``p.to(dtype)``, or autocast's copy of a view, which is not kept."""
    return e.new(p.tensor.shape, dtype, "cast adapter") if p.tensor.dtype != dtype else None


def _matmul_lora(e: Engine, x: Tensor, q: Adapted) -> tuple[Tensor, Tensor]:
    """``matmul_lora``: the result, and the input after dropout."""
    shape, dtype, rank = x.shape, x.dtype, q.a.tensor.shape[0]
    tokens = shape[:-1]
    w = _dequantize(e, q.packed)
    e.work.multiplied(q.name, dtype, shape, q.packed.d_out)
    out = e.new((*tokens, q.packed.d_out), dtype, "matmul_lora")
    del w
    if q.drops:
        dropped = e.new(shape, dtype, "dropout")
        mask = e.new(shape, "bool", "dropout mask")
        del mask
    else:
        dropped = x
    a = _cast(e, q.a, dtype)
    e.work.multiplied(q.a.name, dtype, shape, rank)
    xa = e.new((*tokens, rank), dtype, "lora_A product")
    del a
    b = _cast(e, q.b, dtype)
    scaled = e.new(q.b.tensor.shape, dtype, "scaled lora_B")
    del b
    e.work.multiplied(q.b.name, dtype, (*tokens, rank), q.packed.d_out)
    update = e.new((*tokens, q.packed.d_out), dtype, "lora_B product")
    del xa, scaled, update
    return out, dropped


def _adapter_gradients(e: Engine, shape: Shape, dtype: str, q: Adapted) -> list[Tensor]:
    """``d_A`` and ``d_B``, scaled in place; both come out transposed.

    What either is multiplied with is made again: the gradient past B is needed for the input, too.
    """
    rank, tokens, d_out = q.a.tensor.shape[0], shape[:-1], q.packed.d_out
    e.work.multiplied(q.b.name, dtype, (*tokens, rank), d_out, "recomputation")
    e.work.multiplied(q.a.name, dtype, shape, rank, "weight gradients")
    e.work.multiplied(q.a.name, dtype, shape, rank, "recomputation")
    e.work.multiplied(q.b.name, dtype, (*tokens, rank), d_out, "weight gradients")
    b = _cast(e, q.b, dtype)
    dyb = e.new((*tokens, rank), dtype, "dY @ B")
    del b
    d_a = e.new(q.a.tensor.shape, dtype, "d_A")
    del dyb
    a = _cast(e, q.a, dtype)
    ax = e.new((rank, *tokens), dtype, "A @ X")
    del a
    d_b = e.new(q.b.tensor.shape, dtype, "d_B")
    del ax
    return [d_a, d_b]


def _input_gradient(e: Engine, shape: Shape, dtype: str, q: Adapted, total: Tensor | None, *, first: bool) -> Tensor:
    """One projection's share of ``dX``: through its weight, then through its adapter where dropout let it pass.

    The first share is written into ``total`` where that is the input itself, or makes the total.
    """
    rank = q.a.tensor.shape[0]
    e.work.multiplied(q.name, dtype, shape, q.packed.d_out, "input gradients")
    e.work.multiplied(q.b.name, dtype, (*shape[:-1], rank), q.packed.d_out, "input gradients")
    e.work.multiplied(q.a.name, dtype, shape, rank, "input gradients")
    w = _dequantize(e, q.packed)
    if total is None:
        total = e.new(shape, dtype, "dX", view=True)
    elif not first:
        share = e.new(shape, dtype, "dX through a weight")
        del share
    del w
    passed = e.new(shape, "bool", "input after dropout != 0")
    b = _cast(e, q.b, dtype)
    dyb = e.new((*shape[:-1], rank), dtype, "dY @ B")
    del b
    a = _cast(e, q.a, dtype)
    scaled = e.new(q.a.tensor.shape, dtype, "scaled lora_A")
    del a
    share = e.new(shape, dtype, "dX through an adapter")
    del dyb, scaled
    masked = e.new(shape, dtype, "dX through an adapter, where it passed")
    del share, passed, masked
    return total
