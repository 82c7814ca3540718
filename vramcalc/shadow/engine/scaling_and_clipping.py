"""What happens to gradients between backward pass and optimizer step: loss scaling and clipping."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.tape import Tensor, promote


class GradScaler:
    """``torch.amp.GradScaler``: scalars only; gradients are unscaled in place.

    References:
        pytorch torch/amp/grad_scaler.py.
    """

    def __init__(self, e: Engine) -> None:
        self.e = e
        self.factor: Tensor | None = None
        self.tracker: Tensor | None = None
        self.found_inf: Tensor | None = None

    def scale(self, loss: Tensor) -> Tensor:
        """``scale(loss)``: times a factor that is made at the first call."""
        e = self.e
        if self.factor is None:
            self.factor = e.new((), "float32", "loss scale")
            self.tracker = e.new((), "int32", "growth tracker")
        return e.apply("mul", [loss], (), "float32", [self.factor], lambda s, g: [e.new((), "float32", "mul backward")])

    def unscale(self) -> None:
        """``unscale_(optimizer)``."""
        new = self.e.new
        double = new((), "float64", "to")
        reciprocal = new((), "float64", "reciprocal")
        del double
        inverse = new((), "float32", "to")
        del reciprocal
        found_inf = new((), "float32", "found_inf")
        # Both are copied once more, for the device that the gradients are on.
        self.found_inf = new((), "float32", "to")
        copy = new((), "float32", "to")
        del copy, inverse, found_inf

    def step(self, step: Callable[[], None], *, fused: bool) -> None:
        """``step(optimizer)``: a fused optimizer is handed the sum of what was found, and looks itself."""
        total = self.e.new((), "float32", "add") if fused else None
        step()
        del total

    def update(self) -> None:
        """``update()``."""
        self.found_inf = None


def clip_grad_norm(e: Engine, parameters: Sequence[Parameter], count: int) -> None:
    """``torch.nn.utils.clip_grad_norm_``: a norm per gradient in its dtype, then scalars in that of all of them.

    ``count`` is the number of gradients at the model's full depth.
    """
    norms: list[Tensor] = []
    dtype = reduce(promote, (p.tensor.dtype for p in parameters))
    # By dtype, as _foreach_norm takes them.
    parameters = sorted(parameters, key=lambda p: p.tensor.dtype != "float32")
    for p in parameters:
        e.tape.at(p.layer)
        norms.append(e.new((), p.tensor.dtype, "gradient norm"))
    e.tape.at(None)
    stacked = e.new((count,), dtype, "stack")
    total_norm = e.new((), dtype, "total norm")
    del stacked
    for p in parameters:
        e.tape.at(p.layer)
        norms.pop(0)
    e.tape.at(None)
    shifted = e.new((), dtype, "add")
    inverse = e.new((), dtype, "reciprocal")
    clip_coef = e.new((), dtype, "mul")
    del shifted, inverse
    clamped = e.new((), dtype, "clamp")
    del clip_coef, total_norm, clamped
