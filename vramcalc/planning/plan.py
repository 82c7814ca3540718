"""A run from data to dollars: does it fit, how many steps, how long, and what each offer would cost."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vramcalc import display
from vramcalc.errors import InvalidValue
from vramcalc.inputs import catalog
from vramcalc.inputs.stack import Gpu
from vramcalc.interval import Interval
from vramcalc.memory.estimate import Estimate, estimate
from vramcalc.planning.cost import Bill, Billing, Rate, bill, offer_rate
from vramcalc.planning.prices import TIERS, Offer, current, select, stale
from vramcalc.planning.verdict import Verdict, verdict
from vramcalc.planning.workload import Schedule, StepTime, Workload, hours_of, schedule
from vramcalc.timing.ratio import TimeRatio, method_ratios
from vramcalc.timing.step_time import step_time


@dataclass(frozen=True)
class Plan:
    """A run on one GPU.

    Attributes:
        verdict: whether it fits.
        work: examples, their length, epochs.
        schedule: its steps.
        step: time of one, None where the job does not fit.
        hours: of the run, None where the job does not fit. [h]
        bills: what it costs, the cheapest first; offers, or the one rate that was given.
        undated: offers left out as their price has no date.
        warnings: what a reader should know before trusting the numbers.
    """

    verdict: Verdict
    work: Workload
    schedule: Schedule
    step: StepTime | None
    hours: Interval | None
    bills: tuple[Bill, ...]
    undated: int
    warnings: tuple[str, ...]

    @property
    def gpu_hours(self) -> Interval | None:
        """Hours times the GPUs at work, which is one. [h]"""
        return self.hours

    @cached_property
    def ratios(self) -> tuple[TimeRatio, ...]:
        """Steps of the other methods over this one's, on the same GPU and tokens; none where the job does not fit."""
        return () if self.step is None else method_ratios(self.verdict.estimate)

    def cheapest(self, tier: str | None = None) -> Bill | None:
        """The bill with the least dollars, of a tier or of all; None where there is none."""
        return next((b for b in self.bills if tier in (None, b.rate.tier)), None)

    def excess(self, *, max_usd: float | None = None, max_hours: float | None = None) -> list[str]:
        """In what the run is more than it may be: its expected hours, or the dollars of its cheapest bill.

        A job that does not fit, or has no price, is not within any limit.

        Raises:
            InvalidValue: a limit that is no number above 0.
        """
        least = self.cheapest()
        found = []
        for name, limit, unit, needs in (
            ("max_budget_usd", max_usd, "USD", least.usd if least else None),
            ("max_hours", max_hours, "hours", self.hours),
        ):
            if limit is None:
                continue
            if not 0 < limit < float("inf"):
                raise InvalidValue(name, limit, "a number above 0")
            if needs is None:
                found.append(f"nothing to hold against {limit:g} {unit}")
            elif needs.value > limit:
                found.append(f"more than {limit:g} {unit}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values; field names are stable."""
        job = self.verdict.estimate.job
        step = self.step and {n: getattr(self.step, n) for n in ("s", "low_s", "high_s", "basis")}
        return {
            "model": job.model.name,
            "method": job.method.model_dump(mode="json"),
            "training": job.training.model_dump(mode="json"),
            "stack": job.stack.model_dump(mode="json"),
            "verdict": self.verdict.to_dict(remedies=False),
            "workload": self.work.model_dump(mode="json"),
            "schedule": self.schedule.to_dict(),
            "step": step,
            "step_ratios": [r.to_dict() for r in self.ratios],
            "hours": self.hours.to_dict() if self.hours else None,
            "gpu_hours": self.gpu_hours.to_dict() if self.gpu_hours else None,
            "cheapest": {t: b.to_dict() if (b := self.cheapest(t)) else None for t in (*TIERS, "own")},
            "bills": [b.to_dict() for b in self.bills],
            "undated_offers": self.undated,
            "warnings": list(self.warnings),
        }

    def __str__(self) -> str:
        return display.text(self)


def plan(
    model: Any,
    method: Any = "lora",
    *,
    gpu: str | Gpu,
    work: Workload | None = None,
    offers: Iterable[Offer] | None = None,
    rate: Rate | None = None,
    billing: Billing | None = None,
    measured_step_s: float | None = None,
    overhead_s: float = 0.0,
    today: datetime.date | None = None,
    **settings: Any,
) -> Plan:
    """A run of a job on one GPU: steps, hours and dollars.

    Args:
        model: as in :func:`vramcalc.estimate`.
        method: as in ``estimate``.
        gpu: an id, or a spec.
        work: examples, their length, epochs, validation, packing; or its fields as keywords.
        offers: of a price table, None for the current one; those of the GPU are billed, the dated ones.
        rate: one's own, in place of the offers.
        billing: how time is billed.
        measured_step_s: seconds of one optimizer step, measured; it takes the place of what is predicted.
        overhead_s: loading, saving and whatever else is billed. [s]
        today: prices are called old as seen from that day; None, never.
        **settings: as in ``estimate``, completed by :func:`fed`.

    Raises:
        UnknownName, InvalidValue, Unsupported: as ``estimate``; and where no step time is known.
    """
    mine = {n: settings.pop(n) for n in Workload.model_fields if n in settings}
    work = work.replace(**mine) if work else Workload(**mine)
    found = estimate(model, method, gpu=catalog.gpu(gpu), **fed(work, settings))
    offers = current().offers if offers is None else offers
    step = None if measured_step_s is None else step_time_of(found, measured_step_s)
    return plan_of(
        verdict(found), work, offers=offers, rate=rate, billing=billing, step=step, overhead_s=overhead_s, today=today
    )


def fed(work: Workload, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a job, completed by how its data is fed.

    Where nothing is packed and they do not say otherwise, a sequence is as long as an example; a longer one holds
    padding.
    """
    if work.packing or settings.keys() & {"training", "seq_lens"}:
        return dict(settings)
    padded = settings.get("seq_len", 0) > work.tokens_per_example
    return {"seq_len": work.tokens_per_example, **({"padded": True} if padded else {}), **settings}


def plan_of(
    fit: Verdict,
    work: Workload,
    *,
    offers: Iterable[Offer] = (),
    rate: Rate | None = None,
    billing: Billing | None = None,
    step: StepTime | None = None,
    overhead_s: float = 0.0,
    today: datetime.date | None = None,
) -> Plan:
    """The plan of a job that has been held against a GPU; see :func:`plan`.

    Args:
        fit: the job, and whether it fits.
        work: as in ``plan``.
        offers: as in ``plan``.
        rate: as in ``plan``.
        billing: as in ``plan``.
        step: time of a step, None to predict it.
        overhead_s: as in ``plan``.
        today: as in ``plan``.

    Raises:
        InvalidValue, Unsupported: as ``plan``.
    """
    job = fit.estimate.job
    steps = schedule(work, job.training)
    mine = [] if rate else select(o for o in offers if o.gpu_id == fit.gpu.gpu_id)
    undated = sum(o.as_of is None for o in mine)
    warnings = [*fit.estimate.warnings, *_warnings(steps, mine, undated, today)]
    if fit.status == "does not fit":
        return Plan(fit, work, steps, None, None, (), undated, tuple(warnings))
    step = step or step_time_of(fit.estimate)
    hours = hours_of(steps, step, job, overhead_s=overhead_s)
    rates = [rate] if rate else [offer_rate(o) for o in mine if o.as_of]
    warnings += step.notes
    bills = sorted((bill(hours, r, billing) for r in rates), key=lambda b: (b.usd.value, b.rate.gpu_count))
    return Plan(fit, work, steps, step, hours, tuple(bills), undated, tuple(warnings))


def _warnings(steps: Schedule, offers: Sequence[Offer], undated: int, today: datetime.date | None) -> list[str]:
    found = list(stale([o for o in offers if o.as_of], today)) if today else []
    if undated:
        found.append(f"offers left out as their prices have no date: {undated}")
    if steps.truncated_tokens:
        found.append(f"{steps.truncated_tokens:,} tokens of each example are cut off: a larger --seq-len keeps them")
    return found


def step_time_of(found: Estimate, measured_step_s: float | None = None) -> StepTime:
    """How long a step takes, predicted, or as measured.

    Raises:
        InvalidValue: a measured time that is no time.
        Unsupported: no step time is known.
    """
    return step_time(found, found.gpu, measured_step_s=measured_step_s)
