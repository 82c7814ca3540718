"""A device whose memory is counted: the tensors are real and on the CPU, and what is alive is known at every instant.

It keeps a pool as a caching allocator does, as large as the most that was ever alive and a quarter more, and refuses
what would go over its limit in torch's own words.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vramcalc.inputs.machine.device_use import Use

CAPACITY = 8 << 30
CONTEXT = 300 << 20
OTHERS = 70 << 20
"""What other processes take of the device."""


class CountedDevice(TorchDispatchMode):
    """Counts storages while it is entered."""

    name = "cpu"
    out_of_memory: type[Exception] = torch.OutOfMemoryError

    def __init__(self, capacity: int = CAPACITY) -> None:
        super().__init__()
        self.capacity = self.allowed = capacity
        self.live: dict[int, tuple[int, Any]] = {}
        self.now = self.highest = self.pool = self.highest_pool = 0
        self.started = False

    # -- counting ------------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_flatten(out)[0]:
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.live or not size:
            return
        if self.now + size > self.allowed:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size / (1 << 20):.2f} MiB. GPU 0 has")
        self.live[key] = size, weakref.ref(storage, lambda _: self._dead(key))
        self.now += size
        self.pool = min(max(self.pool, self.now + self.now // 4), max(self.now, self.allowed))
        self._fold()

    def _dead(self, key: int) -> None:
        self.now -= self.live.pop(key)[0]

    def _fold(self) -> None:
        self.highest, self.highest_pool = max(self.highest, self.now), max(self.highest_pool, self.pool)

    # -- what a measurement asks ---------------------------------------------------------------------------------------

    def start(self) -> None:
        self.started = True

    def first_product(self, dtype: torch.dtype) -> None:
        """Nothing to load."""

    def peak(self) -> tuple[int, int]:
        return self.highest, self.highest_pool

    def reserved(self) -> int:
        return self.pool

    def reset(self) -> None:
        self.highest, self.highest_pool = self.now, self.pool

    def synchronize(self) -> None:
        assert self.started, "this would have made the context"

    def empty(self) -> None:
        gc.collect()
        self.pool = self.now

    clean = empty

    def limit(self, n_bytes: int | None) -> None:
        self.allowed = self.capacity if n_bytes is None else n_bytes

    def facts(self) -> dict[str, Any]:
        return {"torch_total_bytes": self.capacity, "cuda": "13.0", "cudnn": None}

    @contextmanager
    def history(self, max_entries: int) -> Iterator[Any]:
        size = 1 << 20
        trace = [{"action": "alloc", "addr": 1, "size": size, "frames": [{"filename": "a.py", "line": 1, "name": "f"}]}]
        block = {"address": 1, "size": size, "state": "active_allocated", "frames": trace[0]["frames"]}
        yield lambda: {"segments": [{"address": 1, "device": 0, "blocks": [block]}], "device_traces": [trace]}


class CountedUse:
    """NVML's view of a counted device."""

    def __init__(self, device: CountedDevice, *, tells_process: bool = True) -> None:
        self.device, self.tells_process = device, tells_process

    def now(self) -> Use:
        own = CONTEXT + self.device.pool if self.device.started else 0
        return Use(own if self.tells_process and own else None, OTHERS + own)
