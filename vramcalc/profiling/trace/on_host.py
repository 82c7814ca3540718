"""What a model keeps on the host and copies to the device, where the device is the host's stand-in."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class _OnHost:
    """Token ids on the host: a copy of them on the device is a tensor of its own."""

    def __init__(self, n: int, batch: int = 1) -> None:
        self.n, self.batch = n, batch

    def unsqueeze(self, _dim: int) -> _OnHost:
        return self

    def expand(self, batch: int, _same: int) -> _OnHost:
        return _OnHost(self.n, batch)

    def to(self, _device: object) -> torch.Tensor:
        return torch.zeros(self.batch, self.n, dtype=torch.long)


def keep_prompts_on_host(model: nn.Module) -> None:
    """Leave PEFT's virtual tokens where they are, on the host, from which every forward pass copies them."""
    tokens: Any = getattr(model, "prompt_tokens", {})
    for name in tokens:
        tokens[name] = _OnHost(tokens[name].numel())
