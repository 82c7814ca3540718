"""The optimizer of transformers: Adafactor."""

from __future__ import annotations

from collections.abc import Sequence

from vramcalc.inputs.optimizers import OptimizerFacts, OptimizerName
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.tape import Shape, Tensor
from vramcalc.shadow.training.optimizers.base import Groups, Optimizer


class Adafactor(Optimizer):
    """``transformers.optimization.Adafactor`` as Trainer sets it: factored second moments, no first.

    References:
        transformers src/transformers/optimization.py, ``Adafactor.step``; the names are its names.
    """

    def __init__(
        self, e: Engine, groups: Groups, facts: OptimizerFacts, kept_in_float32: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(e, groups, facts, kept_in_float32)
        self.rms: dict[Parameter, Tensor] = {}

    def prepare(self) -> None:
        """States, and the root mean square that every step leaves with each parameter."""
        super().prepare()
        for group in self.groups:
            for p in group:
                self.e.tape.at(p.layer)
                self.rms[p] = self.e.new((), "float32", "rms")
        self.e.tape.at(None)

    def _root_mean_square(self) -> Tensor:
        norm = self.e.new((), "float32", "norm")
        result = self.e.new((), "float32", "rms")
        del norm
        return result

    def step_group(self, group: Sequence[Parameter]) -> None:
        """``step``: locals of one parameter live until the next one overwrites them."""
        new = self.e.new
        grad = p_data_fp32 = update = None
        for p in group:
            self.e.tape.at(p.layer)
            shape, half, factored = p.tensor.shape, p.tensor.dtype != "float32", len(p.tensor.shape) >= 2
            grad = p.grad
            if half:
                grad = new(shape, "float32", "grad.float()")
            self.ensure(p)
            p_data_fp32 = p.tensor
            if half:
                p_data_fp32 = new(shape, "float32", "p.float()")
            self.rms[p] = self._root_mean_square()
            square = new(shape, "float32", "grad**2")
            update = new(shape, "float32", "add eps")
            del square
            if factored:
                for reduced in _factors(shape):
                    mean = new(reduced, "float32", "mean")
                    del mean
                update = self._approximate(shape)
            else:
                update = new(shape, "float32", "rsqrt")
            self._clip()
            negative = new(shape, "float32", "neg")
            del negative
        self.e.tape.at(None)
        del grad, p_data_fp32, update

    def init(self, p: Parameter) -> None:
        """Second moments of rows and columns, or in full for vectors."""
        shape = p.tensor.shape
        for kept in _factors(shape) if len(shape) >= 2 else (shape,):
            self.keep(p, kept, "float32", "exp_avg_sq")

    def _approximate(self, shape: Shape) -> Tensor:
        mean = self.e.new((*shape[:-2], 1), "float32", "mean of rows")
        r_factor = self.e.new(shape[:-1], "float32", "r_factor")
        del mean
        c_factor = self.e.new(_factors(shape)[1], "float32", "c_factor")
        result = self.e.new(shape, "float32", "update")
        del r_factor, c_factor
        return result

    def _clip(self) -> None:
        rms = self._root_mean_square()
        divisor = self.e.new((), "float32", "div")
        del rms, divisor


def _factors(shape: Shape) -> tuple[Shape, Shape]:
    """Of rows and of columns, for every matrix of a stack."""
    return shape[:-1], (*shape[:-2], shape[-1])


OPTIMIZERS: dict[OptimizerName, type[Optimizer]] = {"adafactor": Adafactor}
