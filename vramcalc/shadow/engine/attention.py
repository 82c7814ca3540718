"""Attention kernels: eager code of transformers and the kernels behind ``scaled_dot_product_attention``.

Queries, keys and values are ``(batch, heads, seq, head_dim)``; results are ``(batch, seq, heads, head_dim)`` in memory.
"""

from __future__ import annotations

from vramcalc.shadow.engine import activations, kernels, ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Backward, Gradients
from vramcalc.shadow.engine.heads import pad_width, repeat_interleave, repeat_kv
from vramcalc.shadow.engine.ops import Saved, in_kernel
from vramcalc.shadow.engine.sizes import Size, ceil_to, product
from vramcalc.shadow.engine.tape import ITEMSIZE, Shape, Storage, Tensor


def flash(e: Engine, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SDPA's flash path: heads whose width is no multiple of 8 are padded, and the result is cut and copied."""
    width = int(q.shape[-1])
    extra = -width % 8
    if not extra:
        return _flash(e, q, k, v)
    y = _flash(e, pad_width(e, q, extra), pad_width(e, k, extra), pad_width(e, v, extra), padded_from=q.shape)
    shape, padded, dtype = q.shape, y.shape, q.dtype
    return ops.clone(e, e.view("slice", y, shape, lambda s, g: [e.new(padded, dtype, "slice backward")]))


def _flash(e: Engine, q: Tensor, k: Tensor, v: Tensor, *, padded_from: Shape | None = None) -> Tensor:
    """``aten::_scaled_dot_product_flash_attention``: saves q, k, v, the result and a log-sum-exp per row."""
    batch, heads, seq, width = q_shape = q.shape
    kv_shape, dtype, meant = k.shape, q.dtype, padded_from or q_shape

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        _fused_backward(e, dtype, meant, kv_shape[2])
        itemsize = ITEMSIZE[dtype]
        needed = kernels.flash_backward(batch, int(heads), int(kv_shape[1]), seq, int(width), itemsize, kv_shape[2])
        if padded_from is not None:
            needed.append((batch * heads * seq * width * itemsize, "flash backward: contiguous grad_out"))
        buffers = in_kernel(e, needed)
        grads: Gradients = [e.new(shape, dtype, "flash backward") for shape in (q_shape, kv_shape, kv_shape)]
        del buffers
        return grads

    node = e.node("flash attention", [q, k, v], [q, k, v], backward)
    e.work.attended(dtype, meant, kv_shape[2], times=2)
    y = Tensor(Storage(e.tape, q_shape, dtype, "flash attention"), q_shape, dtype, node)
    rest = [
        e.new((batch, heads, seq), "float32", "flash attention log-sum-exp"),
        e.new((2,), "int64", "flash attention rng state"),
        e.new((), "int64", "flash attention rng state"),
    ]
    if node is not None:
        e.save(node, [y, *rest])
    return y


def _fused_backward(e: Engine, dtype: str, q_shape: Shape, keys: Size) -> None:
    """Work of a kernel that keeps no scores: it makes them again, and all gradients whether needed or not."""
    e.work.attended(dtype, q_shape, keys, "recomputation")
    e.work.attended(dtype, q_shape, keys, "input gradients", times=4)


def attend(
    e: Engine,
    kernel: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    compute_capability: tuple[int, int],
    *,
    repeats: bool,
    contiguous: bool = False,
    cached: bool = False,
    soft_capped: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention interface: the result, and the weights where eager code returns them.

    Args:
        e: the engine.
        kernel: see :func:`choose`.
        q: queries, token by token in memory.
        k: keys, likewise.
        v: values, likewise.
        mask: see :mod:`vramcalc.shadow.families.common.masks`.
        compute_capability: of the GPU.
        repeats: key and value heads are copied first.
        contiguous: whatever does not lie head by head yet is copied.
        cached: keys and values are what a cache copied, head by head.
        soft_capped: scores go through a hyperbolic tangent; flash-attn does that in its kernel.

    References:
        transformers integrations/sdpa_attention.py.
    """
    if kernel == "eager":
        return eager(e, q, k, v, mask, head_major_kv=cached, soft_capped=soft_capped)
    heads = int(q.shape[1])
    if repeats:
        k, v = repeat_kv(e, k, heads), repeat_kv(e, v, heads)
    if contiguous:
        q = ops.clone(e, q)
        k, v = (k, v) if repeats else (ops.clone(e, k), ops.clone(e, v))
    match kernel:
        case "flash":
            y = flash(e, *_cast(e, q, k, v))
            # The kernel's result lies in memory as the queries do.
            return ops.clone(e, y) if contiguous else y, None
        case "math":
            y = _without_autocast(e, *_cast(e, q, k, v), mask, head_major_kv=repeats or cached)
            return ops.clone(e, y), None
        case _:
            return efficient(e, *_cast(e, q, k, v), mask, kernel, compute_capability), None


def _cast(e: Engine, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What autocast hands to the operator, made last to first; callers keep what it was cast from."""
    if e.autocast is None:
        return q, k, v
    v, k, q = ops.to(e, v, e.autocast), ops.to(e, k, e.autocast), ops.to(e, q, e.autocast)
    return q, k, v


def _without_autocast(
    e: Engine, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, head_major_kv: bool
) -> Tensor:
    with e.no_autocast():
        return math(e, q, k, v, mask, head_major_kv=head_major_kv)


def eager(
    e: Engine, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, head_major_kv: bool, soft_capped: bool = False
) -> tuple[Tensor, Tensor]:
    """``eager_attention_forward``: the full matrix of scores, its softmax in float32, and a copy back.

    ``head_major_kv`` is as in :func:`math`.

    Returns:
        The result and the attention weights, which the caller holds on to.
    """
    batch, heads, seq, width = q.shape
    # A single head that is expanded has no place of its own for each copy, wherever it lies.
    one_block = head_major_kv if k.shape[1] == heads else k.shape[1] != 1
    if k.shape[1] != heads:
        k, v = repeat_kv(e, k, int(heads)), repeat_kv(e, v, int(heads))
    many = batch > 1
    attn_weights = _bmm(e, q, k, (batch, heads, seq, k.shape[2]), copy_a=many, copy_b=many and not one_block)
    attn_weights = ops.mul_scalar(e, attn_weights)
    if soft_capped:
        attn_weights = ops.mul_scalar(e, attn_weights)
        attn_weights = activations.tanh(e, attn_weights)
        attn_weights = ops.mul_scalar(e, attn_weights)
    if mask is not None:
        attn_weights = ops.add_constant(e, attn_weights, "add mask", mask.dtype)
    attn_weights = ops.to(e, _softmax(e, attn_weights), q.dtype)
    y = _bmm(e, attn_weights, v, (batch, heads, seq, width), copy_b=many and not one_block, copy_grad=many)
    return ops.clone(e, y), attn_weights


def _softmax(e: Engine, x: Tensor) -> Tensor:
    """``softmax(dtype=float32)``: bfloat16 is converted first, float16 inside the kernel."""
    shape, dtype = x.shape, x.dtype
    converted = ops.to(e, x, "float32") if dtype == "bfloat16" else x
    grad_dtype = dtype if dtype == "float16" else "float32"
    return e.apply(
        "softmax",
        [converted],
        shape,
        "float32",
        (),
        _softmax_backward(e, shape, grad_dtype),
        saves_result=True,
    )


def _softmax_backward(e: Engine, shape: Shape, dtype: str) -> Backward:
    def backward(_saved: Saved, g: Tensor) -> Gradients:
        buffers = in_kernel(e, kernels.softmax_backward(product(shape)))
        result = e.new(shape, dtype, "softmax backward")
        del buffers
        return [result]

    return backward


def _bmm(
    e: Engine,
    a: Tensor,
    b: Tensor,
    shape: Shape,
    *,
    copy_a: bool = False,
    copy_b: bool = False,
    copy_grad: bool = False,
) -> Tensor:
    """``torch.matmul`` of batches of heads; operands and gradients that are not one block in memory are copied."""
    if e.autocast is not None:
        b, a = ops.to(e, b, e.autocast), ops.to(e, a, e.autocast)
    a_shape, b_shape, dtype = a.shape, b.shape, a.dtype
    for_a, for_b = a.node is not None, b.node is not None
    inner = a_shape[-1]
    left = ops.clone(e, a) if copy_a else a
    right = ops.clone(e, b) if copy_b else b

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        e.work.attended(dtype, shape, inner, "input gradients", times=for_a + for_b)
        grad_b = e.new(b_shape, dtype, "bmm backward") if for_b else None
        grad_a = e.new(a_shape, dtype, "bmm backward") if for_a else None
        return [grad_a, grad_b]

    saved = [t for t, other_needs_it in ((left, for_b), (right, for_a)) if other_needs_it]
    y = e.apply("bmm", [left, right], shape, dtype, saved, backward)
    e.work.attended(dtype, shape, inner)
    if not copy_grad:
        return y
    return e.view("view", y, shape, lambda s, g: [e.new(shape, dtype, "view backward")])


def _additive(e: Engine, mask: Tensor, dtype: str, *, padded: bool) -> Tensor:
    """A boolean mask as a bias in the query's dtype, rows padded to a multiple of 8 where a kernel wants that."""
    batch, _, rows, columns = mask.shape
    if mask.dtype != "bool":
        return e.new((batch, 1, rows, ceil_to(columns, 8)), dtype, "pad") if padded and columns % 8 else mask
    zero = e.new((), dtype, "zeros")
    infinity = e.new((), dtype, "full")
    bias = e.new((batch, 1, rows, columns), dtype, "where")
    del infinity
    if padded and columns % 8 != 0:
        bias = e.new((batch, 1, rows, ceil_to(columns, 8)), dtype, "constant_pad_nd")
    del zero
    return bias


def efficient(
    e: Engine,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    kernel: str,
    compute_capability: tuple[int, int],
) -> Tensor:
    """``aten::_scaled_dot_product_efficient_attention`` or its cuDNN twin: both take a bias and save it."""
    batch, heads, seq, width = q_shape = q.shape
    kv_shape, dtype, cudnn = k.shape, q.dtype, kernel == "cudnn"
    bias = [_additive(e, mask, dtype, padded=True)] if mask is not None else []

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        _fused_backward(e, dtype, q_shape, kv_shape[2])
        if cudnn:
            needed = kernels.cudnn_backward(batch, int(heads), seq, int(width))
        else:
            kv_heads = int(kv_shape[1])
            needed = kernels.efficient_backward(
                batch, int(heads), kv_heads, seq, int(width), dtype, compute_capability, kv_shape[2]
            )
        buffers = in_kernel(e, needed)
        grads: Gradients = [e.new(shape, dtype, f"{kernel} backward") for shape in (q_shape, kv_shape, kv_shape)]
        del buffers
        return grads

    node = e.node(f"{kernel} attention", [q, k, v], [q, k, v, *bias], backward)
    buffers = in_kernel(e, [] if cudnn else kernels.efficient_forward(batch, int(heads), seq, int(width), dtype))
    e.work.attended(dtype, q_shape, kv_shape[2], times=2)
    y = Tensor(Storage(e.tape, q_shape, dtype, f"{kernel} attention"), q_shape, dtype, node)
    rest = []
    if cudnn or node is not None:
        rows = (batch, heads, seq, 1) if cudnn else (batch, heads, ceil_to(seq, 32))
        rest.append(e.new(rows, "float32", f"{kernel} attention log-sum-exp"))
    rest += [e.new((), "int64", f"{kernel} attention {what}") for what in ("seed", "offset")]
    del buffers
    if node is not None:
        e.save(node, [y, *rest])
    return y


def math(e: Engine, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, head_major_kv: bool) -> Tensor:
    """``_scaled_dot_product_attention_math``: everything in float32, all scores at once.

    ``head_major_kv`` says that keys and values lie head by head in memory, so that no product has to copy them.

    References:
        pytorch aten/src/ATen/native/transformers/attention.cpp.
    """
    batch, heads, seq, _ = q.shape
    dtype, many = q.dtype, batch > 1
    query_acc, k, v = ops.to(e, q, "float32"), ops.to(e, k, "float32"), ops.to(e, v, "float32")
    q = ops.mul_scalar(e, query_acc)
    if mask is None:
        ones = e.new((seq, seq), "bool", "ones")
        allowed = e.new((seq, seq), "bool", "tril")
        del ones
        bias = _additive(e, Tensor(allowed.storage, (1, 1, seq, seq), "bool"), "float32", padded=False)
        del allowed
    else:
        bias = _additive(e, mask, "float32", padded=False)
    grouped = k.shape[1] != heads
    copies = many and not grouped and not head_major_kv
    key_expanded = repeat_interleave(e, k, int(heads)) if grouped else k
    value_expanded = repeat_interleave(e, v, int(heads)) if grouped else v
    scores = (batch, heads, seq, k.shape[2])
    attn = _bmm(e, q, ops.mul_scalar(e, key_expanded), scores, copy_a=many, copy_b=copies)
    attn = _safe_softmax(e, attn)
    returned_weights = e.new(scores, dtype, "attention weights") if dtype != "float32" else None
    out = _bmm(e, attn, value_expanded, q.shape, copy_b=copies, copy_grad=many)
    out = ops.to(e, out, dtype)
    del returned_weights, bias, query_acc
    return out


def _safe_softmax(e: Engine, x: Tensor) -> Tensor:
    batch, heads, rows, columns = shape = x.shape
    node = e.node("safe_softmax", [x], (), _softmax_backward(e, shape, "float32"))
    buffers = in_kernel(e, kernels.safe_softmax(batch, int(heads), rows, columns))
    y = Tensor(Storage(e.tape, shape, "float32", "safe_softmax"), shape, "float32", node)
    del buffers
    if node is not None:
        e.save(node, [y])
    return y
