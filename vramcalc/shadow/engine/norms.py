"""Root mean square norms as transformers writes them out, operator by operator."""

from __future__ import annotations

from vramcalc.shadow.engine import activations, ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.tape import Tensor


def rms_norm(e: Engine, x: Tensor, weight: Parameter) -> Tensor:
    """``LlamaRMSNorm.forward``; its variables die in the order of the source."""
    input_dtype = x.dtype
    hidden_states = ops.to(e, x, "float32")
    variance = _mean(e, activations.square(e, hidden_states))
    hidden_states = ops.mul(e, hidden_states, _rsqrt(e, ops.add_constant(e, variance)))
    return ops.mul_columns(e, weight.tensor, ops.to(e, hidden_states, input_dtype))


def rms_norm_centered(e: Engine, x: Tensor, weight: Parameter) -> Tensor:
    """``Gemma2RMSNorm.forward``: times one plus the weight, all of it in float32."""
    input_dtype = x.dtype
    output = _normalised(e, ops.to(e, x, "float32"))
    output = ops.mul(e, output, ops.add_constant(e, ops.to(e, weight.tensor, "float32")))
    return ops.to(e, output, input_dtype)


def _normalised(e: Engine, x: Tensor) -> Tensor:
    return ops.mul(e, x, _rsqrt(e, ops.add_constant(e, _mean(e, activations.square(e, x)))))


def _mean(e: Engine, x: Tensor) -> Tensor:
    shape, dtype = x.shape, x.dtype
    return e.apply("mean", [x], (*shape[:-1], 1), dtype, (), lambda s, g: [e.new(shape, dtype, "mean backward")])


def _rsqrt(e: Engine, x: Tensor) -> Tensor:
    backward = activations.through_power(e, x, "rsqrt backward")
    return e.apply("rsqrt", [x], x.shape, x.dtype, (), backward, saves_result=True)
