"""What happens to gradients between backward pass and optimizer step: loss scaling and clipping."""

from __future__ import annotations

from collections.abc import Sequence

from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.tape import Tensor


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
        self.found_inf = new((), "float32", "found_inf")
        del inverse

    def update(self) -> None:
        """``update()``."""
        self.found_inf = None


def clip_grad_norm(e: Engine, parameters: Sequence[Parameter], count: int) -> None:
    """``torch.nn.utils.clip_grad_norm_``: a norm per gradient, then scalars.

    ``count`` is the number of gradients at the model's full depth.
    """
    norms = []
    for p in parameters:
        e.tape.at(p.layer)
        norms.append(e.new((), "float32", "gradient norm"))
    e.tape.at(None)
    stacked = e.new((count,), "float32", "stack")
    total_norm = e.new((), "float32", "total norm")
    del stacked
    for p in parameters:
        e.tape.at(p.layer)
        norms.pop(0)
    e.tape.at(None)
    shifted = e.new((), "float32", "add")
    inverse = e.new((), "float32", "reciprocal")
    clip_coef = e.new((), "float32", "mul")
    del shifted, inverse
    clamped = e.new((), "float32", "clamp")
    del clip_coef, total_norm, clamped
