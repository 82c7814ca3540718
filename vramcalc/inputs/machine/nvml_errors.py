"""What NVML's errors mean to whoever has the machine."""

from __future__ import annotations

from typing import Any


def in_one_line(pynvml: Any, err: Exception) -> str:
    """An NVML error in one line, with what to do."""
    match getattr(err, "value", None):
        case pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            return "no NVIDIA driver on this machine (libnvidia-ml.so.1 not found)"
        case pynvml.NVML_ERROR_DRIVER_NOT_LOADED:
            return "the NVIDIA driver is installed but not loaded; load it with modprobe nvidia, or reboot"
        case pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
            return "driver and NVML library are of different versions; reboot after the driver update"
        case pynvml.NVML_ERROR_NO_PERMISSION:
            return "no permission to ask the NVIDIA driver; check the rights on /dev/nvidia*"
        case pynvml.NVML_ERROR_GPU_IS_LOST:
            return "the GPU has fallen off the bus; reboot, or reset it with nvidia-smi --gpu-reset"
        case pynvml.NVML_ERROR_RESET_REQUIRED:
            return "the GPU has to be reset; run nvidia-smi --gpu-reset"
        case pynvml.NVML_ERROR_UNKNOWN:
            return "the NVIDIA driver does not answer (NVML: Unknown Error); restart the container if this is one"
        case _:
            return f"NVML: {err}; see what nvidia-smi says"
