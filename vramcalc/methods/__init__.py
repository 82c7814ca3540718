"""Methods of fine-tuning, one file each: how weights are stored, what trains, what wraps a layer."""

from __future__ import annotations

from vramcalc.families.llama import CausalLM
from vramcalc.methods import full, lora
from vramcalc.methods.qlora import Factory4bit
from vramcalc.shadow.autograd import Engine
from vramcalc.shadow.dims import Size
from vramcalc.shadow.modules import Factory
from vramcalc.specs import FullFineTuning, LoRA, Method, QLoRA, Stack


def factory(engine: Engine, method: Method, stack: Stack) -> Factory:
    """What makes the leaves of a model under a method."""
    return Factory4bit(engine, method, stack) if isinstance(method, QLoRA) else Factory(engine, stack.dtype)


def attach(net: CausalLM, method: Method, stack: Stack, rank: Size | None) -> None:
    """Make a loaded model ready to train.

    Args:
        net: the loaded model.
        method: what trains.
        stack: the recipe.
        rank: a symbol in place of the method's own rank.
    """
    match method:
        case FullFineTuning():
            full.attach(net)
        case LoRA():
            lora.attach(net, method, stack, method.rank if rank is None else rank)
