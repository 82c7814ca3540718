"""What every optimizer has: states by parameter, and a step over its parameter groups."""

from __future__ import annotations

from collections.abc import Sequence

from vramcalc.inputs.optimizers import OptimizerFacts
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.tape import Shape, Tensor

Groups = Sequence[Sequence[Parameter]]


class Optimizer:
    """States by parameter, and a step.

    Args:
        e: the engine.
        groups: parameter groups.
        facts: what the name stands for.
        kept_in_float32: names of the parameters whose states are not stored in 8 bits.

    Attributes:
        state: tensors kept between steps.
        paged: states in managed memory, outside torch's allocator: parameter, shape and dtype.
    """

    def __init__(
        self, e: Engine, groups: Groups, facts: OptimizerFacts, kept_in_float32: frozenset[str] = frozenset()
    ) -> None:
        self.e, self.groups, self.facts, self.kept_in_float32 = e, groups, facts, kept_in_float32
        self.state: dict[Parameter, list[Tensor]] = {}
        self.paged: list[tuple[Parameter, Shape, str]] = []

    def prepare(self) -> None:
        """Make every state there will be, as if a step had been taken."""
        for group in self.groups:
            for p in group:
                self.ensure(p)
        self.e.tape.at(None)

    def ensure(self, p: Parameter) -> None:
        """Make a parameter's states unless it has them."""
        if p not in self.state:
            self.e.tape.at(p.layer)
            self.state[p] = []
            self.init(p)

    def step(self) -> None:
        """One optimizer step over all parameters that have a gradient."""
        for group in self.groups:
            self.step_group([p for p in group if p.grad is not None])
            self.e.tape.at(None)

    def init(self, p: Parameter) -> None:
        """Make a parameter's states."""
        raise NotImplementedError

    def step_group(self, group: Sequence[Parameter]) -> None:
        """One step over one parameter group: nothing but states, unless overridden."""
        for p in group:
            self.ensure(p)

    def keep(self, p: Parameter, shape: Shape, dtype: str, what: str) -> None:
        """Allocate a state tensor of a parameter."""
        t = self.e.new(shape, dtype, what)
        birth = self.e.tape.births[t.storage.id]
        birth.kind, birth.module = "optimizer", p.name
        self.state[p].append(t)
