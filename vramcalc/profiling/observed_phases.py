"""Memory by phase of a training loop that somebody else wrote: forward, backward and optimizer, seen from outside."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from vramcalc.profiling.real.loop import Marker


class Watch:
    """Marks phases and labels gradients and optimizer states while it is entered.

    A forward pass begins where a module of the model is called outside any other, and a new micro-step where that
    happens after a backward pass.
    """

    def __init__(self, model: nn.Module, marker: Marker) -> None:
        self.model, self.marker = model, marker
        self._undo = contextlib.ExitStack()
        self._step = self._micro = 0
        self._phase = ""
        self._inside = 0

    def begin(self, step: int) -> None:
        """A step begins."""
        self._step, self._micro = step, 0
        self._mark(f"step{step}")

    def _mark(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self.marker.mark(phase)

    def _enter_module(self, *_: object) -> None:
        self._inside += 1
        # Checkpointing calls modules again inside the backward pass.
        if self._inside == 1:
            if self._phase.endswith(".backward"):
                self._micro += 1
            self._mark(f"step{self._step}.{self._micro}.forward")

    def _leave_module(self, *_: object) -> None:
        self._inside -= 1

    def _backward(self, *args: Any, **kwargs: Any) -> None:
        outermost = self._inside == 0
        self._inside += 1
        try:
            if outermost:
                self._mark(f"step{self._step}.{self._micro}.backward")
            self._run_backward(*args, **kwargs)
        finally:
            self._inside -= 1
        if outermost:
            for parameter in self.model.parameters():
                if parameter.grad is not None:
                    self.marker.label(parameter.grad, "gradient")

    def _optimizer_begins(self, *_: object) -> None:
        self._mark(f"step{self._step}.optimizer")

    def _optimizer_ends(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for state in optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    self.marker.label(value, "optimizer")

    def __enter__(self) -> Watch:
        for module in self.model.modules():
            self._undo.callback(module.register_forward_pre_hook(self._enter_module).remove)
            self._undo.callback(module.register_forward_hook(self._leave_module, always_call=True).remove)
        self._undo.callback(register_optimizer_step_pre_hook(self._optimizer_begins).remove)
        self._undo.callback(register_optimizer_step_post_hook(self._optimizer_ends).remove)
        self._run_backward = torch.autograd.backward
        self._undo.callback(setattr, torch.autograd, "backward", self._run_backward)
        torch.autograd.backward = self._backward
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()
