"""A table for a planning document: one row per model, method and GPU, with memory, hours, dollars and the recipe."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Gpu, ModelSpec
from vramcalc.planning.cost import Billing, Rate
from vramcalc.planning.fit import METHODS, USUAL, fit
from vramcalc.planning.plan import Plan, fed, plan_of
from vramcalc.planning.prices import Prices, current
from vramcalc.planning.verdict import Verdict
from vramcalc.planning.workload import Workload, schedule
from vramcalc.show.formats import Cell, formatted, significant
from vramcalc.show.progress import track
from vramcalc.show.words import method_line, precision, step_line
from vramcalc.units import GIB

_DECIMALS = {"peak_gib": 2, "usable_gib": 2, "usd": 2, "usd_low": 2, "usd_high": 2}


@dataclass(frozen=True)
class Choice:
    """One row; None is not known, or does not apply as the job does not fit.

    Attributes:
        model: Hugging Face id.
        method: ``full``, ``lora``, ``qlora``.
        gpu: id.
        peak_gib: memory of the process at its highest. [GiB]
        usable_gib: of the GPU. [GiB]
        verdict: ``fits``, ``tight``, ``does not fit``.
        steps: optimizer steps of the run.
        hours: of the run, and its bounds. [h]
        usd: of the cheapest offer, and its bounds. [USD]
        offer: which one that is.
        price_date: of the offer.
        recipe: what the figures assume.
    """

    model: str
    method: str
    gpu: str
    peak_gib: float
    usable_gib: float
    verdict: str
    steps: int
    hours: float | None
    hours_low: float | None
    hours_high: float | None
    usd: float | None
    usd_low: float | None
    usd_high: float | None
    offer: str | None
    price_date: str | None
    recipe: str

    @property
    def cells(self) -> list[Cell]:
        """In the order of the columns."""
        return [getattr(self, name) for name in COLUMNS]


COLUMNS = tuple(f.name for f in fields(Choice))


@dataclass(frozen=True)
class Choices:
    """The rows of a table.

    Attributes:
        rows: by size of the model, then method, then memory of the GPU.
        notes: why figures are missing, and what a reader should know.
    """

    rows: tuple[Choice, ...]
    notes: tuple[str, ...]

    def format(self, format: str) -> str:  # noqa: A002 - as the option
        """As text in one of the formats.

        Raises:
            InvalidValue: no such format.
        """
        return formatted(COLUMNS, [row.cells for row in self.rows], format, _DECIMALS)

    def _repr_html_(self) -> str:
        return self.format("html")


def planning_table(
    models: Sequence[str | ModelSpec],
    methods: Sequence[str] = USUAL,
    gpus: Sequence[str | Gpu] = (),
    *,
    work: Workload,
    prices: Prices | None = None,
    tier: str | None = "on_demand",
    rate: Rate | None = None,
    billing: Billing | None = None,
    today: datetime.date | None = None,
    **settings: Any,
) -> Choices:
    """Every model with every method on every GPU; what is named twice counts once.

    Args:
        models: as in :func:`vramcalc.estimate`.
        methods: ``full``, ``lora``, ``qlora``.
        gpus: ids or specs.
        work: examples, their length, epochs.
        prices: the table offers come from, None for the current one.
        tier: of the offers, None for both.
        rate: one's own, in place of the offers.
        billing: how time is billed.
        today: prices are called old as seen from that day; None, never.
        **settings: as in ``fit``.

    Raises:
        InvalidValue: no model, method or GPU; otherwise as ``estimate``.
        UnknownName: a name that does not exist.
    """
    for name, given in (("models", models), ("methods", methods), ("gpus", gpus)):
        if not given:
            raise InvalidValue(name, list(given), "at least one")
    specs = sorted(dict.fromkeys(map(catalog.model, models)), key=lambda m: (m.params_total, m.name))
    devices = sorted(dict.fromkeys(map(catalog.gpu, gpus)), key=lambda g: (g.usable_bytes, g.gpu_id))
    ordered = sorted(dict.fromkeys(methods), key=lambda m: METHODS.index(m) if m in METHODS else len(METHODS))
    prices = prices or current()
    offers = [o for o in prices.offers if tier in (None, o.tier)]
    notes = dict.fromkeys([prices.note] if prices.note else [])
    rows = []
    for model in track(specs, "estimating", len(specs)):
        for verdict in fit(model, gpus=devices, methods=ordered, **fed(work, settings)):
            try:
                plan = plan_of(verdict, work, offers=offers, rate=rate, billing=billing, today=today)
                notes |= dict.fromkeys(plan.warnings)
            except Unsupported as err:
                plan = None
                notes[f"no hours on {verdict.gpu.gpu_id}: {err}"] = None
            rows.append(_row(verdict, work, plan))
    return Choices(tuple(rows), tuple(notes))


def _row(fit: Verdict, work: Workload, plan: Plan | None) -> Choice:
    job = fit.estimate.job
    cheapest = plan.cheapest() if plan else None
    hours = plan.hours.map(significant) if plan and plan.hours else None
    usd = cheapest.usd.map(lambda exact: round(exact, 2)) if cheapest else None
    return Choice(
        model=job.model.name,
        method=job.method.kind,
        gpu=fit.gpu.gpu_id,
        peak_gib=round(fit.needed_bytes / GIB, 2),
        usable_gib=round(fit.usable_bytes / GIB, 2),
        verdict=fit.status,
        steps=schedule(work, job.training).steps,
        hours=hours.value if hours else None,
        hours_low=hours.low if hours else None,
        hours_high=hours.high if hours else None,
        usd=usd.value if usd else None,
        usd_low=usd.low if usd else None,
        usd_high=usd.high if usd else None,
        offer=_offer(cheapest.rate) if cheapest else None,
        price_date=cheapest.rate.as_of if cheapest else None,
        recipe=_recipe(job, work),
    )


def _offer(rate: Rate) -> str:
    """What is rented: the instance, that it is spot, and that it has more GPUs than the one at work."""
    return rate.label + (", spot" if rate.tier == "spot" else "") + (f", {rate.gpu_count} GPUs" * (rate.gpu_count > 1))


def _recipe(job: Job, work: Workload) -> str:
    """What the figures assume, in one cell."""
    training = job.training
    batch = f"{training.gradient_accumulation_steps} x {training.micro_batch_size} x {training.seq_len} tokens a step"
    feed = ", packed" if work.packing else ", padded" if training.padded else ""
    apart = f", {100 * work.validation_share:g} % for validation" if work.validation_share else ""
    data = f"{work.examples} examples of {work.tokens_per_example} tokens{apart}, epochs: {work.epochs:g}"
    return f"{job.stack.name}: {method_line(job)}; {precision(job)}; {step_line(job)}; {batch}{feed}; {data}"
