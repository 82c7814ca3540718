"""What PEFT does not run with virtual tokens, and what nobody has compared with a trace of them."""

from __future__ import annotations

from vramcalc.errors import Unsupported
from vramcalc.inputs.method import Method
from vramcalc.inputs.releases import PREFIXES, PROMPTS, minor_release
from vramcalc.inputs.stack import OWN_LOSSES, ModelSpec, Stack, TrainingSpec, kbit_prepared


def refuse_prompts(model: ModelSpec, method: Method, training: TrainingSpec, stack: Stack) -> None:
    """Refuse settings that do not go with a method that has virtual tokens.

    Raises:
        Unsupported: both settings are named.
    """
    if not method.num_virtual_tokens:
        return
    for library, (major, minor) in (PREFIXES if method.virtual_keys_only else PROMPTS).items():
        version = getattr(stack, library)
        if (minor_release(version) or (0, 0)) < (major, minor):
            raise Unsupported(
                f"{library}={version!r} with method {method.kind!r} has not been compared with a trace; use "
                f"{library}='{major}.{minor}' or later"
            )
    if stack.fused_kernels != "none" or stack.loss == "fused_cross_entropy":
        setting = f"fused_kernels={stack.fused_kernels!r}"
        setting = setting if stack.fused_kernels != "none" else f"loss={stack.loss!r}"
        raise Unsupported(f"{setting} with method {method.kind!r} has not been compared; leave one of them out")
    if not kbit_prepared(method, stack) and {stack.dtype, stack.autocast} == {"bfloat16", "float16"}:
        raise Unsupported(
            f"dtype={stack.dtype!r} with autocast={stack.autocast!r} and method {method.kind!r} stops: under autocast "
            "torch.cat, which joins what is learned with the rest, takes no other 16-bit type; let both be one"
        )
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
    windows = [window for window in model.windows if window is not None]
    if model.family.full_between and windows and method.num_virtual_tokens >= min(windows):
        raise Unsupported(
            f"{model.name}: num_virtual_tokens={method.num_virtual_tokens:,} with method {method.kind!r} fills the "
            f"window of {min(windows):,} keys that every other layer's cache keeps, which has not been compared; use "
            "fewer"
        )
