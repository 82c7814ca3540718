"""Traces: the exact allocations of a real training step of the real libraries, on a machine without a GPU.

Needs the extra ``profile``. No weights, no network; a 70B model takes a minute, a two-layer one a second.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vramcalc.inputs.stack import Method, ModelSpec, Stack, TrainingSpec
from vramcalc.profiling.observed_phases import Watch
from vramcalc.profiling.real import fused_losses
from vramcalc.profiling.real.libraries import after_step, attach, build_model
from vramcalc.profiling.real.loop import Loop
from vramcalc.profiling.real.optimizers import build_optimizer
from vramcalc.profiling.trace import fake_device
from vramcalc.profiling.trace.on_host import keep_prompts_on_host
from vramcalc.profiling.trace.recorder import Recorder
from vramcalc.profiling.trace.result import Trace, describe
from vramcalc.shadow.engine.kernels import cublas_workspace_bytes

__all__ = ["Trace", "describe", "trace", "trace_custom"]


@contextlib.contextmanager
def _fake_cuda(
    recorder: Recorder, stack: Stack, compute_capability: tuple[int, int], *, padded: bool
) -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        with (
            warnings.catch_warnings(),
            fake_device.cuda_choices(stack, compute_capability, padded=padded),
            FakeTensorMode(allow_non_fake_inputs=True),
            recorder,
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        gc.enable()


def _label_loaded(recorder: Recorder, model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        recorder.label(parameter, "parameter", module=name)
    for name, buffer in model.named_buffers():
        recorder.label(buffer, "buffer", module=name)
    recorder.label_rest("buffer")


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
        kind = phase.rsplit(".", 1)[-1]
        what = self.missing.pop(kind, None)
        if what is None or not self.workspace_bytes:
            return
        if kind == "forward":
            self.recorder.at_product = lambda: self._allocate(what)
        else:
            # Not at its first product: see vramcalc.shadow.training.requests.with_workspace_at_product.
            self._allocate(what)

    def _allocate(self, what: str) -> None:
        made = self.recorder.allocate(self.workspace_bytes, what)
        # It is no module's, whichever happens to run the first product.
        made.label, made.module = "workspace", ""

    def label(self, tensor: torch.Tensor, label: str) -> None:
        self.recorder.label(tensor, label)


def _keeping_ranks(after_step: Callable[[], None]) -> Callable[[], None]:
    """What follows a step, told that every rank is kept: AdaLoRA lists which are, on which no size depends."""

    def told() -> None:
        with fake_device.replaced([(FakeTensor, "tolist", lambda mask: [True] * mask.numel())]):
            after_step()

    return told


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
    recorder = Recorder(fake_device.hidden_buffers(compute_capability) if kernel_buffers else lambda *_: [])
    with _fake_cuda(recorder, stack, compute_capability, padded=training.padded):
        built = build_model(model, stack, layers=layers)
        fake_device.take_literals(built)
        if method.storage is not None:
            fake_device.quantize_linears(built, method.storage)
        fused_losses.install(built, stack)
        built = attach(built, method, training, stack, prepare_kbit=fake_device.prepare_kbit, adapt=adapt)
        keep_prompts_on_host(built)
        gc.collect()
        _label_loaded(recorder, built)
        _name_modules(recorder, built)
        marker = _Marker(recorder, cublas_workspace_bytes(compute_capability) if kernel_buffers else 0)
        optimizer, after = build_optimizer(built, training, stack), after_step(built, method)
        loop = Loop(built, optimizer, training, stack, marker, _keeping_ranks(after))
        start = len(recorder.events)
        for index in range(steps):
            loop.step(index, seq_lens[index] if seq_lens else None)
        n_events = len(recorder.events)
        recorder.mark("exit")
    return Trace(recorder.allocations, recorder.events[:n_events], recorder.marks, start)


def trace_custom(
    model_factory: Callable[[], nn.Module],
    step_fn: Callable[[Any], object],
    *,
    stack: Stack | None = None,
    compute_capability: tuple[int, int] = (8, 0),
    steps: int = 2,
    padded: bool = False,
) -> Trace:
    """Run a training step of your own on fake tensors and record what it allocates.

    For models, adapters and loops that an estimate does not know: whatever runs in torch can be traced, without a GPU,
    without weights. Both functions are called with fake tensors in force, on the device ``cpu`` that stands for CUDA:
    build models from a configuration (``from_config``, not ``from_pretrained``), and leave ``.cuda()`` out. Fake
    tensors have no values, so a step must not branch on any, and packed sequences are taken for plain ones. Phases are
    found by watching modules, the backward pass and optimizers.

    A GPT-2, which no estimate knows::

        import torch
        from transformers import AutoModelForCausalLM, GPT2Config
        from vramcalc.profiling.trace.trace import (describe, trace_custom)

        def model():
            return AutoModelForCausalLM.from_config(GPT2Config(), dtype=torch.bfloat16).train()

        class Step:
            optimizer = None

            def __call__(self, model):
                if self.optimizer is None:
                    self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
                ids = torch.zeros(4, 512, dtype=torch.long)
                model(input_ids=ids, labels=ids).loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()

        found = trace_custom(model, Step())
        allocated, at = found.peak()
        print(allocated, found.phase_at(at), found.replay().peak_reserved_bytes, found.versions)
        for storage in found.live_at(at):
            print(describe(storage))

    Args:
        model_factory: builds the model, adapters included, and puts it in training mode.
        step_fn: runs one optimizer step, given the model. It may make its optimizer when first called.
        stack: which attention kernel and which fused loss are forced; every other setting is what the functions do.
        compute_capability: GPU generation whose kernel choices are forced.
        steps: optimizer steps; the second one is the first with optimizer state.
        padded: the batch holds padding, so attention gets a mask.

    Returns:
        The trace, loading included.
    """
    recorder = Recorder(fake_device.hidden_buffers(compute_capability))
    with (
        _fake_cuda(recorder, stack or Stack(), compute_capability, padded=padded),
        fake_device.default_optimizer_loops(),
    ):
        model = model_factory()
        fake_device.take_literals(model)
        keep_prompts_on_host(model)
        gc.collect()
        _label_loaded(recorder, model)
        _name_modules(recorder, model)
        marker = _Marker(recorder, cublas_workspace_bytes(compute_capability))
        start = len(recorder.events)
        with Watch(model, marker) as watch:
            for index in range(steps):
                watch.begin(index)
                step_fn(model)
        n_events = len(recorder.events)
        recorder.mark("exit")
    return Trace(recorder.allocations, recorder.events[:n_events], recorder.marks, start)
