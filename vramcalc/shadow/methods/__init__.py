"""Methods of fine-tuning, one file each: what trains, and what wraps a layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vramcalc.errors import Unsupported
from vramcalc.inputs.stack import AdaLoRA, Method, Stack
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.modules import Factory, RMSNorm
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.shadow.fused.fms_acceleration import FusedRMSNorm
from vramcalc.shadow.methods import adalora, dora, full, fused_lora, lora, p_tuning, prefix_tuning, prompt_tuning
from vramcalc.shadow.methods.around_step import AroundStep
from vramcalc.shadow.quantization.loading_4bit import Factory4bit

METHODS = {
    spec: module.attach
    for module in (full, lora, dora, adalora, prompt_tuning, p_tuning, prefix_tuning)
    for spec in module.SPECS
}
"""What makes a loaded net ready to train, by the method's class: one that is built on another is not that other."""


AROUND_STEP: dict[type[Method], Callable[[CausalLM, Any, Callable[[Parameter], int]], AroundStep]] = {
    AdaLoRA: adalora.RankAllocation
}
"""What a method does around a step, by its class; nothing where it is not there."""


def factory(engine: Engine, method: Method, stack: Stack) -> Factory:
    """What makes the leaves of a model: how its weights are stored does not depend on what trains."""
    norm_class = RMSNorm if stack.fused_kernels == "none" else FusedRMSNorm
    if method.storage is not None:
        return Factory4bit(engine, method.storage, stack, norm_class)
    return Factory(engine, stack.dtype, norm_class)


def attach(net: CausalLM, method: Method, stack: Stack, rank: Size | None) -> None:
    """Make a loaded model ready to train.

    Args:
        net: the loaded model.
        method: what trains.
        stack: the recipe.
        rank: a symbol in place of the method's own rank.

    Raises:
        Unsupported: nobody has written what this method makes of a layer.
    """
    found = METHODS.get(type(method))
    if found is None:
        known = ", ".join(sorted(spec.model_fields["kind"].default for spec in METHODS))
        raise Unsupported(f"method {method.kind!r} is not modelled; those that are: {known}")
    found(net, method, stack, rank)
    if stack.fused_kernels != "none":
        fused_lora.install(net)


def around_step(net: CausalLM, method: Method, repeats: Callable[[Parameter], int]) -> AroundStep:
    """What a method does to the loss and after the optimizer.

    Args:
        net: with what the method attached.
        method: what trains.
        repeats: layers at full depth that a parameter stands for.
    """
    found = AROUND_STEP.get(type(method))
    return AroundStep() if found is None else found(net, method, repeats)


def without_gradient(net: CausalLM) -> set[Parameter]:
    """Parameters that never get a gradient, though they may be set to train: weights of fused norms."""
    return {module.weight for _, _, module in net.modules() if isinstance(module, FusedRMSNorm)}
