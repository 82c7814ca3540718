"""What processes take of one GPU, through NVML: at a moment, or polled while a job runs."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

from vramcalc.errors import DetectionError
from vramcalc.inputs.machine.detect import memory_of


class Use(NamedTuple):
    """Memory in use.

    Attributes:
        process_bytes: by this process, None where NVML does not tell, as in containers with process ids of their own
            and under WSL. [B]
        device_bytes: by all processes, None where NVML does not tell. [B]
    """

    process_bytes: int | None
    device_bytes: int | None


class DeviceUse:
    """One GPU, asked again and again; close it when done.

    Args:
        uuid: ``GPU-...`` or ``MIG-...``, as :func:`vramcalc.detect_gpus` gives it.

    Raises:
        DetectionError: NVML does not answer, or knows no such GPU.
    """

    def __init__(self, uuid: str) -> None:
        try:
            import pynvml
        except ImportError as err:
            raise DetectionError("memory of processes cannot be seen without nvidia-ml-py; install it") from err
        self._pynvml = pynvml
        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as err:
            raise DetectionError(f"NVML has no GPU {uuid}: {err}; see what nvidia-smi -L says") from err

    def now(self) -> Use:
        """Memory in use at this moment."""
        pynvml = self._pynvml
        used = process = None
        with suppress(pynvml.NVMLError):
            memory = memory_of(pynvml, self._handle)
            used = memory.used if memory else None
        with suppress(pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
            process = next((p.usedGpuMemory for p in running if p.pid == os.getpid()), None)
        return Use(process, used)

    def close(self) -> None:
        """Let NVML go."""
        with suppress(self._pynvml.NVMLError):
            self._pynvml.nvmlShutdown()


class Polled:
    """The highest use of the device while it is entered; what lies between two samples is not seen.

    Attributes:
        peak_bytes: highest sample of what all processes take, None where there is none. [B]
        samples: how many there were.
    """

    def __init__(self, use: DeviceUse, *, every_s: float = 0.005) -> None:
        self.peak_bytes: int | None = None
        self.samples = 0
        self._use, self._every_s = use, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, daemon=True)

    def _poll(self) -> None:
        while True:
            # Whatever is asked for last is seen: the flag is read before the sample, not after it.
            last = self._stop.wait(self._every_s)
            self._sample(self._use.now())
            if last:
                return

    def _sample(self, use: Use) -> None:
        if use.device_bytes is not None:
            self.peak_bytes = max(self.peak_bytes or 0, use.device_bytes)
            self.samples += 1

    def __enter__(self) -> Polled:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
