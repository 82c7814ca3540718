"""Rotary positions as transformers applies them."""

from __future__ import annotations

from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients
from vramcalc.shadow.engine.ops import Saved
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Tensor


def rotary_pair(e: Engine, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """``apply_rotary_pos_emb``: a caller that unpacks the result lets go of the old queries first."""
    q_embed = rotary(e, q, cos, sin)
    k_embed = rotary(e, k, cos, sin)
    return q_embed, k_embed


def rotary(e: Engine, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``(x * cos) + (rotate_half(x) * sin)`` on ``(batch, heads, seq, head_dim)``."""
    left = ops.mul(e, x, cos)
    return ops.add(e, left, ops.mul(e, _rotate_half(e, x), sin))


def _rotate_half(e: Engine, x: Tensor) -> Tensor:
    first, second = _half(e, x), _half(e, x)
    half, dtype = first.shape, x.dtype

    def split(_saved: Saved, g: Tensor) -> Gradients:
        return [Tensor(g.storage, half, dtype, None, True), Tensor(g.storage, half, dtype, None, True)]

    return e.apply("cat", [ops.neg(e, second), first], x.shape, dtype, (), split)


def _half(e: Engine, x: Tensor) -> Tensor:
    """Half of the last dimension; backward fills a zero tensor of full size."""
    shape, dtype = x.shape, x.dtype
    return e.view("slice", x, (*shape[:-1], shape[-1] // 2), lambda s, g: [e.new(shape, dtype, "slice backward")])


def rotary_embedding(e: Engine, seq: Size, head_dim: int, dtype: str, *, scales: bool = True) -> tuple[Tensor, Tensor]:
    """``LlamaRotaryEmbedding.forward``, under no_grad and in float32; older classes scale nothing."""
    tape, outer = e.tape, e.tape.module
    tape.module = "model.rotary_emb"
    numbers = e.new((1, seq, 1), "float32", "to")
    freqs = e.new((1, seq, head_dim // 2), "float32", "freqs")
    del numbers
    shape = (1, seq, head_dim)
    emb = e.new(shape, "float32", "cat")
    found = []
    for what in ("cos", "sin"):
        raw = e.new(shape, "float32", what)
        found.append(e.new(shape, "float32", what) if scales else raw)
        del raw
    cos, sin = found
    del found
    result = ops.to(e, cos, dtype), ops.to(e, sin, dtype)
    del freqs, emb, cos, sin
    tape.module = outer
    return result


def positions(e: Engine, seq: Size) -> Tensor:
    """``position_ids``, the same for every sequence."""
    arange = e.new((seq,), "int64", "arange")
    position_ids = e.new((1, seq), "int64", "position ids")
    del arange
    return position_ids
