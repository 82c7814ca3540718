"""Functions of one tensor, element by element, as torch runs them: activations and powers."""

from __future__ import annotations

from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Backward, Gradients
from vramcalc.shadow.engine.ops import Saved
from vramcalc.shadow.engine.tape import Tensor


def silu(e: Engine, x: Tensor) -> Tensor:
    """``nn.functional.silu``."""
    return _activation(e, "silu", x)


def gelu(e: Engine, x: Tensor) -> Tensor:
    """``nn.functional.gelu``, exact or by ``tanh``."""
    return _activation(e, "gelu", x)


def relu(e: Engine, x: Tensor) -> Tensor:
    """``nn.functional.relu``, whose gradient is where its result is not zero."""
    shape, dtype = x.shape, x.dtype
    backward = "threshold backward"
    return e.apply("relu", [x], shape, dtype, (), lambda s, g: [e.new(shape, dtype, backward)], saves_result=True)


def tanh(e: Engine, x: Tensor) -> Tensor:
    """``torch.tanh``."""
    shape, dtype = x.shape, x.dtype

    def backward(_saved: Saved, _gradient: Tensor) -> Gradients:
        return [e.new(shape, dtype, "tanh backward")]

    return e.apply("tanh", [x], shape, dtype, (), backward, saves_result=True)


def square(e: Engine, x: Tensor) -> Tensor:
    """``torch.square``, or ``x.pow(2)``, which autocast runs in float32."""
    if e.autocast is not None:
        x = ops.to(e, x, "float32")
    return e.apply("pow", [x], x.shape, x.dtype, [x], through_power(e, x, "pow backward"))


def through_power(e: Engine, x: Tensor, name: str) -> Backward:
    """The gradient of a power of ``x``: another power, times a number, times what comes in."""
    shape, dtype = x.shape, x.dtype

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        power = e.new(shape, dtype, "pow")
        scaled = e.new(shape, dtype, "mul")
        result = e.new(shape, dtype, name)
        del scaled, power
        return [result]

    return backward


def _activation(e: Engine, name: str, x: Tensor) -> Tensor:
    shape, dtype = x.shape, x.dtype
    return e.apply(name, [x], shape, dtype, [x], lambda s, g: [e.new(shape, dtype, f"{name} backward")])
