"""Optimizers of torch: AdamW in its three implementations, SGD."""

from __future__ import annotations

from collections.abc import Sequence

from vramcalc.inputs.optimizers import OptimizerName
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.training.optimizers.base import Optimizer


class FusedAdamW(Optimizer):
    """``torch.optim.AdamW(fused=True)``: one kernel, no temporaries, the step count on the device.

    References:
        pytorch torch/optim/adam.py, for this class and its subclasses.
    """

    step_on_device = True

    def init(self, p: Parameter) -> None:
        """Two moments in the parameter's dtype."""
        if self.step_on_device:
            self.keep(p, (), "float32", "step")
        self.keep(p, p.tensor.shape, p.tensor.dtype, "exp_avg")
        self.keep(p, p.tensor.shape, p.tensor.dtype, "exp_avg_sq")


class ForeachAdamW(FusedAdamW):
    """``foreach=True``, torch's default: the square roots of a whole group at once."""

    step_on_device = False

    def step_group(self, group: Sequence[Parameter]) -> None:
        """``_multi_tensor_adam``."""
        super().step_group(group)
        held = []
        for p in group:
            self.e.tape.at(p.layer)
            held.append(self.e.new(p.tensor.shape, p.tensor.dtype, "_foreach_sqrt"))
        self.e.tape.at(None)
        for p in group:
            self.e.tape.at(p.layer)
            held.pop(0)


class LoopAdamW(FusedAdamW):
    """``foreach=False``: two temporaries per parameter, the second alive until the next one is made."""

    step_on_device = False

    def step_group(self, group: Sequence[Parameter]) -> None:
        """``_single_tensor_adam``."""
        super().step_group(group)
        denom = None
        for p in group:
            self.e.tape.at(p.layer)
            root = self.e.new(p.tensor.shape, p.tensor.dtype, "sqrt")
            divided = self.e.new(p.tensor.shape, p.tensor.dtype, "div")
            del root
            denom = divided
            del divided
        self.e.tape.at(None)
        del denom


class SGD(Optimizer):
    """``torch.optim.SGD``: nothing, or with momentum a clone of the first gradient."""

    def init(self, p: Parameter) -> None:
        """The momentum buffer."""
        if self.facts.moments:
            self.keep(p, p.tensor.shape, p.tensor.dtype, "momentum_buffer")


OPTIMIZERS: dict[OptimizerName, type[Optimizer]] = {
    "adamw_torch_fused": FusedAdamW,
    "adamw_torch": ForeachAdamW,
    "adamw_torch_loop": LoopAdamW,
    "sgd": SGD,
    "sgd_momentum": SGD,
}
