"""How long an optimizer step takes on one GPU: named terms that sum to it, and an interval around it.

Times come from counts of work over the rates of the GPU's data sheet, with factors fitted to published speeds
(``tables/timing.json``; ``vramcalc accuracy --time`` says how far off they are). One measured step replaces what the
model says of the level, and narrows the interval.

>>> from vramcalc.timing import step_time
>>> step_time(vramcalc.estimate("llama-3.1-8b", "lora"), "a100-sxm-80")  # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vramcalc import catalog, tables
from vramcalc.errors import InvalidValue, UnknownName, Unsupported
from vramcalc.flops import Tokens
from vramcalc.job import Job
from vramcalc.matrices import Matrices
from vramcalc.specs import Gpu
from vramcalc.timing_model import KINDS, Prediction, Rates, least_seconds, own_factors, predict, rates
from vramcalc.timing_table import TimingTable, timing_table
from vramcalc.timing_terms import Recipe, Work, work_of

if TYPE_CHECKING:
    from vramcalc.estimation import Estimate

_Device = tuple[str, tables.Row | None, tuple[int, int]]
"""Id of a GPU, its row in the table of GPUs, its compute capability."""
Basis = Literal["fitted", "roofline", "measured"]
_FEW = 5
"""Rows below which a GPU's own factor is no surer than that of a GPU without any."""
_SHOWS = 0.3
"""Share of the step that follows the host's speed, from which on it is worth a note."""


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


@dataclass(frozen=True)
class _Expected:
    """What the model says of a step.

    Attributes:
        terms: seconds by term. [s]
        half_width: of the interval, as a logarithm.
        works: counts of each length, and its share of the steps.
        measured_gpu: there are published speeds on the GPU.
        peak: dense 16-bit operations per second. [1/s]
        coverage: what no published speed covers.
        advice: what else to know.
    """

    terms: Mapping[str, float]
    half_width: float
    works: Sequence[tuple[Work, float]]
    measured_gpu: bool
    peak: float
    coverage: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def s(self) -> float:
        return sum(self.terms.values())


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
    asked, device = _job_of(job), _device(job, gpu)
    if tokens is not None and asked.training.seq_lens is not None:
        raise InvalidValue(
            "tokens", tokens, "None beside seq_lens, which give each step its length", "give one of them"
        )
    if measured_step_s is None:
        if measured_job is not None:
            raise InvalidValue(
                "measured_step_s", None, "the seconds that a step of measured_job took", "or leave both out"
            )
        return _as_modelled(_expected(asked, device, tokens, recipe))
    measured_s = _positive(measured_step_s)
    other = asked if measured_job is None else _job_of(measured_job)
    if measured_job is None or (other == asked and tokens is None):
        return _as_measured(asked, device, tokens, recipe, measured_s)
    return _scaled(_expected(asked, device, tokens, recipe), _expected(other, device, None, recipe), measured_s)


def _job_of(job: Job | Estimate) -> Job:
    return job if isinstance(job, Job) else job.job


def _device(job: Job | Estimate, gpu: str | Gpu | None) -> _Device:
    """Id, row and compute capability of a GPU."""
    found = gpu if gpu is not None else getattr(job, "gpu", None)
    if found is None:
        raise InvalidValue("gpu", None, "a GPU's id such as 'rtx-4090', for a step takes as long as its GPU lets it")
    if isinstance(found, str):
        row = catalog.gpu_row(found)
        if row["vendor"] != "NVIDIA":
            raise Unsupported(f"{row['gpu_id']} is {row['vendor']}'s; only NVIDIA's GPUs are timed ('vramcalc gpus')")
        major, _, minor = (row["compute_capability"] or "0.0").partition(".")
        return row["gpu_id"], row, (int(major), int(minor or 0))
    try:
        return found.gpu_id, catalog.gpu_row(found.gpu_id), found.capability
    except UnknownName:
        return found.gpu_id, None, found.capability


def _positive(seconds: float) -> float:
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not 0 < seconds < math.inf:
        raise InvalidValue("measured_step_s", seconds, "a positive number of seconds for one optimizer step")
    return float(seconds)


# -- by the model ------------------------------------------------------------------------------------------------------


def _expected(job: Job, device: _Device, tokens: Tokens | None, recipe: Recipe | None) -> _Expected:
    gpu, row, capability = device
    at = rates(row) if row is not None else None
    if at is None:
        raise Unsupported(
            f"the speed of {gpu} is not known: no row of tables/gpus.csv gives its tensor rate, float32 rate and "
            "bandwidth; name a GPU that has them ('vramcalc gpus' lists ids), or give measured_step_s"
        )
    table = timing_table()
    lengths = Counter(job.training.seq_lens or (job.training.seq_len,))
    n, found = sum(lengths.values()), []
    for seq_len, times in lengths.items():
        work, said = _work(_at_length(job, seq_len), capability, tokens, recipe)
        found.append((work, times / n, _prediction(work, gpu, at, table)))
    terms = {name: sum(share * p.terms[name] for _, share, p in found) for name in found[0][2].terms}
    unknown = [*said, *_beyond(job, gpu, table, [w for w, _, _ in found])]
    sigma = math.sqrt(sum(share * p.sigma**2 for _, share, p in found))
    rows = table.checked.rows_on(gpu)
    spread = table.spreads.measured if rows >= _FEW else max(table.spreads.measured, table.spreads.other)
    advice = []
    if max(p.host_share for _, _, p in found) > _SHOWS:
        advice.append("launching kernels shows in the step: a fast host or a larger micro-batch shortens it")
    if "paged" in job.training.optim:
        advice.append("paged optimizer state that does not fit the GPU moves over PCIe, which is not timed")
    coverage = (*_few(gpu, rows), *unknown)
    works = [(w, s) for w, s, _ in found]
    half_width = math.hypot(spread * sigma, math.sqrt(len(unknown)) * table.spreads.scaled)
    return _Expected(terms, half_width, works, rows > 0, at.flops_16, coverage, tuple(advice))


def _few(gpu: str, rows: int) -> list[str]:
    """What to say of a GPU with few published speeds or none."""
    if not rows:
        return [f"no published speed on {gpu}: a roofline from its data sheet, with a wide interval"]
    return [f"{rows} published speed{'s' * (rows > 1)} on {gpu}: a wide interval"] if rows < _FEW else []


def _at_length(job: Job, seq_len: int) -> Job:
    """A job at one length."""
    if job.training.seq_lens is None:
        return job
    return Job(job.model, job.method, job.training.replace(seq_len=seq_len), job.stack, job.compute_capability)


def _work(
    job: Job, capability: tuple[int, int], tokens: Tokens | None, recipe: Recipe | None
) -> tuple[Work, list[str]]:
    """Counts of a job on a GPU of some compute capability, and what about them was never measured."""
    stack, said = job.stack, []
    if stack.attn_implementation == "sdpa" and stack.sdpa_kernel == "math":
        stack = stack.replace(attn_implementation="eager")
        said.append("the math kernel of attention is timed as eager code")
    flash = capability >= (8, 0) and stack.sdpa_kernel in ("auto", "cudnn", "flash")
    flash = flash and not (job.training.padded or job.taken_for_packed)
    made = recipe or Recipe(flash=flash)
    work = work_of(Matrices.of(job.model), job.method, job.training, stack, made, tokens)
    if work.dtype == "bfloat16" and capability < (8, 0):
        said.append("this GPU has no bfloat16 tensor cores: such products are timed at its float32 rate")
        work = _without_tensor_cores(work)
    return work, said


def _without_tensor_cores(work: Work) -> Work:
    moved = dict(work.quantities)
    for low, high in (("products 16", "products 32"), ("flash", "efficient 32"), ("efficient 16", "efficient 32")):
        moved[high] = moved.get(high, 0.0) + moved.pop(low, 0.0)
    return Work(**{**vars(work), "quantities": moved})


def _prediction(work: Work, gpu: str, at: Rates, table: TimingTable) -> Prediction:
    c = table.coefficients
    measured = {other: known for other in c.products if (known := rates(catalog.gpu_row(other))) is not None}
    return predict(least_seconds(work.quantities, at), gpu, own_factors(gpu, at, c, measured), c)


def _beyond(job: Job, gpu: str, table: TimingTable, works: Sequence[Work]) -> list[str]:
    """What is beyond the published speeds; each widens the interval by what one size of a run says of another."""
    checked, kind, notes = table.checked, job.method.kind, []
    if gpu in checked.methods and kind not in checked.methods[gpu]:
        notes.append(f"no published speed of {kind} on {gpu}, only of {', '.join(checked.methods[gpu])}")
    longest, most = max(w.longest for w in works), max(w.micro_tokens for w in works)
    if longest > checked.longest:
        notes.append(f"sequences of {longest:,} tokens: published speeds end at {checked.longest:,}")
    if most > checked.micro_tokens:
        notes.append(f"micro-batches of {most:,} tokens: published speeds end at {checked.micro_tokens:,}")
    return notes


# -- results -----------------------------------------------------------------------------------------------------------


def _result(e: _Expected, scale: float, half_width: float, basis: Basis, note: str = "") -> StepTime:
    s, tokens = e.s * scale, sum(w.tokens * share for w, share in e.works)
    flops = sum(w.model_flops * share for w, share in e.works)
    of_term: dict[str, str] = {k.term: k.limit for k in KINDS.values()}
    how = {"fitted": "fitted", "roofline": "roofline", "measured": "scaled to the measured step"}[basis]
    terms = tuple(Term(n, v * scale, f"{of_term.get(n, 'host')}, {how}") for n, v in e.terms.items() if v > 0)
    return StepTime(
        s, s / math.exp(half_width), s * math.exp(half_width), terms, tokens / s, flops / s / e.peak, basis,
        (*((note,) if basis == "measured" and note else ()), *(() if basis == "measured" else e.coverage), *e.advice),
    )  # fmt: skip


def _as_modelled(e: _Expected) -> StepTime:
    return _result(e, 1.0, e.half_width, "fitted" if e.measured_gpu else "roofline")


def _scaled(e: _Expected, measured: _Expected, measured_s: float) -> StepTime:
    half_width = min(timing_table().spreads.scaled, e.half_width)
    return _result(e, measured_s / measured.s, half_width, "measured", "scaled from a measured step of another size")


def _as_measured(
    job: Job,
    device: _Device,
    tokens: Tokens | None,
    recipe: Recipe | None,
    measured_s: float,
) -> StepTime:
    """A measured step of the job itself; where the GPU is not known, one term without parts."""
    width = timing_table().spreads.repeated
    try:
        e = _expected(job, device, tokens, recipe)
    except Unsupported:
        work = work_of(Matrices.of(job.model), job.method, job.training, job.stack, recipe, tokens)
        term = Term("measured step", measured_s, "measured")
        ends = measured_s / math.exp(width), measured_s * math.exp(width)
        return StepTime(measured_s, *ends, (term,), work.tokens / measured_s, None, "measured", ())
    return _result(e, measured_s / e.s, width, "measured")
