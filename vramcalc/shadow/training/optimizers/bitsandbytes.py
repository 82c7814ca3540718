"""Optimizers of bitsandbytes: AdamW and Lion in 32 and 8 bits, paged or not."""

from __future__ import annotations

from vramcalc.inputs.optimizers import OPTIMIZERS as FACTS
from vramcalc.inputs.optimizers import OptimizerFacts, OptimizerName
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.sizes import product
from vramcalc.shadow.training.optimizers.base import Groups, Optimizer


class Bitsandbytes(Optimizer):
    """bitsandbytes' optimizers: states in float32, or in blocks of 8-bit codes with a float32 scale per 256.

    Tensors below 4,096 elements keep float32 states, and so does the embedding under Trainer. A paged state of
    100,000 elements or more lies in managed memory, outside torch's allocator.

    References:
        bitsandbytes 0.50 optim/optimizer.py; transformers trainer.py, ``create_optimizer``.
    """

    def __init__(
        self, e: Engine, groups: Groups, facts: OptimizerFacts, kept_in_float32: frozenset[str] = frozenset()
    ) -> None:
        super().__init__(e, groups, facts, kept_in_float32)
        outer, e.tape.kind = e.tape.kind, "optimizer"
        self.maps = [e.new((256,), "float32", "8-bit code book") for _ in range(2)] if facts.state_bits == 8 else []
        e.tape.kind = outer

    def init(self, p: Parameter) -> None:
        """``init_state``."""
        n = product(p.tensor.shape)
        wide = self.facts.state_bits == 32 or n < 4096 or p.name in self.kept_in_float32
        dtype = "float32" if wide else "uint8"
        for i in range(self.facts.moments):
            if self.facts.paged and n >= 100_000:
                self.paged.append((p, p.tensor.shape, dtype))
            else:
                self.keep(p, p.tensor.shape, dtype, f"state{i + 1}")
        if not wide:
            for i in range(self.facts.moments):
                self.keep(p, ((n + 255) // 256,), "float32", f"absmax{i + 1}")


OPTIMIZERS: dict[OptimizerName, type[Optimizer]] = {
    name: Bitsandbytes for name, facts in FACTS.items() if facts.library == "bitsandbytes"
}
