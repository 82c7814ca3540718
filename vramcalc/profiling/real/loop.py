"""The training loop of a recipe, written out so that every step can be marked.

It does what ``Trainer`` or the raw loop named by the recipe does, in that order.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from vramcalc.inputs.stack import OWN_LOSSES, Stack, TrainingSpec
from vramcalc.profiling.real import fused_losses
from vramcalc.profiling.real.libraries import torch_dtype


class Marker(Protocol):
    """What a job tells whoever watches it."""

    def mark(self, phase: str) -> None:
        """A phase begins."""

    def label(self, tensor: torch.Tensor, label: str) -> None:
        """A tensor is a gradient, an optimizer state."""


@contextlib.contextmanager
def _autocast(stack: Stack, device: str) -> Iterator[None]:
    if stack.autocast is None:
        yield
    else:
        with torch.autocast(device, torch_dtype(stack.autocast)):
            yield


class Loop:
    """The training loop of a recipe over one model, step by step; ``after_step`` follows the optimizer's."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        training: TrainingSpec,
        stack: Stack,
        marker: Marker,
        after_step: Callable[[], None] = lambda: None,
    ) -> None:
        self.after_step = after_step
        self.model, self.optimizer, self.training, self.stack, self.marker = model, optimizer, training, stack, marker
        self.trainable = [p for p in model.parameters() if p.requires_grad]
        self.device = self.trainable[0].device.type
        self.outputs: Any = None
        self.scaler = torch.amp.GradScaler(self.device) if stack.autocast == "float16" else None

    def batch(self, seq_len: int) -> dict[str, torch.Tensor]:
        """Token ids, labels and, where the recipe has one, attention mask of one micro-batch, int64."""
        ids = torch.zeros(self.training.micro_batch_size, seq_len, dtype=torch.long, device=self.device)
        batch = {"input_ids": ids, "labels": ids.clone()}
        return {**batch, "attention_mask": torch.ones_like(ids)} if self.stack.passes_attention_mask else batch

    def micro_step(self, tag: str, seq_len: int) -> None:
        """Forward and backward of one micro-batch."""
        stack = self.stack
        self.marker.mark(f"{tag}.forward")
        batch = self.batch(seq_len)
        outputs = self._forward(batch)
        if stack.keeps_outputs != "no":
            self.outputs = outputs
        loss: Any = self._loss(outputs, batch["labels"])
        del outputs
        if stack.keeps_outputs == "no":
            del batch
        self.marker.mark(f"{tag}.backward")
        if self.scaler is None:
            loss.backward()
        else:
            self.scaler.scale(loss).backward()
        for parameter in self.trainable:
            if parameter.grad is not None:
                self.marker.label(parameter.grad, "gradient")
        if stack.keeps_outputs == "backward":
            self.outputs = None

    def _forward(self, batch: dict[str, torch.Tensor]) -> Any:
        """The model's call; a loss of the loop's own needs no labels there."""
        stack, given = self.stack, dict(batch)
        if stack.loss in OWN_LOSSES:
            del given["labels"]
        with _autocast(stack, self.device):
            outputs = self.model(**given, **({"fused_lm_head": True} if stack.loss == "chunked" else {}))
        if stack.autocast is not None and stack.outputs_to_float32:
            from accelerate.utils.operations import convert_to_fp32

            outputs = convert_to_fp32(outputs)
        return outputs

    def _loss(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """The model's loss, TRL's, or the loop's own, which autocast sees too."""
        if self.stack.loss == "chunked":
            return fused_losses.sft_loss(outputs)
        if self.stack.loss not in OWN_LOSSES:
            loss: torch.Tensor = outputs["loss"]
            return loss
        logits = outputs["logits"]
        with _autocast(self.stack, self.device):
            if self.stack.loss == "shifted_cross_entropy":
                logits, labels = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()
            return nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), labels.view(-1))

    def optimizer_step(self, tag: str) -> None:
        """Clip, step, drop gradients."""
        self.marker.mark(f"{tag}.optimizer")
        if self.training.max_grad_norm:
            if self.scaler is not None:
                self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.trainable, self.training.max_grad_norm, foreach=True)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.after_step()
        for state in self.optimizer.state.values():
            for value in state.values():
                if isinstance(value, torch.Tensor):
                    self.marker.label(value, "optimizer")
        if self.stack.zero_grad == "end":
            self.marker.mark(f"{tag}.zero_grad")
            self._zero_grad()
        if self.stack.keeps_outputs == "step":
            self.outputs = None

    def _zero_grad(self) -> None:
        if not self.stack.zero_grad_set_to_none:
            self.optimizer.zero_grad(set_to_none=False)
            return
        for parameter in self.trainable:
            parameter.grad = None

    def step(self, index: int, seq_len: int | None = None) -> None:
        """One optimizer step."""
        tag = f"step{index}"
        if self.stack.zero_grad == "start":
            self.marker.mark(f"{tag}.zero_grad")
            self._zero_grad()
        micro_steps = self.training.gradient_accumulation_steps
        for micro in range(micro_steps):
            self.micro_step(f"{tag}.{micro}", seq_len or self.training.seq_len)
        self.optimizer_step(tag)
