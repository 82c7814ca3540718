"""Operators as torch runs them: what each allocates, what its node saves, what its backward allocates.

The order of allocations in a backward closure is that of the generated code in
torch/csrc/autograd/generated/Functions.cpp, where the last input's gradient often comes first. A closure holds sizes,
never tensors: those are what ``saved`` is for.
"""

from __future__ import annotations

from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients, Parameter
from vramcalc.shadow.engine.kernels import Buffers, embedding_backward
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Shape, Storage, Tensor, promote

Saved = list[Tensor]


def in_kernel(e: Engine, buffers: Buffers) -> list[Storage]:
    """Allocate what a kernel takes for itself; the buffers live as long as the list."""
    return [Storage(e.tape, (n,), "uint8", what, "workspace") for n, what in buffers]


# -- elementwise ---------------------------------------------------------------------------------------------------


def to(e: Engine, x: Tensor, dtype: str) -> Tensor:
    """``x.to(dtype)``: nothing when it has that dtype already."""
    source, shape = x.dtype, x.shape
    if source == dtype:
        return x
    return e.apply("to", [x], shape, dtype, (), lambda s, g: [e.new(shape, source, "to backward")])


def _both(_saved: Saved, gradient: Tensor) -> Gradients:
    return [gradient, gradient]


def _same(_saved: Saved, gradient: Tensor) -> Gradients:
    return [gradient]


def add(e: Engine, a: Tensor, b: Tensor) -> Tensor:
    """``a + b`` of equal shapes."""
    return e.apply("add", [a, b], a.shape, promote(a.dtype, b.dtype), (), _both)


def add_in_place(e: Engine, a: Tensor, b: Tensor, *, of_view: bool = False) -> Tensor:
    """``a += b``, in the dtype of ``a``.

    Args:
        e: the engine.
        a: what is added to.
        b: what is added.
        of_view: ``a`` is the view that a linear layer with a bias returns, whose gradient is copied twice.

    References:
        pytorch torch/csrc/autograd/functions/tensor.cpp, ``CopySlices::apply_impl``.
    """
    shape, dtype, for_a = a.shape, a.dtype, a.node is not None

    def through_slice(_saved: Saved, _gradient: Tensor) -> Gradients:
        result, own = e.new(shape, dtype, "new_empty_strided"), e.new(shape, dtype, "clone")
        return [result if for_a else None, own]

    node = e.node("add", [a, b], (), through_slice if of_view else _both)
    e.work.writes_over(a)
    return Tensor(a.storage, a.shape, a.dtype, node)


def add_constant(e: Engine, x: Tensor, op: str = "add", dtype: str | None = None) -> Tensor:
    """``x`` plus a number, or a tensor of ``dtype`` that needs no gradient; the engine casts the gradient back."""
    shape, source = x.shape, x.dtype
    result = promote(source, dtype) if dtype else source

    def cast(_saved: Saved, g: Tensor) -> Gradients:
        return [e.new(shape, source, "add backward")]

    return e.apply("add", [x], shape, result, (), _same if result == source else cast, op=op)


def mul_scalar(e: Engine, x: Tensor) -> Tensor:
    """``x * number``, or ``x / number``."""
    shape, dtype = x.shape, x.dtype
    return e.apply("mul", [x], shape, dtype, (), lambda s, g: [e.new(shape, g.dtype, "mul backward")])


def neg(e: Engine, x: Tensor) -> Tensor:
    """``-x``."""
    shape, dtype = x.shape, x.dtype
    return e.apply("neg", [x], shape, dtype, (), lambda s, g: [e.new(shape, dtype, "neg backward")])


def clone(e: Engine, x: Tensor) -> Tensor:
    """``x.clone()``, or the copy that ``contiguous`` makes."""
    return e.apply("clone", [x], x.shape, x.dtype, (), _same)


def mul(e: Engine, a: Tensor, b: Tensor) -> Tensor:
    """``a * b``; ``b`` may be broadcast, and then needs a gradient only in the forms ``(..., 1)`` and ``(n,)``."""
    shape, dtype, b_shape = a.shape, promote(a.dtype, b.dtype), b.shape
    for_a, for_b = a.node is not None, b.node is not None
    spread = for_b and (len(b_shape) < len(shape) or (b_shape[-1] is not shape[-1] and b_shape[-1] == 1))
    summed = {1: b_shape} if spread else None

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        grad_b = e.new(shape, dtype, "mul backward") if for_b else None
        grad_a = e.new(shape, dtype, "mul backward") if for_a else None
        return [grad_a, grad_b]

    saved = ([b] if for_a else []) + ([a] if for_b else [])
    return e.apply("mul", [a, b], shape, dtype, saved, backward, summed=summed)


def mul_columns(e: Engine, w: Tensor, x: Tensor) -> Tensor:
    """``w * x`` with a factor for each of the last dimension."""
    shape, dtype = x.shape, promote(w.dtype, x.dtype)
    for_w, for_x = w.node is not None, x.node is not None

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        grad_x = e.new(shape, dtype, "mul backward") if for_x else None
        grad_w = e.new(shape, dtype, "mul backward") if for_w else None
        return [grad_w, grad_x]

    saved = ([x] if for_w else []) + ([w] if for_x else [])
    return e.apply("mul", [w, x], shape, dtype, saved, backward, summed={0: w.shape})


def div(e: Engine, a: Tensor, b: Tensor) -> Tensor:
    """``a / b`` of equal shapes, where ``b`` needs no gradient."""
    shape, dtype = a.shape, promote(a.dtype, b.dtype)
    return e.apply("div", [a], shape, dtype, [b], lambda s, g: [e.new(shape, dtype, "div backward")])


def dropout(e: Engine, x: Tensor) -> Tensor:
    """``nn.functional.dropout`` in training: CUDA's fused kernel keeps a mask of one byte an element."""
    shape, dtype = x.shape, x.dtype
    node = e.node("dropout", [x], (), lambda s, g: [e.new(shape, dtype, "dropout backward")])
    y = Tensor(Storage(e.tape, shape, dtype, "dropout"), shape, dtype, node)
    mask = e.new(shape, "bool", "dropout mask")
    if node is not None:
        e.save(node, [mask])
    return y


# -- products --------------------------------------------------------------------------------------------------------


def cast_weight(e: Engine, parameter: Parameter | Tensor) -> Tensor:
    """A weight as autocast's product sees it: a cast copy, kept while the context lasts if it trains in float32."""
    if isinstance(parameter, Tensor):
        return parameter if e.autocast is None else to(e, parameter, e.autocast)
    w = parameter.tensor
    if e.autocast is None or w.dtype == e.autocast:
        return w
    cached = e.casts.get(parameter)
    if cached is None:
        cached = to(e, w, e.autocast)
        if w.node is not None and w.dtype == "float32":
            e.casts[parameter] = cached
    return cached


def linear(
    e: Engine, x: Tensor, weight: Parameter | Tensor, bias: Parameter | None = None, *, owner: str = ""
) -> Tensor:
    """``nn.functional.linear`` on ``(..., in)``; autocast casts its arguments from right to left.

    Whose product it is goes by the parameter's name, ``owner``, or the module that runs.
    """
    b = cast_weight(e, bias) if bias is not None else None
    w = cast_weight(e, weight)
    if e.autocast is not None:
        x = to(e, x, e.autocast)
    x_shape, w_shape, dtype = x.shape, w.shape, x.dtype
    for_x, for_w, folds = x.node is not None, w.node is not None, len(x_shape) > 2
    inputs = [x, w] if b is None else [x, w, b]
    owner, d_out = owner or (weight.name if isinstance(weight, Parameter) else e.tape.module), w_shape[0]
    saved = ([x] if for_w else []) + ([w] if for_x else [])

    def product(_saved: Saved, g: Tensor) -> Gradients:
        e.work.differentiated(owner, dtype, x_shape, d_out, for_input=for_x, for_weight=for_w)
        grad_w = e.new(w_shape, dtype, "mm backward", view=True) if for_w else None
        return [e.new(x_shape, dtype, "mm backward", view=folds) if for_x else None, grad_w]

    def product_and_sum(_saved: Saved, g: Tensor) -> Gradients:
        e.work.differentiated(owner, dtype, x_shape, d_out, for_input=for_x, for_weight=for_w)
        grad_x = e.new(x_shape, dtype, "mm backward", view=folds) if for_x else None
        return [grad_x, e.new(w_shape, dtype, "mm backward", view=True) if for_w else None, g]

    backward, summed = (product, None) if b is None else (product_and_sum, {2: b.shape})
    y = e.apply("mm", inputs, (*x_shape[:-1], d_out), dtype, saved, backward, summed=summed)
    e.work.multiplied(owner, dtype, x_shape, d_out)
    return y


# -- heads and positions ---------------------------------------------------------------------------------------------


def reshape(e: Engine, x: Tensor, shape: Shape) -> Tensor:
    """``x.view(shape)`` of a tensor that is one block in memory."""
    x_shape = x.shape

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        return [Tensor(g.storage, x_shape, g.dtype, None, True)]

    return e.view("view", x, shape, backward)


def split_heads(e: Engine, x: Tensor, heads: int, head_dim: int, *, head_major_grad: bool) -> Tensor:
    """``x.view(batch, seq, heads, head_dim).transpose(1, 2)``.

    A gradient that comes back head by head is copied by the view's backward; one in the projection's own layout is
    viewed, and with one head or one token the two layouts are the same.
    """
    batch, seq, _ = x_shape = x.shape
    dtype, copies = x.dtype, head_major_grad and heads > 1 and seq > 1

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        if copies:
            return [e.new(x_shape, dtype, "view backward")]
        return [Tensor(g.storage, x_shape, dtype, None, True)]

    return e.view("view", x, (batch, heads, seq, head_dim), backward)


def view_heads(e: Engine, x: Tensor, heads: int, head_dim: int) -> Tensor:
    """``x.view(batch, seq, heads, head_dim)``, whose gradient comes back head by head."""
    batch, seq, _ = x_shape = x.shape
    dtype, copies = x.dtype, heads > 1 and seq > 1

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        if copies:
            return [e.new(x_shape, dtype, "view backward")]
        return [Tensor(g.storage, x_shape, dtype, None, True)]

    return e.view("view", x, (batch, seq, heads, head_dim), backward)


def transpose_heads(e: Engine, x: Tensor) -> Tensor:
    """``x.transpose(1, 2)`` of ``(batch, seq, heads, head_dim)``."""
    batch, seq, heads, head_dim = x_shape = x.shape

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        return [Tensor(g.storage, x_shape, g.dtype, None, True)]

    return e.view("transpose", x, (batch, heads, seq, head_dim), backward)


def merge_heads(e: Engine, x: Tensor) -> Tensor:
    """``x.transpose(1, 2).reshape(batch, seq, -1)`` of a tensor that lies token by token."""
    batch, heads, seq, head_dim = x_shape = x.shape

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        return [Tensor(g.storage, x_shape, g.dtype, None, True)]

    return e.view("reshape", x, (batch, seq, heads * head_dim), backward)


def cat_copy(e: Engine, x: Tensor) -> Tensor:
    """``torch.cat`` of one tensor onto an empty cache: a copy."""

    def narrow(_saved: Saved, g: Tensor) -> Gradients:
        return [Tensor(g.storage, g.shape, g.dtype, None, True)]

    return e.apply("cat", [x], x.shape, x.dtype, (), narrow, op="KV cache")


# -- embedding -------------------------------------------------------------------------------------------------------


def embedding(e: Engine, weight: Parameter, ids: Tensor, *, transposed: bool = False) -> Tensor:
    """``nn.functional.embedding`` of ``(batch, seq)`` token ids; ``transposed`` looks up columns of the weight."""
    batch, seq = ids.shape
    w_shape, dtype = weight.tensor.shape, weight.tensor.dtype
    vocab, width = (w_shape[1], w_shape[0]) if transposed else w_shape
    tokens: Size = batch * seq

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        buffers = in_kernel(e, embedding_backward(tokens, int(vocab), width))
        result = e.new(w_shape, dtype, "embedding backward")
        del buffers
        # A gradient whose layout is not the parameter's is copied before it is kept.
        return [e.new(w_shape, dtype, "gradient") if transposed else result]

    e.work.looks_up(weight.name)
    return e.apply("embedding", [weight.tensor], (batch, seq, width), dtype, [ids], backward)
