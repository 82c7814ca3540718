"""What is measured of a job, as profile rows name it: the highest memory of every phase, moments, speed.

Statistics are read and reset wherever a phase begins.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch

from vramcalc.inputs.machine.device_use import DeviceUse
from vramcalc.profiling.measure.device import Device

TRAINING = ("forward", "backward", "optimizer", "zero_grad", "between")
"""Phases after loading."""


class PhasePeaks:
    """A :class:`~vramcalc.profiling.real.loop.Marker` that keeps the highest memory of every kind of phase.

    Attributes:
        phase: the kind that runs now.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._found: dict[str, tuple[int, int]] = {}
        self.phase = "load"
        device.reset()

    def mark(self, phase: str) -> None:
        """A phase begins, such as ``"step0.1.forward"``."""
        self._fold()
        kind = phase.rsplit(".", 1)[-1]
        self.phase = kind if kind in TRAINING else "between"

    def label(self, tensor: torch.Tensor, label: str) -> None:
        """Tensors need no names here."""

    def done(self) -> dict[str, Any]:
        """Peaks by kind of phase as ``profiles.Memory`` names them, with the ``whole`` of training; none on a CPU."""
        self._fold()
        found: dict[str, Any] = {n: _named(p) for n, p in self._found.items() if n not in ("zero_grad", "between")}
        training = [peak for name, peak in self._found.items() if name in TRAINING]
        if training:
            found["whole"] = _named((max(a for a, _ in training), max(r for _, r in training)))
        return found

    def _fold(self) -> None:
        peak = self._device.peak()
        if peak is not None:
            before = self._found.get(self.phase, (0, 0))
            self._found[self.phase] = (max(before[0], peak[0]), max(before[1], peak[1]))
        self._device.reset()


class Unmarked:
    """A marker that does nothing, for steps that are timed."""

    def mark(self, phase: str) -> None:
        """Nothing is measured."""

    def label(self, tensor: torch.Tensor, label: str) -> None:
        """Nothing is named."""


def moment(use: DeviceUse, reserved: int) -> dict[str, int | None]:
    """Memory now, as ``profiles.Moment`` names it.

    Args:
        use: NVML's view of the device.
        reserved: by torch's allocator. [B]
    """
    process, device = use.now()
    return {"process_bytes": process, "device_used_bytes": device, "reserved_bytes": reserved}


def timing(steps_s: list[float], warmup_steps: int, tokens: float) -> dict[str, Any]:
    """Speed as ``profiles.Timing`` names it.

    Args:
        steps_s: durations of steps. [s]
        warmup_steps: how many came before them.
        tokens: of one step.
    """
    median = statistics.median(steps_s)
    return {"step_s": median, "steps_s": steps_s, "warmup_steps": warmup_steps, "tokens_per_s": tokens / median}


def _named(peak: tuple[int, int]) -> dict[str, int]:
    return {"allocated_bytes": peak[0], "reserved_bytes": peak[1]}
