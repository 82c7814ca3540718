"""Optimizers of torchao: AdamW in 8 and 4 bits."""

from __future__ import annotations

from vramcalc.inputs.optimizers import OptimizerName
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.sizes import product
from vramcalc.shadow.training.optimizers.base import Optimizer


class TorchaoAdamW(Optimizer):
    """torchao's low-bit AdamW: codes, a scale per 256 and a code book per state; odd sizes stay as they are.

    Its step is compiled into fused kernels, which are taken to allocate nothing.

    References:
        torchao 0.18 optim/adam.py, subclass_8bit.py, subclass_4bit.py.
    """

    block = 256

    def init(self, p: Parameter) -> None:
        """``_new_buffer``, twice."""
        n, bits = product(p.tensor.shape), self.facts.state_bits
        assert bits, "both names say how many"
        for what in ("exp_avg", "exp_avg_sq"):
            if n < 4096 or n % self.block != 0:
                self.keep(p, p.tensor.shape, p.tensor.dtype, what)
                continue
            self.keep(p, (n * bits // 8,), "uint8", f"{what} codes")
            self.keep(p, (n // self.block,), "float32", f"{what} scales")
            self.keep(p, (1 << bits,), "float32", f"{what} code book")


OPTIMIZERS: dict[OptimizerName, type[Optimizer]] = {"adamw_torch_8bit": TorchaoAdamW, "adamw_torch_4bit": TorchaoAdamW}
