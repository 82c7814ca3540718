"""Plans and offers as plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from vramcalc.interval import Interval
from vramcalc.planning.prices import Offer
from vramcalc.show.plaintext import filled_table, table, warning_parts, wrapped, wrapped_lines
from vramcalc.show.text.estimates import verdict_text
from vramcalc.show.words import method_line, recipe_lines
from vramcalc.units import human_hours, usd

if TYPE_CHECKING:
    from vramcalc.planning.cost import Bill
    from vramcalc.planning.plan import Plan
    from vramcalc.planning.refresh_prices import Refreshed

_TITLES = {
    "on_demand": "Cheapest on demand",
    "spot": "Cheapest spot (may be taken away; the time lost is not counted)",
    "own": "At the rate given",
}
_SHOWN = 5


def plan_text(plan: Plan) -> str:
    """A plan: the verdict, the recipe, steps and hours, what the cheapest offers cost, warnings."""
    job = plan.verdict.estimate.job
    parts = [
        wrapped(f"{job.model.name}: {method_line(job)} on {plan.verdict.gpu.gpu_id}"),
        wrapped_lines(recipe_lines(job)),
        verdict_text(plan.verdict),
        f"Run\n{_run(plan)}",
        *_bills(plan),
        *warning_parts(plan.warnings),
    ]
    return "\n\n".join(parts)


def _run(plan: Plan) -> str:
    work, steps, training = plan.work, plan.schedule, plan.verdict.estimate.job.training
    apart = f", {steps.validation_examples:,} more set apart" if steps.validation_examples else ""
    padding = f"{100 * steps.padding_share:.1f} % padding" if steps.padding_share > 0 else "no padding"
    feed = f"packed, {padding}" if work.packing else padding
    batch = f"{training.micro_batch_size} x {training.gradient_accumulation_steps}"
    rows = [
        ("data", f"{steps.train_examples:,} examples of {work.tokens_per_example:,} tokens{apart}"),
        ("sequences", f"{steps.sequences:,} of {training.seq_len:,} tokens per epoch, {feed}"),
        ("steps", f"{steps.steps:,}: {work.epochs:g} x {steps.steps_per_epoch:,}, each of {batch} sequences"),
    ]
    if steps.validation_micro_steps:
        rows.append(("validation", f"{steps.validation_micro_steps:,} forward passes"))
    if plan.step and plan.hours:
        s = plan.step
        rows += [
            ("step", f"{_ranged(Interval(s.low_s, s.s, s.high_s), lambda n: f'{n:.3g} s')}, {s.basis}"),
            *((("others", "; ".join(str(r) for r in plan.ratios)),) if plan.ratios else ()),
            ("time", time_text(plan.hours)),
            ("GPU-hours", _ranged(plan.gpu_hours or plan.hours, lambda n: f"{n:.3g}")),
        ]
    return table(rows, ("", ""), wrap=[None, 84])


def time_text(hours: Interval) -> str:
    """``"25 min (20 to 31)"``."""
    bounds = (hours.low, hours.high) if hours.low < hours.high else ()
    return human_hours(hours.value, *bounds)


def _ranged(found: Interval, shown: Callable[[float], str]) -> str:
    """A value, and the interval around it where there is one."""
    return shown(found.value) + (f" ({_range(found, shown)})" if found.low < found.high else "")


def _range(found: Interval, shown: Callable[[float], str]) -> str:
    return f"{shown(found.low)} to {shown(found.high)}" if found.low < found.high else ""


def _bills(plan: Plan) -> list[str]:
    if plan.hours is None:
        return ["No hours and no dollars: the job does not fit."]
    if not plan.bills:
        return [f"No dated offer of {plan.verdict.gpu.gpu_id} is known: give a rate of your own, --price 1.99"]
    parts = []
    for tier, title in _TITLES.items():
        mine = [b for b in plan.bills if b.rate.tier == tier]
        if mine:
            rest = f"\n  and {len(mine) - _SHOWN} more" if len(mine) > _SHOWN else ""
            parts.append(f"{title}\n{_bill_rows(mine[:_SHOWN])}{rest}")
    parts.append(wrapped("Whole instances are billed, for the hours of the run alone.", "  "))
    return parts


def _bill_rows(bills: Sequence[Bill]) -> str:
    rows = [
        (
            usd(b.usd.value),
            _range(b.usd, usd),
            usd(b.rate.usd_per_hour),
            f"{b.rate.gpu_count}" + (f", {b.idle_gpus} idle" if b.idle_gpus else ""),
            b.rate.as_of,
            b.rate.label + (", derived" if b.rate.offer and b.rate.offer.kind == "derived" else ""),
        )
        for b in bills
    ]
    return filled_table(rows, ("USD", "interval", "USD/h", "GPUs", "price as of", "instance"), right=(0, 2))


def offers_text(offers: Sequence[Offer], notes: Iterable[str] = ()) -> str:
    """A line per offer, the cheapest first."""
    rows = [
        (
            o.gpu_id,
            o.gpu_count,
            usd(o.price_usd_hour),
            usd(o.price_usd_hour / o.gpu_count),
            o.tier.replace("_", " "),
            o.date,
            o.kind.replace("_", " "),
            o.label,
        )
        for o in offers
    ]
    headers = ("GPU", "", "USD/h", "per GPU", "tier", "as of", "source", "instance")
    parts = [filled_table(rows, headers, right=(1, 2, 3))] if rows else ["No such offer."]
    return "\n\n".join([*parts, *warning_parts(notes)])


def refreshed_text(found: Refreshed) -> str:
    """What a refresh brought, by provider."""
    rows = [(name, f"{n:,}") for name, n in found.fetched.items()]
    total, left_out = sum(found.fetched.values()), sum(found.left_out.values())
    parts = [f"{total:,} offers written to {found.prices.path}", table(rows, ("", ""), right=(1,))]
    if found.carried_over:
        parts.append(wrapped(f"{found.carried_over:,} offers of other providers kept, with their own dates"))
    if left_out:
        most = ", ".join(f"{gpu} ({n:,})" for gpu, n in found.left_out.most_common(5))
        parts.append(wrapped(f"{left_out:,} offers left out, as it is not known which board they have: {most}"))
    return "\n\n".join(parts)
