"""Optimizers by transformers' names: the library of each, how it stores its states, what its step goes through.

What a step allocates is in ``shadow/training/optimizers``, one file per library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

OptimizerName = Literal[
    "adamw_torch_fused",
    "adamw_torch",
    "adamw_torch_loop",
    "adamw_torch_8bit",
    "adamw_torch_4bit",
    "adamw_bnb_32bit",
    "adamw_bnb_8bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "lion_32bit",
    "lion_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
    "sgd",
    "sgd_momentum",
    "adafactor",
]


@dataclass(frozen=True)
class OptimizerFacts:
    """What a name stands for.

    Attributes:
        library: that it comes from.
        algorithm: of its update.
        accesses: times that a step reads or writes an element as wide as the parameter; states in 8 or 4 bits are not
            counted. One kernel goes through parameter, gradient and two moments once, torch's multi-tensor AdamW
            operator by operator.
        moments: states for each parameter.
        state_bits: of a state's element; None, those of the parameter.
        paged: states lie in managed memory, which moves to the host.
        one_kernel: torch's fused kernel, which takes a loss scale along.
        also: further names, as transformers has them.
    """

    library: Literal["torch", "torchao", "transformers", "bitsandbytes"]
    algorithm: Literal["adamw", "lion", "sgd", "adafactor"]
    accesses: int
    moments: int = 2
    state_bits: int | None = None
    paged: bool = False
    one_kernel: bool = False
    also: tuple[str, ...] = ()

    @property
    def low_bit(self) -> bool:
        """States in 8 or 4 bits."""
        return self.state_bits is not None and self.state_bits <= 8


OPTIMIZERS: Mapping[OptimizerName, OptimizerFacts] = {
    "adamw_torch_fused": OptimizerFacts("torch", "adamw", 7, one_kernel=True),
    "adamw_torch": OptimizerFacts("torch", "adamw", 19),
    "adamw_torch_loop": OptimizerFacts("torch", "adamw", 19),
    "adamw_torch_8bit": OptimizerFacts("torchao", "adamw", 3, state_bits=8),
    "adamw_torch_4bit": OptimizerFacts("torchao", "adamw", 3, state_bits=4),
    "adamw_bnb_32bit": OptimizerFacts("bitsandbytes", "adamw", 7, state_bits=32),
    "adamw_bnb_8bit": OptimizerFacts("bitsandbytes", "adamw", 3, state_bits=8, also=("adamw_8bit",)),
    "paged_adamw_32bit": OptimizerFacts("bitsandbytes", "adamw", 7, state_bits=32, paged=True, also=("paged_adamw",)),
    "paged_adamw_8bit": OptimizerFacts("bitsandbytes", "adamw", 3, state_bits=8, paged=True),
    "lion_32bit": OptimizerFacts("bitsandbytes", "lion", 5, moments=1, state_bits=32, also=("lion",)),
    "lion_8bit": OptimizerFacts("bitsandbytes", "lion", 3, moments=1, state_bits=8),
    "paged_lion_32bit": OptimizerFacts("bitsandbytes", "lion", 5, moments=1, state_bits=32, paged=True),
    "paged_lion_8bit": OptimizerFacts("bitsandbytes", "lion", 3, moments=1, state_bits=8, paged=True),
    "sgd": OptimizerFacts("torch", "sgd", 3, moments=0),
    "sgd_momentum": OptimizerFacts("torch", "sgd", 5, moments=1),
    "adafactor": OptimizerFacts("transformers", "adafactor", 14, moments=1),
}

ALIASES: Mapping[str, OptimizerName] = {alias: name for name, facts in OPTIMIZERS.items() for alias in facts.also}
