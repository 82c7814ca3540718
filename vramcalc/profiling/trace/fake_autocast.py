"""CUDA's autocast where the CPU's differs: what it runs in float32.

References:
    torch 2.13, aten/src/ATen/autocast_mode.h: ``AT_FORALL_FP32``, which autocast_mode.cpp registers for CUDA alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

IN_FLOAT32 = (
    *("acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log1p", "log2", "reciprocal", "rsqrt"),
    *("sinh", "tan", "softplus", "pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"),
)
"""Element by element; the CPU's autocast runs them in the dtype they are given."""


def _raised(operator: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        with torch.autocast("cpu", enabled=False):
            return operator(*map(_raise, arguments))

    return run


def _raise(argument: Any) -> Any:
    floating = isinstance(argument, torch.Tensor) and argument.dtype in (torch.float16, torch.bfloat16)
    return argument.float() if floating else argument


@contextlib.contextmanager
def powers_in_float32() -> Iterator[None]:
    """The CPU's autocast raises what CUDA's raises; undone on exit."""
    library = torch.library.Library("aten", "IMPL", "AutocastCPU")  # type: ignore[no-untyped-call]
    try:
        for name in IN_FLOAT32:
            packet, _, overload = name.partition(".")
            operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
            library.impl(name, _raised(operator))  # type: ignore[no-untyped-call]
        yield
    finally:
        library._destroy()  # type: ignore[no-untyped-call]


def cross_entropy(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """CUDA's autocast raises the log-probabilities to float32, where the CPU's raises the logits."""

    def run(x: torch.Tensor, target: torch.Tensor, *args: Any, **more: Any) -> torch.Tensor:
        if x.dtype == torch.float32 or not torch.is_autocast_enabled("cpu"):
            return real(x, target, *args, **more)
        with torch.autocast("cpu", enabled=False):
            log_probs = torch.log_softmax(x, 1).float()
            return nn.functional.nll_loss(log_probs, target, *args, **more)

    return run
