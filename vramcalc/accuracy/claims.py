"""Commonly quoted figures on memory, time and cost, and what would have to hold for them to be true.

Such a figure rarely says how long an example is, how often it is seen, or what the software keeps. A figure is held
against every recipe of a grid: it is true of those whose result it is close to, or of none.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vramcalc import tables
from vramcalc.errors import DataError
from vramcalc.interval import Interval
from vramcalc.memory.estimate import Estimate, estimate
from vramcalc.planning.plan import Plan, plan_of, step_time_of
from vramcalc.planning.prices import Offer
from vramcalc.planning.verdict import verdict
from vramcalc.planning.workload import Workload

T = TypeVar("T")
_UNITS = {"gpu_memory": "GB", "time": "hours", "cost": "USD"}
_METHODS = ("full", "lora", "qlora")
_GB = 10**9
NEAR = 0.1
"""How far a figure may be off: quoted ones are rounded, and "GB" may mean GiB, which is 7 % more."""
MODELS = {7: "llama-2-7b", 13: "llama-2-13b", 70: "llama-2-70b"}
"""What a number of parameters, in billions, stands for."""
GPUS = {"A10G 24GB": "a10g", "A100 80GB": "a100-sxm-80", "A100-80GB": "a100-sxm-80", "A100": "a100-sxm-80"}
"""What the name of a GPU stands for; the larger where it does not say."""
TOKENS = (128, 256, 512, 1024, 2048, 4096)
EPOCHS = tuple(map(float, range(1, 11)))
USUAL = (512, 1.0)
"""Tokens per example, and epochs, of the figure that is put beside a quoted one."""
BATCHES, EFFECTIVE_BATCH = (4, 1), 16
CHECKPOINTING = ("non_reentrant", "none")


@dataclass(frozen=True)
class Claim:
    """A figure as it is quoted.

    Attributes:
        claim_id: of ``tables/claims.csv``.
        quantity: what it is about.
        subject: ``training`` where it is a figure of a run; ``rule``, ``weights``... where it is not.
        model: that its size stands for, None where it names none that is known.
        method: ``full``, ``lora``, ``qlora``, or another.
        rank: of adapters, None where it does not say.
        gpu: that its hardware stands for, None where it names none.
        gpu_count: GPUs, 1 where it does not say.
        examples: of the data set, None where it does not say.
        low: the figure, or the lower end of its range.
        high: the upper end.
        unit: of the figure.
        as_stated: in its own words.
    """

    claim_id: str
    quantity: str
    subject: str
    model: str | None
    method: str
    rank: int | None
    gpu: str | None
    gpu_count: int
    examples: int | None
    low: float
    high: float
    unit: str
    as_stated: str

    @property
    def middle(self) -> float:
        """Geometric mean of the ends of the range, which are mostly the same."""
        return math.sqrt(max(self.low, 1e-9) * min(self.high, 1e9))

    def is_near(self, value: float) -> bool:
        """Whether a value is what the figure says, within :data:`NEAR`."""
        return self.low * (1 - NEAR) <= value <= self.high * (1 + NEAR)


@dataclass(frozen=True)
class Answer:
    """What there is to say about a claim.

    Attributes:
        claim: the figure.
        usual: what is predicted: of memory the least and the most, of a run the figure for :data:`USUAL`.
        recipes: of which the figure is true, in words; the closest of every length first, then the others.
        tried: recipes of the grid.
        reason: why there is no answer, empty where there is one.
    """

    claim: Claim
    usual: str
    recipes: tuple[str, ...]
    tried: int
    reason: str = ""


def read_claims() -> tuple[Claim, ...]:
    """All figures of the table, those that cannot be answered included.

    Raises:
        DataError: a number that is none.
    """
    return tuple(map(_claim, tables.read("claims")))


def _claim(row: tables.Row) -> Claim:
    counted = re.fullmatch(r"(\d+)x (.*)", row["hardware"])
    params = _number(row, "model_params_b")
    low, high = _number(row, "value_low"), _number(row, "value_high")
    return Claim(
        claim_id=row["claim_id"],
        quantity=row["quantity"],
        subject=row["subject"],
        model=MODELS.get(round(params)) if params else None,
        method=row["method"],
        rank=int(row["rank"]) if row["rank"].isdigit() else None,
        gpu=GPUS.get(counted[2]) if counted else None,
        gpu_count=int(counted[1]) if counted else 1,
        examples=int(row["dataset_examples"]) if row["dataset_examples"].isdigit() else None,
        low=low if low is not None else 0.0,
        high=high if high is not None else float("inf"),
        unit=row["unit"],
        as_stated=row["as_stated"],
    )


def _number(row: tables.Row, name: str) -> float | None:
    try:
        return float(row[name]) if row[name] else None
    except ValueError as err:
        raise DataError(f"claims.csv, {row['claim_id']}, {name} = {row[name]!r}: expected a number") from err


def answer(claim: Claim, offers: Iterable[Offer]) -> Answer:
    """What would make a claim true.

    Args:
        claim: the figure.
        offers: of a price table; those on demand and dated are used for costs.
    """
    reason = _no_answer(claim)
    if reason:
        return Answer(claim, "", (), 0, reason)
    return _of_memory(claim) if claim.quantity == "gpu_memory" else _of_a_run(claim, tuple(offers))


def _no_answer(claim: Claim) -> str:
    needs_run = claim.quantity in ("time", "cost")
    checks = (
        (claim.quantity in _UNITS, "not about memory, time or cost"),
        (claim.subject == "training", f"about {claim.subject}, not about a run"),
        (claim.unit == _UNITS.get(claim.quantity), f"in {claim.unit}"),
        (claim.method in _METHODS, f"method {claim.method or 'not said'}"),
        (claim.model is not None, "model not said"),
        (claim.gpu_count == 1, "several GPUs are not supported yet"),
        (not needs_run or claim.gpu is not None, "GPU not said"),
        (not needs_run or claim.examples is not None, "number of examples not said"),
    )
    return next((reason for holds, reason in checks if not holds), "")


# -- memory ------------------------------------------------------------------------------------------------------------


def _of_memory(claim: Claim) -> Answer:
    found = {_words(s): _gigabytes(_estimate(claim, s)) for s in memory_recipes(claim)}
    least, most = min(found.values()), max(found.values())
    near = sorted((abs(n - claim.middle), words) for words, n in found.items() if claim.is_near(n))
    varied = _varied([words for _, words in near], lambda words: words.split(", ")[-1])
    return Answer(claim, f"{least:.1f} to {most:.1f} GB", tuple(f"{w}: {found[w]:.1f} GB" for w in varied), len(found))


def _varied(found: Sequence[T], kind: Callable[[T], object]) -> list[T]:
    """The same, with the first of every kind in front."""
    firsts = {kind(item): n for n, item in reversed(list(enumerate(found)))}
    return sorted(found, key=lambda item: found.index(item) not in firsts.values())


def memory_recipes(claim: Claim) -> Iterator[dict[str, Any]]:
    """Recipes that a figure on memory is held against; in float32 where that is what it is about."""
    optims = ("adamw_torch_fused", "paged_adamw_8bit", "adafactor")
    grid: dict[str, tuple[Any, ...]] = {
        "stack": ("transformers-trainer", "trl-sft", "pure-bf16-loop"),
        "gradient_checkpointing": ("none", "non_reentrant"),
        "loss": ("full", "fused_linear"),
        "optim": optims if claim.method == "full" else optims[:1],
        "micro_batch_size": (1, 4),
        "seq_len": (128, 512, 2048, 4096),
    }
    for values in itertools.product(*grid.values()):
        dtype = {"dtype": "float32"} if "fp32" in claim.as_stated.lower() else {}
        yield {**dict(zip(grid, values, strict=True)), **dtype}


def _estimate(claim: Claim, settings: Mapping[str, Any]) -> Estimate:
    rank: dict[str, Any] = {} if claim.rank is None or claim.method == "full" else {"rank": claim.rank}
    return estimate(str(claim.model), claim.method, **settings, **rank)


def _gigabytes(found: Estimate) -> float:
    """Live tensors at the peak: the least that can be meant by memory."""
    return found.allocated_bytes / _GB


def _words(settings: Mapping[str, Any]) -> str:
    parts = [
        str(settings["stack"]),
        {"none": "no checkpointing"}.get(settings["gradient_checkpointing"], "checkpointing"),
        {"full": "full logits"}.get(settings["loss"], "fused loss"),
        str(settings["optim"]),
        f"{settings['micro_batch_size']} x {settings['seq_len']:,} tokens",
        *(["float32 weights"] if "dtype" in settings else []),
    ]
    return ", ".join(parts)


# -- time and cost -----------------------------------------------------------------------------------------------------


def run_recipes() -> Iterator[dict[str, Any]]:
    """Recipes that a figure on time or cost is held against."""
    for batch, checkpointing, tokens in itertools.product(BATCHES, CHECKPOINTING, TOKENS):
        yield {
            "micro_batch_size": batch,
            "gradient_accumulation_steps": EFFECTIVE_BATCH // batch,
            "gradient_checkpointing": checkpointing,
            "seq_len": tokens,
        }


def _of_a_run(claim: Claim, offers: tuple[Offer, ...]) -> Answer:
    plans = [plan for settings in run_recipes() for plan in _plans(claim, settings, offers)]
    figures = [(figure, plan) for plan in plans if (figure := _figure(claim, plan))]
    near = [(f, p) for f, p in figures if f.low <= claim.high and claim.low <= f.high]
    near.sort(key=lambda found: (abs(math.log(found[0].value / claim.middle)), found[1].work.epochs))
    usual = [_shown(f, p, claim) for f, p in figures if (p.work.tokens_per_example, p.work.epochs) == USUAL]
    varied = _varied(near, lambda f: claim.is_near(f[0].value) and f[1].work.tokens_per_example)
    return Answer(claim, usual[0] if usual else "does not fit", tuple(_shown(*f, claim) for f in varied), len(plans))


def _plans(claim: Claim, settings: Mapping[str, Any], offers: tuple[Offer, ...]) -> Iterator[Plan]:
    """A recipe over several numbers of epochs."""
    fit = verdict(_estimate(claim, {"gpu": claim.gpu, **settings}))
    step = None if fit.status == "does not fit" else step_time_of(fit.estimate)
    for epochs in EPOCHS:
        work = Workload(examples=claim.examples or 1, tokens_per_example=settings["seq_len"], epochs=epochs)
        yield plan_of(fit, work, offers=offers, step=step)


def _figure(claim: Claim, plan: Plan) -> Interval | None:
    """What a claim is about; None where the job does not fit."""
    if claim.quantity == "time":
        return plan.hours
    cheapest = plan.cheapest("on_demand")
    return cheapest.usd if cheapest else None


def _shown(figure: Interval, plan: Plan, claim: Claim) -> str:
    training = plan.verdict.estimate.job.training
    epochs = f"{plan.work.epochs:g} epoch{'s' * (plan.work.epochs > 1)}"
    recipe = f"{epochs} of {training.seq_len:,} tokens, micro batch {training.micro_batch_size}"
    if training.gradient_checkpointing != "none":
        recipe += ", checkpointing"
    numbers = " to ".join(f"{n:.3g}" for n in (figure.low, figure.high))
    return f"{recipe}: {figure.value:.3g} ({numbers}) {claim.unit}"
