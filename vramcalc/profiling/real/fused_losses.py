"""Liger's and TRL's losses on real models, and what lets their own code run on fake tensors.

Both launch Triton kernels and branch on ``device.type == "cuda"``. Under a fake device the kernels, which write into
buffers that exist already, are not launched, and the branches are taken as on CUDA.
"""

from __future__ import annotations

import inspect
import sys
import types
from typing import Any

import torch
from torch import nn

from vramcalc.errors import Unsupported
from vramcalc.inputs.stack import OWN_LOSSES, Stack

TRL_OUTPUTS = ("log_probs", "entropy", "is_top1")
"""What ``SFTTrainer`` asks its fused head for."""


def install(model: nn.Module, stack: Stack) -> None:
    """Give a loaded model, before adapters, the loss of its recipe.

    Raises:
        ImportError: liger-kernel or trl is not installed.
    """
    if stack.loss == "fused_linear":
        from liger_kernel.transformers import _apply_liger_kernel_to_instance

        _apply_liger_kernel_to_instance(model, rope=False, swiglu=False, rms_norm=False)
    elif stack.loss == "chunked":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=TRL_OUTPUTS)


def sft_loss(outputs: Any) -> torch.Tensor:
    """``SFTTrainer.compute_loss`` from the outputs of the fused head.

    References:
        trl 1.16 trainer/sft_trainer.py.
    """
    per_token_loss = -outputs.log_probs
    num_tokens = outputs.label_mask.sum()
    loss: torch.Tensor = per_token_loss.sum() / torch.as_tensor(num_tokens).clamp(min=1)
    return loss


def replacements(stack: Stack, compute_capability: tuple[int, int]) -> list[tuple[Any, str, Any]]:
    """Attributes to replace while a fake device stands for CUDA: ``(owner, name, value)``.

    Raises:
        Unsupported: kernels that this module cannot install.
    """
    if stack.fused_kernels != "none" or stack.loss == "fused_cross_entropy":
        raise Unsupported(
            f"no trace of fused_kernels={stack.fused_kernels!r} with loss={stack.loss!r}: only the plugin itself "
            "installs these kernels; use trace_custom with a model that has them"
        )
    if stack.loss in ("full", *OWN_LOSSES):
        return []
    from triton.runtime.jit import JITFunction

    found: list[tuple[Any, str, Any]] = [
        (JITFunction, "__getitem__", lambda _self, _grid: lambda *_a, **_k: None),
        (torch.cuda, "get_device_capability", lambda *_a: compute_capability),
    ]
    if stack.loss == "chunked":
        import trl.kernels.chunked_logprob as chunked
        import trl.trainer.utils as trl_utils

        found += [
            (chunked, "_use_triton", lambda _device: True),
            (trl_utils, "_use_triton", lambda _device: True),
            (chunked, "_addmm_fp32", lambda _acc, _a, _b: None),
        ]
    else:
        import liger_kernel.ops.fused_linear_cross_entropy as fused

        on_cuda = _with_device_name(fused, "cpu")
        found += [
            (fused, "fused_linear_cross_entropy_forward", on_cuda.fused_linear_cross_entropy_forward),
            (torch, "addmm", lambda acc, _a, _b, **_k: acc),
        ]
    return found


def _with_device_name(module: types.ModuleType, device: str) -> types.ModuleType:
    """A copy of a module in which the literal ``"cuda"`` reads as the device that stands for it."""
    name = f"{module.__name__}_on_{device}"
    if name not in sys.modules:
        copy = types.ModuleType(name)
        source = inspect.getsource(module).replace('"cuda"', f'"{device}"')
        exec(compile(source, name, "exec"), copy.__dict__)  # noqa: S102 - the library's own source, one word changed
        sys.modules[name] = copy
    return sys.modules[name]
