"""The device a job is measured on: the only place that calls ``torch.cuda``.

A CPU answers the same questions with None, so that everything above this file runs, and is tested, without a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch

Peak = tuple[int, int]
"""Highest allocated and highest reserved memory since statistics were last reset. [B]"""


class Device(Protocol):
    """What a measurement asks of a device; None means that it has no such thing."""

    name: str
    out_of_memory: type[Exception]

    def start(self) -> None:
        """Make the CUDA context, and no tensor."""

    def first_product(self, dtype: torch.dtype) -> None:
        """Load the library of matrix products; what it computes is dropped."""

    def peak(self) -> Peak | None:
        """Highest memory since :meth:`reset`."""

    def reserved(self) -> int | None:
        """Memory that the allocator holds now. [B]"""

    def reset(self) -> None:
        """Forget peaks so far."""

    def synchronize(self) -> None:
        """Wait for everything that was launched."""

    def empty(self) -> None:
        """Give unused memory back to the device."""

    def clean(self) -> None:
        """Give everything back that can be, libraries' workspaces included."""

    def limit(self, n_bytes: int | None) -> None:
        """What the allocator may hold at most, None for all of the device. [B]"""

    def facts(self) -> dict[str, Any]:
        """Capacity and releases, as ``profiles.Machine`` names them."""

    def history(self, max_entries: int) -> Any:
        """A context in which the allocator writes down what it does; gives a function that returns the snapshot."""


class Cuda:
    """The first GPU that this process sees.

    References:
        torch 2.13 torch/cuda/memory.py; c10/cuda/CUDACachingAllocator.cpp, ``setMemoryFraction``.
    """

    name = "cuda"
    out_of_memory: type[Exception] = torch.OutOfMemoryError

    def start(self) -> None:
        """The driver makes a context when it is first asked to wait."""
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.set_device(0)
        torch.cuda.synchronize()

    def first_product(self, dtype: torch.dtype) -> None:
        """A small product; its tensors' segments are given back, cuBLAS's workspace stays."""
        x = torch.ones(256, 256, dtype=dtype, device="cuda")
        y = x @ x
        torch.cuda.synchronize()
        del x, y
        self.empty()

    def peak(self) -> Peak | None:
        """By torch's statistics."""
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()

    def reserved(self) -> int | None:
        """By torch's statistics. [B]"""
        return torch.cuda.memory_reserved()

    def reset(self) -> None:
        """Peaks start again from what is there now."""
        torch.cuda.reset_peak_memory_stats()

    def synchronize(self) -> None:
        """Wait for all streams."""
        torch.cuda.synchronize()

    def empty(self) -> None:
        """Cycles of dead objects first: they may hold tensors."""
        gc.collect()
        torch.cuda.empty_cache()

    def clean(self) -> None:
        """Workspaces of cuBLAS lie in the allocator and outlive every tensor."""
        gc.collect()
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()

    def limit(self, n_bytes: int | None) -> None:
        """By the share of the capacity, which torch multiplies and rounds down; half a byte more makes that exact."""
        capacity = torch.cuda.mem_get_info()[1]
        share = 1.0 if n_bytes is None else min(1.0, (n_bytes + 0.5) / capacity)
        torch.cuda.set_per_process_memory_fraction(share)

    def facts(self) -> dict[str, Any]:
        """Capacity, CUDA, cuDNN."""
        cudnn: int | None = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        return {
            "torch_total_bytes": torch.cuda.mem_get_info()[1],
            "cuda": torch.version.cuda,
            "cudnn": None if cudnn is None else str(cudnn),
        }

    @contextmanager
    def history(self, max_entries: int) -> Iterator[Any]:
        """With Python frames of every request."""
        record: Any = torch.cuda.memory._record_memory_history
        record("all", context="alloc", stacks="python", max_entries=max_entries, clear_history=True)
        try:
            yield torch.cuda.memory._snapshot
        finally:
            record(None)


class Cpu:
    """Steps can be timed on it; memory is not measured."""

    name = "cpu"
    out_of_memory: type[Exception] = torch.OutOfMemoryError

    def start(self) -> None:
        """Nothing to start."""

    def first_product(self, dtype: torch.dtype) -> None:
        """Nothing to load."""

    def peak(self) -> Peak | None:
        """Not known."""
        return None

    def reserved(self) -> int | None:
        """Not known."""
        return None

    def reset(self) -> None:
        """Nothing is counted."""

    def synchronize(self) -> None:
        """Nothing runs on its own."""

    def empty(self) -> None:
        """Only cycles."""
        gc.collect()

    def clean(self) -> None:
        """Only cycles."""
        gc.collect()

    def limit(self, n_bytes: int | None) -> None:
        """No limit is kept."""

    def facts(self) -> dict[str, Any]:
        """None that a row names."""
        return {}

    @contextmanager
    def history(self, max_entries: int) -> Iterator[Any]:
        """There is no allocator to ask."""
        yield lambda: None


def device_named(name: str) -> Device:
    """``cuda`` or ``cpu``."""
    return Cuda() if name == "cuda" else Cpu()
