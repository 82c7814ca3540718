"""What each optimizer keeps, and what its step allocates on the way: one file per library.

Written in the order of the libraries' own loops, variable by variable: a temporary that a loop leaves in a local lives
until the next iteration overwrites it.
"""

from __future__ import annotations

from vramcalc.inputs.optimizers import OPTIMIZERS as FACTS
from vramcalc.inputs.optimizers import OptimizerName
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.training.optimizers import bitsandbytes, torch, torchao, transformers
from vramcalc.shadow.training.optimizers.base import Groups
from vramcalc.shadow.training.optimizers.base import Optimizer as Optimizer

OPTIMIZERS: dict[OptimizerName, type[Optimizer]] = {
    name: optimizer
    for library in (torch, torchao, transformers, bitsandbytes)
    for name, optimizer in library.OPTIMIZERS.items()
}


def build(name: OptimizerName, e: Engine, groups: Groups, kept_in_float32: frozenset[str]) -> Optimizer:
    """The optimizer by its transformers name.

    Args:
        name: of it.
        e: the engine.
        groups: parameter groups.
        kept_in_float32: names of the parameters whose states 8-bit optimizers of bitsandbytes keep in float32.
    """
    return OPTIMIZERS[name](e, groups, FACTS[name], kept_in_float32)
