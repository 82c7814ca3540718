"""The CPU's autocast, made to raise what CUDA's raises."""

from __future__ import annotations

import pytest
import torch

from vramcalc.profiling.trace.fake_autocast import IN_FLOAT32, powers_in_float32

X = torch.full((4,), 0.5, dtype=torch.bfloat16)


def squared() -> torch.dtype:
    with torch.autocast("cpu", torch.bfloat16):
        return torch.square(X).dtype


def test_a_square_is_raised_inside_and_not_after() -> None:
    assert squared() == torch.bfloat16
    with powers_in_float32():
        assert squared() == torch.float32
        assert torch.square(X).dtype == torch.bfloat16
    assert squared() == torch.bfloat16


def test_what_is_raised_keeps_gradients_in_the_dtype_of_what_it_was_given() -> None:
    x = X.clone().requires_grad_()
    with powers_in_float32(), torch.autocast("cpu", torch.bfloat16):
        y = torch.square(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("name", IN_FLOAT32)
def test_cuda_has_a_rule_for_each_and_the_cpu_has_none(name: str) -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    assert has(f"aten::{name}", "AutocastCUDA")
    assert not has(f"aten::{name}", "AutocastCPU")
