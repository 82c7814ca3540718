"""Whether a job fits a GPU: its estimate held against the memory that is free."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from vramcalc import display
from vramcalc.errors import DoesNotFit, InvalidValue
from vramcalc.inputs import catalog
from vramcalc.inputs.stack import Gpu
from vramcalc.interval import Interval
from vramcalc.memory.calibration.calibration import share_within
from vramcalc.memory.calibration.file import current
from vramcalc.memory.estimate import Estimate, estimate_job
from vramcalc.units import gib

if TYPE_CHECKING:
    from vramcalc.planning.remedies import Remedy

Status = Literal["fits", "tight", "does not fit"]
SAFE = 0.95
"""Probability from which on a job is said to fit."""


@dataclass(frozen=True)
class Verdict:
    """Whether a job fits a GPU.

    Attributes:
        status: ``fits``, with a probability of :data:`SAFE`; ``tight``: less sure than that, or only because torch
            gives cached memory back; ``does not fit``.
        estimate: of the job.
        gpu: the device.
        usable_bytes: what the job can have. [B]
        needed_bytes: what the process takes when memory is plenty. [B]
        reason: the status in words.
        probability: that the job runs, as it is or as torch gives cached memory back.
        probability_as_is: that it runs without torch giving any back.
    """

    status: Status
    estimate: Estimate
    gpu: Gpu
    usable_bytes: int
    needed_bytes: int
    reason: str
    probability: float
    probability_as_is: float

    @property
    def needed_interval(self) -> Interval:
        """What the process takes, between its bounds. [B]"""
        return self.estimate.interval("process")

    @property
    def headroom_bytes(self) -> int:
        """What is left over, negative when it is too little. [B]"""
        return self.usable_bytes - self.needed_bytes

    @cached_property
    def remedies(self) -> tuple[Remedy, ...]:
        """Changes that lower the need, the least intrusive first; worked out by estimating again."""
        from vramcalc.planning.remedies import remedies

        return tuple(remedies(self))

    def to_dict(self, *, remedies: bool = True) -> dict[str, Any]:
        """Plain values; field names are stable."""
        found: dict[str, Any] = {
            "status": self.status,
            "gpu": self.gpu.gpu_id,
            "gpu_uuid": self.gpu.uuid,
            "usable_bytes": self.usable_bytes,
            "needed_bytes": self.needed_bytes,
            "needed_low_bytes": int(self.needed_interval.low),
            "needed_high_bytes": math.ceil(self.needed_interval.high),
            "probability": round(self.probability, 4),
            "probability_as_is": round(self.probability_as_is, 4),
            "probability_giving_back": round(self.probability - self.probability_as_is, 4),
            "probability_out_of_memory": round(1 - self.probability, 4),
            "headroom_bytes": self.headroom_bytes,
            "reason": self.reason,
        }
        if remedies:
            found["remedies"] = [r.to_dict() for r in self.remedies] if self.status != "fits" else []
        return found

    def __str__(self) -> str:
        return display.text(self)

    def _repr_html_(self) -> str:
        return display.html(self)


def verdict(estimated: Estimate, gpu: str | Gpu | None = None) -> Verdict:
    """Hold an estimate against a GPU.

    Args:
        estimated: an estimate made for that GPU, or for none.
        gpu: an id or a spec; by default the one the estimate was made for.

    Raises:
        InvalidValue: no GPU at all.
    """
    device = estimated.gpu if gpu is None else catalog.gpu(gpu)
    if device is None:
        raise InvalidValue("gpu", None, "a GPU to hold the estimate against", "name one, such as 'rtx-4090'")
    if estimated.job.compute_capability != device.capability:
        estimated = estimate_job(replace(estimated.job, compute_capability=device.capability), device)
    elif estimated.gpu != device:
        estimated = estimated.on(device)
    usable, needed = device.usable_bytes, estimated.process_bytes
    as_is = estimated.probability(usable)
    status, reason = _judge(estimated, usable, needed, as_is)
    probability = as_is if as_is >= SAFE else max(as_is, _giving_back(estimated, usable))
    return Verdict(status, estimated, device, usable, needed, reason, probability, as_is)


def _giving_back(estimated: Estimate, usable: int) -> float:
    """The probability that blocks in use find room where every cached one is given back before torch runs out."""
    room = usable - estimated.context.n_bytes
    if estimated.allocated_bytes > room:
        return 0.0
    try:
        n_bytes = estimated.walks.replay_within(room).peak_allocated_bytes
    except DoesNotFit:
        return 0.0
    spread = current().outlook("allocated", estimated.likeness)
    return share_within(spread, estimated.context, n_bytes, usable)


def _judge(estimated: Estimate, usable: int, needed: int, probability: float) -> tuple[Status, str]:
    if probability >= SAFE and needed <= usable:
        return "fits", f"{gib(usable - needed)} to spare"
    if needed <= usable:
        return "tight", f"only {gib(usable - needed)} to spare"
    room = usable - estimated.context.n_bytes
    if estimated.allocated_bytes <= room:
        try:
            estimated.walks.replay_within(room)
        except DoesNotFit:
            return "does not fit", f"{gib(needed - usable)} too much, and fragmentation leaves no room"
        return "tight", "only as torch gives cached memory back under pressure, which costs time"
    return "does not fit", f"{gib(needed - usable)} too much"
