"""How long an optimizer step takes on one GPU: named terms that sum to it, and an interval around it.

Times come from counts of work over the rates of the GPU's data sheet, with factors fitted to published speeds
(``tables/timing.json``; ``vramcalc accuracy --time`` says how far off they are). One measured step replaces what the
model says of the level, and narrows the interval.

>>> from vramcalc.timing.step_time import step_time
>>> step_time(vramcalc.estimate("llama-3.1-8b", "lora"), "a100-sxm-80")  # doctest: +SKIP
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Gpu
from vramcalc.timing.expected import Device, Expected, device_of, expected_of, job_of
from vramcalc.timing.fitted_factors import timing_table
from vramcalc.timing.flops import Tokens
from vramcalc.timing.roofline import KINDS
from vramcalc.timing.work import Recipe, work_of

if TYPE_CHECKING:
    from vramcalc.memory.estimate import Estimate

Basis = Literal["fitted", "roofline", "measured"]


@dataclass(frozen=True)
class Term:
    """A part of a step.

    Attributes:
        name: what takes the time.
        s: how long. [s]
        basis: what the figure rests on.
    """

    name: str
    s: float
    basis: str


@dataclass(frozen=True)
class StepTime:
    """Duration of one optimizer step, gradient accumulation included.

    Attributes:
        s: expected duration. [s]
        low_s: nine steps in ten take longer than this and less than ``high_s``, by held-out measurements. [s]
        high_s: upper end. [s]
        terms: parts that sum to ``s``; the host's is what it adds beyond the GPU's.
        tokens_per_s: tokens of text per second. [1/s]
        mfu: model FLOPs over the dense 16-bit peak, None where the peak is not known.
        basis: ``fitted`` on a GPU with published speeds, ``roofline`` on one without, ``measured`` with a step of the
            user's.
        notes: what a reader should know before trusting the numbers.
    """

    s: float
    low_s: float
    high_s: float
    terms: tuple[Term, ...]
    tokens_per_s: float
    mfu: float | None
    basis: Basis
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; field names are stable."""
        return {**vars(self), "terms": [vars(t) for t in self.terms], "notes": list(self.notes)}


def step_time(
    job: Job | Estimate,
    gpu: str | Gpu | None = None,
    *,
    tokens: Tokens | None = None,
    recipe: Recipe | None = None,
    measured_step_s: float | None = None,
    measured_job: Job | Estimate | None = None,
) -> StepTime:
    """Duration of an optimizer step on one GPU.

    Args:
        job: what is trained, or an estimate of it; with several ``seq_lens``, the mean step.
        gpu: a GPU by id or as a spec; None, that of the estimate.
        tokens: of a micro-batch, where they are not full sequences: real lengths, packing, padding.
        recipe: kernels that a stack does not say: Liger's, ``torch.compile``; None, those of plain transformers.
        measured_step_s: duration of a step that was measured on this GPU. [s]
        measured_job: what that was a step of, where batch, length or accumulation differ; None, the same.

    Returns:
        The step's time; always with an interval.

    Raises:
        UnknownName: no GPU has that id.
        InvalidValue: no GPU at all, a measured step that is not a positive number of seconds, or ``tokens`` beside
            ``seq_lens``.
        Unsupported: the GPU's rates are not known and there is no measured step of this very job.
    """
    asked, device = job_of(job), device_of(job, gpu)
    if tokens is not None and asked.training.seq_lens is not None:
        raise InvalidValue(
            "tokens", tokens, "None beside seq_lens, which give each step its length", "give one of them"
        )
    if measured_step_s is None:
        if measured_job is not None:
            raise InvalidValue(
                "measured_step_s", None, "the seconds that a step of measured_job took", "or leave both out"
            )
        return _as_modelled(expected_of(asked, device, tokens, recipe))
    measured_s = _positive(measured_step_s)
    other = asked if measured_job is None else job_of(measured_job)
    if measured_job is None or (other == asked and tokens is None):
        return _as_measured(asked, device, tokens, recipe, measured_s)
    return _scaled(expected_of(asked, device, tokens, recipe), expected_of(other, device, None, recipe), measured_s)


def _positive(seconds: float) -> float:
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not 0 < seconds < math.inf:
        raise InvalidValue("measured_step_s", seconds, "a positive number of seconds for one optimizer step")
    return float(seconds)


# -- results -----------------------------------------------------------------------------------------------------------


def _result(e: Expected, scale: float, half_width: float, basis: Basis, note: str = "") -> StepTime:
    s, tokens = e.s * scale, e.tokens
    flops = sum(w.model_flops * share for w, share in e.works)
    of_term: dict[str, str] = {k.term: k.limit for k in KINDS.values()}
    how = {"fitted": "fitted", "roofline": "roofline", "measured": "scaled to the measured step"}[basis]
    terms = tuple(Term(n, v * scale, f"{of_term.get(n, 'host')}, {how}") for n, v in e.terms.items() if v > 0)
    return StepTime(
        s, s / math.exp(half_width), s * math.exp(half_width), terms, tokens / s, flops / s / e.peak, basis,
        (*((note,) if basis == "measured" and note else ()), *(() if basis == "measured" else e.coverage), *e.advice),
    )  # fmt: skip


def _as_modelled(e: Expected) -> StepTime:
    return _result(e, 1.0, e.half_width, "fitted" if e.measured_gpu else "roofline")


def _scaled(e: Expected, measured: Expected, measured_s: float) -> StepTime:
    half_width = min(timing_table().spreads.scaled, e.half_width)
    return _result(e, measured_s / measured.s, half_width, "measured", "scaled from a measured step of another size")


def _as_measured(
    job: Job,
    device: Device,
    tokens: Tokens | None,
    recipe: Recipe | None,
    measured_s: float,
) -> StepTime:
    """A measured step of the job itself; where the GPU is not known, one term without parts."""
    width = timing_table().spreads.repeated
    try:
        e = expected_of(job, device, tokens, recipe)
    except Unsupported:
        work = work_of(job.model, job.method, job.training, job.stack, recipe, tokens)
        term = Term("measured step", measured_s, "measured")
        ends = measured_s / math.exp(width), measured_s * math.exp(width)
        return StepTime(measured_s, *ends, (term,), work.tokens / measured_s, None, "measured", ())
    return _result(e, measured_s / e.s, width, "measured")
