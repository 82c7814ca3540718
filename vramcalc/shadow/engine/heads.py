"""Key and value heads copied until there are as many as query heads."""

from __future__ import annotations

from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.tape import Tensor


def repeat_kv(e: Engine, x: Tensor, heads: int) -> Tensor:
    """``repeat_kv``: key or value heads copied until there are as many as query heads; a single one is expanded."""
    batch, kv_heads, seq, width = small = x.shape
    if kv_heads != 1:
        return repeat_interleave(e, x, heads)
    dtype = x.dtype
    return e.view("expand", x, (batch, heads, seq, width), lambda s, g: [e.new(small, dtype, "sum over heads")])


def repeat_interleave(e: Engine, x: Tensor, heads: int) -> Tensor:
    """Key or value heads copied until there are as many as query heads."""
    batch, _, seq, width = small = x.shape
    dtype = x.dtype
    return e.apply(
        "repeat_kv", [x], (batch, heads, seq, width), dtype, (), lambda s, g: [e.new(small, dtype, "sum over heads")]
    )


def pad_width(e: Engine, x: Tensor, extra: int) -> Tensor:
    """Heads made wider by zeros."""
    shape, dtype = x.shape, x.dtype
    wider = (*shape[:-1], int(shape[-1]) + extra)
    return e.apply("pad", [x], wider, dtype, (), lambda s, g: [e.new(shape, dtype, "pad backward")])
