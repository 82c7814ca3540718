"""Operators of a mixture of experts: choosing experts, gathering their tokens, adding the results up.

How many tokens an expert gets depends on the data. Here a router is balanced: shares differ by one token at most.
"""

from __future__ import annotations

from vramcalc.shadow.engine import kernels, ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients, Parameter
from vramcalc.shadow.engine.ops import Saved, in_kernel
from vramcalc.shadow.engine.sizes import Size, product
from vramcalc.shadow.engine.tape import Storage, Tensor


def balanced_share(pairs: Size, experts: int, expert: int) -> Size:
    """Pairs of a token and an expert that one of the experts gets from a balanced router.

    Args:
        pairs: tokens times experts per token.
        experts: experts of the layer.
        expert: which of them, from 0.
    """
    return pairs * (expert + 1) // experts - pairs * expert // experts


def softmax(e: Engine, x: Tensor) -> Tensor:
    """``softmax(x, dim=-1)`` in float32 of ``(tokens, experts)`` scores."""
    shape, dtype = x.shape, x.dtype
    converted = ops.to(e, x, "float32") if dtype != "float16" else x

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        buffers = in_kernel(e, kernels.softmax_backward(product(shape)))
        result = e.new(shape, dtype if dtype == "float16" else "float32", "softmax backward")
        del buffers
        return [result]

    return e.apply("softmax", [converted], shape, "float32", (), backward, saves_result=True)


def topk(e: Engine, x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``torch.topk`` of the last dimension: values, and int64 indices that the backward pass scatters by."""
    shape, dtype = x.shape, x.dtype
    node = e.node("topk", [x], (), lambda s, g: [e.new(shape, dtype, "topk backward")])
    small = (shape[0], k)
    values = Tensor(Storage(e.tape, small, dtype, "topk"), small, dtype, node)
    indices = e.new(small, "int64", "topk indices")
    if node is not None:
        e.save(node, [indices])
    return values, indices


def normalise(e: Engine, x: Tensor) -> Tensor:
    """``x /= x.sum(dim=-1, keepdim=True)``: in place, so the gradient of the divisor needs a copy."""
    shape, dtype = x.shape, x.dtype
    total_shape = (shape[0], 1)

    def expand(_saved: Saved, g: Tensor) -> Gradients:
        return [Tensor(g.storage, shape, dtype, None, True)]

    total = e.apply("sum", [x], total_shape, dtype, (), expand)
    original = [ops.clone(e, x)] if x.node is not None else []

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        grad_x = e.new(shape, dtype, "div backward")
        negative = e.new(shape, dtype, "neg")
        quotient = e.new(shape, dtype, "div")
        again = e.new(shape, dtype, "div")
        del quotient
        grad_total = e.new(shape, dtype, "mul")
        del again, negative
        return [grad_x, grad_total]

    node = e.node("div", [x, total], [*original, total], backward)
    if node is not None:
        node.summed = {1: total_shape}
    e.work.writes_over(x)
    return Tensor(x.storage, shape, dtype, node)


def one_hot(e: Engine, indices: Tensor, classes: int) -> Tensor:
    """``one_hot(indices, classes)``: int64."""
    return e.new((*indices.shape, classes), "int64", "one_hot")


def where(e: Engine, n: Size) -> Tensor:
    """``torch.where(mask)`` of a two-dimensional mask: both columns of indices lie in one storage."""
    return e.new((n, 2), "int64", "nonzero")


def listed(e: Engine, n: Size, columns: int) -> Tensor:
    """Lists of numbers as indices on the GPU, one tensor for each column."""
    for _ in range(columns - 1):
        e.new((n,), "int64", "list of tokens")
    return e.new((n,), "int64", "list of tokens")


def gather(e: Engine, x: Tensor, index: Tensor, n: Size) -> Tensor:
    """Rows of ``(tokens, width)`` by a tensor of indices: ``(n, width)``; ``(n, 1)`` of a matrix of weights.

    The gradient is a tensor of zeros as large as ``x``, to which rows are added.
    """
    shape, dtype = x.shape, x.dtype
    return e.apply("index", [x], (n, shape[-1]), dtype, [index], lambda s, g: [e.new(shape, dtype, "index backward")])


def pick(e: Engine, x: Tensor, index: Tensor, n: Size) -> Tensor:
    """Single elements of a matrix by row and column, as ``(n, 1)``."""
    shape, dtype = x.shape, x.dtype
    return e.apply("index", [x], (n, 1), dtype, [index], lambda s, g: [e.new(shape, dtype, "index backward")])


def index_add_(e: Engine, x: Tensor, index: Tensor, source: Tensor) -> Tensor:
    """``x.index_add_(0, index, source)`` in place; autograd keeps the index and the source."""
    shape, dtype = source.shape, source.dtype
    for_source = source.node is not None

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        return [g, e.new(shape, dtype, "index_select") if for_source else None]

    node = e.node("index_add", [x, source], [index, source], backward)
    e.work.writes_over(source)
    return Tensor(x.storage, x.shape, x.dtype, node)


# -- all experts in one tensor -----------------------------------------------------------------------------------------


def grouped_mm(e: Engine, x: Tensor, weight: Parameter, offsets: Tensor) -> Tensor:
    """``grouped_mm`` of sorted rows with ``(experts, out, in)`` transposed; autocast passes it by.

    References:
        transformers integrations/moe.py, ``_grouped_mm``.
    """
    w = weight.tensor
    x = ops.to(e, x, w.dtype)
    x_shape, w_shape, dtype = x.shape, w.shape, x.dtype
    for_x, for_w = x.node is not None, w.node is not None

    owner, d_out = weight.name, w_shape[1]

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        e.work.differentiated(owner, dtype, x_shape, d_out, for_input=for_x, for_weight=for_w)
        grad_w = e.new(w_shape, dtype, "grouped_mm backward", view=True) if for_w else None
        return [e.new(x_shape, dtype, "grouped_mm backward") if for_x else None, grad_w]

    saved = [*([x] if for_w else []), *([w] if for_x else []), offsets]
    y = e.apply("grouped_mm", [x, w], (x_shape[0], d_out), dtype, saved, backward)
    e.work.multiplied(owner, dtype, x_shape, d_out)
    return y


def chunk(e: Engine, x: Tensor) -> tuple[Tensor, Tensor]:
    """``x.chunk(2, dim=-1)``: two views of one node, which joins their gradients once both are there."""
    rows, width = shape = x.shape
    half, dtype = (rows, width // 2), x.dtype
    waiting: list[Tensor] = []

    def first(_saved: Saved, g: Tensor) -> Gradients:
        result = e.new(shape, dtype, "split backward")
        waiting.clear()
        return [result]

    def second(_saved: Saved, g: Tensor) -> Gradients:
        waiting.append(g)
        return [None]

    return e.view("split", x, half, first), e.view("split", x, half, second)


def sum_pairs(e: Engine, x: Tensor, tokens: Size) -> Tensor:
    """``x.view(tokens, k, width).sum(dim=1)``, whose gradient is copied to every pair."""
    shape, dtype = x.shape, x.dtype
    return e.apply("sum", [x], (tokens, shape[1]), dtype, (), lambda s, g: [e.new(shape, dtype, "view backward")])
