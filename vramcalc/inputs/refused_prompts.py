"""What PEFT does not run with virtual tokens, and what nobody has compared with a trace of them."""

from __future__ import annotations

from vramcalc.errors import Unsupported
from vramcalc.inputs.method import Method
from vramcalc.inputs.releases import PEFT_PREFIX, PEFT_PROMPTS, minor_release
from vramcalc.inputs.stack import OWN_LOSSES, ModelSpec, Stack, TrainingSpec


def refuse_prompts(model: ModelSpec, method: Method, training: TrainingSpec, stack: Stack) -> None:
    """Refuse settings that do not go with a method that has virtual tokens.

    Raises:
        Unsupported: both settings are named.
    """
    if not method.num_virtual_tokens:
        return
    since = PEFT_PREFIX if method.virtual_keys_only else PEFT_PROMPTS
    if (minor_release(stack.peft) or (0, 0)) < since:
        raise Unsupported(
            f"peft={stack.peft!r} with method {method.kind!r} has not been compared with a trace; use "
            f"peft='{since[0]}.{since[1]}' or later"
        )
    if stack.fused_kernels != "none" or stack.loss == "fused_cross_entropy":
        setting = f"fused_kernels={stack.fused_kernels!r}"
        setting = setting if stack.fused_kernels != "none" else f"loss={stack.loss!r}"
        raise Unsupported(f"{setting} with method {method.kind!r} has not been compared; leave one of them out")
    if method.virtual_keys_only:
        _prefix(model, method, training, stack)
    elif stack.loss in OWN_LOSSES:
        raise Unsupported(
            f"loss={stack.loss!r} with method {method.kind!r} stops: the model gives logits of "
            f"{method.num_virtual_tokens:,} virtual tokens too, for which a loop of one's own has no labels; use "
            "loss='full', to which PEFT hands longer labels"
        )


def _prefix(model: ModelSpec, method: Method, training: TrainingSpec, stack: Stack) -> None:
    """Refuse what keys and values from a cache do not go with."""
    if training.gradient_checkpointing != "none":
        raise Unsupported(
            f"gradient_checkpointing={training.gradient_checkpointing!r} with method {method.kind!r}: layers that are "
            "computed again are given no cache, and prefixes are one, so that PEFT refuses them together; use "
            "gradient_checkpointing='none', or method 'prompt_tuning'"
        )
