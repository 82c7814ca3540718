"""A GPU: its memory, how much of it is free, and its compute capability."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from vramcalc.inputs.base import Spec


class Gpu(Spec):
    """One device: its memory, and what its generation changes."""

    gpu_id: str
    name: str
    architecture: str | None
    """``Ampere``, ``Hopper``...; decides the size of the CUDA context."""
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")]
    """``"8.0"``."""
    total_bytes: Annotated[int, Field(ge=1, le=1 << 62)]
    """Capacity, as ``torch.cuda.mem_get_info`` reports it. [B]"""
    total_basis: str
    """Where the capacity comes from."""
    free_bytes: Annotated[int, Field(ge=0, le=1 << 62)] | None = None
    """Bytes free now, for a detected device. [B]"""
    uuid: str | None = None
    """Of a detected device."""

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability as a pair."""
        major, _, minor = self.compute_capability.partition(".")
        return int(major), int(minor or 0)

    @property
    def usable_bytes(self) -> int:
        """What a job can have: what is free when that is known, else the capacity. [B]"""
        return self.total_bytes if self.free_bytes is None else self.free_bytes
