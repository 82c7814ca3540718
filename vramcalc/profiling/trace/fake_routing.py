"""A balanced router for traces: how many tokens an expert gets depends on values, which fake tensors do not have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from vramcalc.shadow.families.common.experts import balanced_share

Replacement = tuple[Any, str, Any]


class _Router:
    """What the questions of one block's forward pass are answered by: its experts, and which of them asks."""

    def __init__(self) -> None:
        self.experts = self.pairs = self.asked = 0

    def one_hot(self, indices: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
        """``one_hot`` as CUDA runs it; a new block begins."""
        self.experts, self.pairs, self.asked = num_classes, indices.numel(), 0
        return indices.new_zeros((*indices.shape, num_classes)).scatter_(-1, indices.unsqueeze(-1), 1)

    def positions(self, n: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Two columns of indices, as ``where`` of a matrix gives."""
        columns = like.new_empty((2, n), dtype=torch.long).unbind(0)
        return columns[0], columns[1]

    def where(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """``torch.where(mask)``: the next expert's share."""

        def where(condition: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs:
                return real(condition, *args, **kwargs)
            share = balanced_share(self.pairs, self.experts, self.asked)
            self.asked += 1
            return self.positions(int(share), condition)

        return where

    def nonzero(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """``nonzero`` of which experts have tokens: all have."""

        def nonzero(x: torch.Tensor, **kwargs: Any) -> Any:
            if not isinstance(x, FakeTensor) or x.dim() != 1:
                return real(x, **kwargs)
            rows = list(x.new_empty((x.shape[0], 1), dtype=torch.long).unbind(0))
            for number, row in enumerate(rows):
                with unset_fake_temporarily():
                    row.constant = torch.tensor([number])  # type: ignore[attr-defined]
            return _Hit(rows)

        return nonzero


class _Hit(list[torch.Tensor]):
    """Numbers of the experts that have tokens, one tensor each, or as numbers."""

    def tolist(self) -> list[int]:
        """``nonzero(as_tuple=True)[0].tolist()``."""
        return list(range(len(self)))

    def __getitem__(self, _index: Any) -> Any:
        return self


def _listed(real: Callable[..., Any]) -> Callable[..., Any]:
    """``tolist`` of an expert's tokens, whichever they are."""

    def tolist(x: torch.Tensor) -> Any:
        return [0] * x.numel() if isinstance(x, FakeTensor) and x.dim() == 1 else real(x)

    return tolist


def replacements() -> list[Replacement]:
    """Data-dependent questions of a mixture of experts, answered as a balanced router would."""
    router = _Router()
    return [
        (torch.nn.functional, "one_hot", router.one_hot),
        (torch, "where", router.where(torch.where)),
        (torch.Tensor, "nonzero", router.nonzero(torch.Tensor.nonzero)),
        (torch.Tensor, "tolist", _listed(torch.Tensor.tolist)),
    ]
