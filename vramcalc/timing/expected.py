"""What the timing model expects of a job's step on a GPU: seconds by term, how sure it is, and what it never saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vramcalc import tables
from vramcalc.errors import InvalidValue, UnknownName, Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Gpu
from vramcalc.timing.fitted_factors import TimingTable, timing_table
from vramcalc.timing.flops import Tokens
from vramcalc.timing.roofline import GPU_SPREAD, Prediction, Rates, least_seconds, own_factors, predict, rates
from vramcalc.timing.work import Recipe, Work, work_of

if TYPE_CHECKING:
    from vramcalc.memory.estimate import Estimate

Device = tuple[str, tables.Row | None, tuple[int, int]]
"""Id of a GPU, its row in the table of GPUs, its compute capability."""
_FEW = 5
"""Rows below which a GPU's own factor is no surer than that of a GPU without any."""
_SHOWS = 0.3
"""Share of the step that follows the host's speed, from which on it is worth a note."""


@dataclass(frozen=True)
class Expected:
    """What the model says of a step.

    Attributes:
        terms: seconds by term. [s]
        half_width: of the interval, as a logarithm.
        works: counts of each length, and its share of the steps.
        predictions: of each length, in the same order.
        measured_gpu: there are published speeds on the GPU.
        peak: dense 16-bit operations per second. [1/s]
        coverage: what no published speed covers.
        advice: what else to know.
    """

    terms: Mapping[str, float]
    half_width: float
    works: Sequence[tuple[Work, float]]
    predictions: Sequence[Prediction]
    measured_gpu: bool
    peak: float
    coverage: tuple[str, ...]
    advice: tuple[str, ...]

    @property
    def s(self) -> float:
        """Duration of the mean step. [s]"""
        return sum(self.terms.values())

    @property
    def tokens(self) -> float:
        """Tokens of text of the mean step."""
        return sum(work.tokens * share for work, share in self.works)

    @property
    def mean(self) -> Prediction:
        """The mean step's prediction: each length moves it by its share of the time."""
        shares = [share * p.s / self.s for p, (_, share) in zip(self.predictions, self.works, strict=True)]
        slopes = [sum(w * x for w, x in zip(shares, xs, strict=True)) for xs in zip(*self._slopes, strict=True)]
        host = sum(w * p.host_share for w, p in zip(shares, self.predictions, strict=True))
        sigma = math.sqrt(sum(w * p.sigma**2 for w, p in zip(shares, self.predictions, strict=True)))
        return Prediction(self.terms, sigma, self.measured_gpu, host, tuple(slopes))

    @property
    def _slopes(self) -> list[tuple[float, ...]]:
        return [p.slopes for p in self.predictions]


def job_of(job: Job | Estimate) -> Job:
    """The job of an estimate, or a job itself."""
    return job if isinstance(job, Job) else job.job


def device_of(job: Job | Estimate, gpu: str | Gpu | None) -> Device:
    """Id, row and compute capability of a GPU: the one named, or that of the estimate.

    Raises:
        InvalidValue: there is none.
        UnknownName: no GPU has that id.
        Unsupported: of another maker.
    """
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


def expected_of(job: Job, device: Device, tokens: Tokens | None, recipe: Recipe | None) -> Expected:
    """What the model says of a job's step.

    Raises:
        Unsupported: the GPU's rates are not known.
    """
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
    rows = table.checked.rows_on(gpu)
    # A few rows of one source do not settle a GPU's own factor: what is unknown of it shrinks with their number.
    unsettled = GPU_SPREAD / math.sqrt(1 + rows) if 0 < rows < _FEW else 0.0
    sigma = math.sqrt(sum(share * (p.sigma**2 + (unsettled * (1 - p.host_share)) ** 2) for _, share, p in found))
    spread = table.spreads.measured if rows >= _FEW else max(table.spreads.measured, table.spreads.other)
    advice = []
    if max(p.host_share for _, _, p in found) > _SHOWS:
        advice.append("launching kernels shows in the step: a fast host or a larger micro-batch shortens it")
    if job.training.optimizer.paged:
        advice.append("paged optimizer state that does not fit the GPU moves over PCIe, which is not timed")
    coverage = (*_few(gpu, rows), *unknown)
    works = [(w, s) for w, s, _ in found]
    half_width = math.hypot(spread * sigma, math.sqrt(len(unknown)) * table.spreads.scaled)
    return Expected(terms, half_width, works, [p for _, _, p in found], rows > 0, at.flops_16, coverage, tuple(advice))


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
    flash = flash and not (job.training.padded or job.taken_for_packed or job.method.virtual_keys_only)
    made = recipe or Recipe(flash=flash)
    work = work_of(job.model, job.method, job.training, stack, made, tokens)
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
