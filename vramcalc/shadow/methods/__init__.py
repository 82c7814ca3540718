"""Methods of fine-tuning, one file each: how weights are stored, what trains, what wraps a layer."""

from __future__ import annotations

from vramcalc.inputs.stack import FullFineTuning, LoRA, Method, QLoRA, Stack
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.modules import Factory, RMSNorm
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.families.llama import CausalLM
from vramcalc.shadow.fused.fms_acceleration import FusedRMSNorm
from vramcalc.shadow.methods import full, fused_lora, lora
from vramcalc.shadow.quantization.loading_4bit import Factory4bit


def factory(engine: Engine, method: Method, stack: Stack) -> Factory:
    """What makes the leaves of a model under a method."""
    norm_class = RMSNorm if stack.fused_kernels == "none" else FusedRMSNorm
    if isinstance(method, QLoRA):
        return Factory4bit(engine, method, stack, norm_class)
    return Factory(engine, stack.dtype, norm_class)


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
            if stack.fused_kernels != "none":
                fused_lora.install(net)


def without_gradient(net: CausalLM) -> set[Parameter]:
    """Parameters that never get a gradient, though they may be set to train: weights of fused norms."""
    return {module.weight for _, _, module in net.modules() if isinstance(module, FusedRMSNorm)}
