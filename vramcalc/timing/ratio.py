"""How two jobs' steps compare on one GPU: their ratio, with an interval of its own.

What is wrong with both steps cancels in their ratio, so that it is known better than either: which method is faster is
read from here, not from two intervals that overlap. Ratios and times are of one fit, and agree.

>>> from vramcalc.timing.ratio import compare_times
>>> lora, full = (vramcalc.estimate("llama-3.1-8b", m) for m in ("lora", "full"))  # doctest: +SKIP
>>> compare_times(full, lora, "a100-sxm-80")  # doctest: +SKIP
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vramcalc.errors import Unsupported
from vramcalc.inputs.job import Job
from vramcalc.inputs.quantization import BitsAndBytes4bit
from vramcalc.inputs.stack import FullFineTuning, Gpu, LoRA, Method
from vramcalc.timing.expected import device_of, expected_of, job_of
from vramcalc.timing.fitted_factors import timing_table
from vramcalc.timing.flops import Tokens
from vramcalc.timing.roofline import ratio_sigma
from vramcalc.timing.work import Recipe

if TYPE_CHECKING:
    from vramcalc.memory.estimate import Estimate


@dataclass(frozen=True)
class TimeRatio:
    """Duration of one job's optimizer step over that of another, on one GPU.

    Attributes:
        methods: of the two jobs.
        ratio: expected; above 1 the first takes longer.
        low: nine ratios in ten are above this and below ``high``, by pairs of held-out measurements.
        high: upper end.
        notes: what a reader should know before trusting the numbers.
    """

    methods: tuple[str, str]
    ratio: float
    low: float
    high: float
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; field names are stable."""
        return {**vars(self), "methods": list(self.methods), "notes": list(self.notes)}

    def __str__(self) -> str:
        return f"{self.methods[0]} / {self.methods[1]}: {self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


def compare_times(
    job: Job | Estimate,
    other: Job | Estimate,
    gpu: str | Gpu | None = None,
    *,
    tokens: Tokens | None = None,
    recipe: Recipe | None = None,
) -> TimeRatio:
    """Duration of a job's step over that of another job's, on one GPU.

    Args:
        job: an estimate of a job, or a job.
        other: what it is held against.
        gpu: a GPU by id or as a spec; None, that of the first estimate.
        tokens: of a micro-batch of either, where they are not full sequences.
        recipe: kernels of either, see :func:`vramcalc.timing.step_time.step_time`.

    Raises:
        InvalidValue: no GPU at all.
        UnknownName: no GPU has that id.
        Unsupported: the GPU's rates are not known.
    """
    device = device_of(job, gpu)
    first, second = job_of(job), job_of(other)
    a, b = expected_of(first, device, tokens, recipe), expected_of(second, device, tokens, recipe)
    table = timing_table()
    half_width = table.spreads.ratio * ratio_sigma(a.mean, b.mean, table.coefficients)
    notes = []
    if a.tokens != b.tokens:
        notes.append(f"steps of {a.tokens:,.0f} and {b.tokens:,.0f} tokens: ratios were checked on equal tokens")
        half_width = math.hypot(half_width, table.spreads.scaled)
    if not a.measured_gpu:
        notes.append(f"no published speed on {device[0]}: the ratio is that of its data sheet")
    ratio = a.s / b.s
    ends = ratio / math.exp(half_width), ratio * math.exp(half_width)
    return TimeRatio((first.method.kind, second.method.kind), ratio, *ends, tuple(notes))


def method_ratios(found: Estimate) -> tuple[TimeRatio, ...]:
    """Steps of the other methods over an estimate's own, on its GPU and the same tokens, with the same adapters.

    None where the GPU's speed is not known, or there is no GPU.
    """
    mine = found.job
    adapters = mine.method.adapters or LoRA()
    methods: tuple[Method, ...] = (FullFineTuning(), adapters.plain(None), adapters.plain(BitsAndBytes4bit()))
    others = [
        Job(mine.model, method, mine.training, mine.stack, mine.compute_capability)
        for method in methods
        if method.kind != mine.method.kind
    ]
    try:
        return tuple(compare_times(other, mine, found.gpu) for other in others) if found.gpu else ()
    except Unsupported:
        return ()
