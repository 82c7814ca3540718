"""Traces: the exact allocations of a real training step of the real libraries, on a machine without a GPU.

Needs the extra ``profile``. No weights, no network; a 70B model takes a minute, a two-layer one a second.
"""

from __future__ import annotations

import contextlib
import gc
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from vramcalc.profiling import fake, fused_losses
from vramcalc.profiling.job import attach, build_model, build_optimizer
from vramcalc.profiling.loop import Loop
from vramcalc.profiling.recorder import Allocation, Recorder
from vramcalc.shadow.kernels import cublas_workspace_bytes
from vramcalc.specs import Method, ModelSpec, QLoRA, Stack, TrainingSpec


@dataclass(frozen=True)
class Trace:
    """What a traced job asked the allocator for.

    Attributes:
        allocations: every storage, in order of birth.
        events: ``id`` for a birth, ``~id`` for a death, in order.
        marks: ``(index into events, phase)``.
        start: index of the first event after loading.
    """

    allocations: list[Allocation]
    events: list[int]
    marks: list[tuple[int, str]]
    start: int

    def peak(self) -> tuple[int, int]:
        """Largest sum of live storages while training, and the number of events until then. [B], [1]"""
        current = best = at = 0
        for index, event in enumerate(self.events):
            if event >= 0:
                current += self.allocations[event].size
                if index >= self.start - 1 and current > best:
                    best, at = current, index + 1
            else:
                current -= self.allocations[~event].size
                if index == self.start - 1:
                    best, at = max(best, current), index + 1
        return best, at

    def live_at(self, n_events: int) -> list[Allocation]:
        """Storages alive after the first ``n_events`` events."""
        alive: dict[int, Allocation] = {}
        for event in self.events[:n_events]:
            if event >= 0:
                alive[event] = self.allocations[event]
            else:
                del alive[~event]
        return list(alive.values())


@contextlib.contextmanager
def _fake_cuda(
    recorder: Recorder, stack: Stack, compute_capability: tuple[int, int], *, padded: bool
) -> Iterator[None]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    gc.collect()
    gc.disable()
    try:
        with (
            warnings.catch_warnings(),
            fake.cuda_choices(stack, compute_capability, padded=padded),
            FakeTensorMode(allow_non_fake_inputs=True),
            recorder,
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.enable()


def _name_modules(recorder: Recorder, model: nn.Module) -> None:
    def leave(*_: object) -> None:
        recorder.modules.pop()

    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _m, _a, name=name: recorder.modules.append(name))
        module.register_forward_hook(leave, always_call=True)


class _Marker:
    """Marks of a loop, with the cuBLAS workspaces that appear at the first product of each thread."""

    def __init__(self, recorder: Recorder, workspace_bytes: int) -> None:
        self.recorder, self.workspace_bytes = recorder, workspace_bytes
        self.missing = {"forward": "cuBLAS workspace (main thread)", "backward": "cuBLAS workspace (autograd thread)"}

    def mark(self, phase: str) -> None:
        self.recorder.mark(phase)
        what = self.missing.pop(phase.rsplit(".", 1)[-1], None)
        if what is not None and self.workspace_bytes:
            self.recorder.allocate(self.workspace_bytes, what).label = "workspace"

    def label(self, tensor: torch.Tensor, label: str) -> None:
        self.recorder.label(tensor, label)


def trace(
    model: ModelSpec,
    method: Method,
    training: TrainingSpec,
    stack: Stack,
    *,
    compute_capability: tuple[int, int] = (8, 0),
    layers: int | None = None,
    steps: int = 2,
    seq_lens: tuple[int, ...] = (),
    kernel_buffers: bool = True,
    adapt: Callable[[nn.Module], nn.Module] | None = None,
) -> Trace:
    """Run ``steps`` real optimizer steps of a job on fake tensors and record what they allocate.

    Args:
        model: what to build.
        method: what trains.
        training: batch, length, optimizer, checkpointing.
        stack: the recipe.
        compute_capability: GPU generation whose kernel choices are forced.
        layers: decoder layers to build instead of the model's own number.
        steps: optimizer steps; the second one is the first with optimizer state.
        seq_lens: length of each step instead of ``training.seq_len``. [tokens]
        kernel_buffers: add what CUDA kernels and cuBLAS allocate for themselves.
        adapt: wraps the loaded model instead of PEFT's LoRA, for methods that only a trace knows.

    Returns:
        The trace, loading included.
    """
    recorder = Recorder(fake.hidden_buffers(compute_capability) if kernel_buffers else lambda *_: [])
    with _fake_cuda(recorder, stack, compute_capability, padded=training.padded):
        built = build_model(model, stack, layers=layers)
        if isinstance(method, QLoRA):
            fake.quantize_linears(built, method)
        fused_losses.install(built, stack)
        built = attach(built, method, training, stack, prepare_kbit=fake.prepare_kbit, adapt=adapt)
        gc.collect()
        for parameter in built.parameters():
            recorder.label(parameter, "parameter")
        recorder.label_rest("buffer")
        _name_modules(recorder, built)
        marker = _Marker(recorder, cublas_workspace_bytes(compute_capability) if kernel_buffers else 0)
        loop = Loop(built, build_optimizer(built, training, stack), training, stack, marker)
        start = len(recorder.events)
        for index in range(steps):
            loop.step(index, seq_lens[index] if seq_lens else None)
        n_events = len(recorder.events)
        recorder.mark("exit")
    return Trace(recorder.allocations, recorder.events[:n_events], recorder.marks, start)


def describe(allocation: Allocation) -> str:
    """One line on one storage."""
    shape = "x".join(map(str, allocation.shape))
    where: Any = allocation.node or allocation.module or "-"
    return f"{allocation.size:>14,} {allocation.dtype:9} {shape:20} {allocation.op} [{where}] {allocation.phase}"
