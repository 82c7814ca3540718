"""Commands about time and money: ``prices``, ``plan``, ``table``."""

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vramcalc.cli.common import (
    GpuMemory,
    GpuName,
    Json,
    Method,
    Model,
    StackName,
    exit_with,
    first_detected,
    known_method,
    named_gpu,
)
from vramcalc.cli.options import noted_settings_of, number, with_options
from vramcalc.cli.plan_options import taken_from, with_plan_options
from vramcalc.cli.terminal import painted, print_json, print_note, print_text
from vramcalc.errors import InvalidValue
from vramcalc.planning.fit import USUAL

if TYPE_CHECKING:
    from vramcalc.planning.prices import Offer, Prices

Provider = Annotated[str | None, typer.Option(help="Offers of this provider alone.", metavar="<str>")]
Tier = Annotated[str | None, typer.Option(help="Only on_demand or only spot.", metavar="<str>")]
PriceTable = Annotated[
    str | None, typer.Option(help="A price table in the schema of tables/prices.csv.", metavar="<path>")
]
_TABLE_WORK = {"examples": 10_000, "tokens_per_example": 512}
"""What a table is about where nothing is said."""

prices_app = typer.Typer(name="prices", invoke_without_command=True, rich_markup_mode=None, add_completion=False)


@prices_app.callback()
def prices(
    context: typer.Context,
    gpu: GpuName = None,
    provider: Provider = None,
    tier: Tier = None,
    price_table: PriceTable = None,
    as_json: Json = False,
) -> None:
    """Dated prices of instances, the cheapest first."""
    if context.invoked_subcommand is not None:
        return
    from vramcalc.planning.prices import select, stale

    table = _prices(price_table)
    found = select(table.offers, gpu=gpu, provider=provider, tier=tier)
    warnings = [*([table.note] if table.note else []), *stale(found, datetime.date.today())]
    if as_json:
        print_json({"path": str(table.path), "warnings": warnings, "offers": [o.to_dict() for o in found]})
    else:
        from vramcalc.show.text.plans import offers_text

        print_text(offers_text(found, warnings))


@prices_app.command()
def refresh(
    without: Annotated[
        list[str] | None, typer.Option(help="Go ahead without this provider; repeatable.", metavar="<str>")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch new prices into this user's own table (extra 'prices').

    Of providers that are not fetched the offers stay as they are. What is not whole changes nothing.
    """
    from vramcalc.planning.refresh_prices import refresh as fetch
    from vramcalc.show.progress import waiting

    with waiting("fetching prices"):
        found = fetch(datetime.date.today(), without=without or ())
    if as_json:
        print_json({**vars(found), "prices": str(found.prices.path)})
        return
    from vramcalc.show.text.plans import refreshed_text

    print_text(refreshed_text(found))


def _prices(path: str | None) -> "Prices":
    from vramcalc.planning.prices import Prices, current, read

    return Prices(read(path), Path(path)) if path else current()


def _offers(table: "Prices", provider: str | None, tier: str | None) -> "list[Offer]":
    from vramcalc.planning.prices import select

    return select(table.offers, provider=provider, tier=tier)


@with_options
@with_plan_options()
def plan(
    model: Model,
    method: Method = "lora",
    gpu: GpuName = None,
    gpu_memory: GpuMemory = None,
    measured_step_s: Annotated[
        str | None, typer.Option(help="Seconds of one optimizer step, measured.", metavar="<float>")
    ] = None,
    overhead_minutes: Annotated[
        str | None, typer.Option(help="Loading, saving and whatever else is billed.", metavar="<float>")
    ] = None,
    max_budget_usd: Annotated[
        str | None, typer.Option(help="Exit status 1 where the cheapest costs more.", metavar="<float>")
    ] = None,
    max_hours: Annotated[
        str | None, typer.Option(help="Exit status 1 where the run takes longer.", metavar="<float>")
    ] = None,
    provider: Provider = None,
    tier: Tier = None,
    price_table: PriceTable = None,
    stack: StackName = "transformers-trainer",
    as_json: Json = False,
    **options: Any,
) -> None:
    """Steps, hours and dollars of a run on one GPU.

    Without --gpu, on the first GPU of this machine.
    """
    from vramcalc.planning.plan import plan as plan_of

    work, rate, billing = taken_from(options)
    table = _prices(price_table)
    device = named_gpu(gpu, gpu_memory) or first_detected()
    found = plan_of(
        model,
        known_method(method),
        gpu=device,
        work=work,
        offers=_offers(table, provider, tier),
        rate=rate,
        billing=billing,
        measured_step_s=_optional("--measured-step-s", measured_step_s),
        overhead_s=60 * (_optional("--overhead-minutes", overhead_minutes) or 0.0),
        today=datetime.date.today(),
        stack=stack,
        **noted_settings_of(options),
    )
    too_much = found.excess(
        max_usd=_optional("--max-budget-usd", max_budget_usd), max_hours=_optional("--max-hours", max_hours)
    )
    if table.note and rate is None:
        print_note(table.note)
    if as_json:
        print_json({**found.to_dict(), "exceeds": too_much})
    else:
        print_text(painted(str(found)))
    for reason in too_much:
        print_note(reason)
    exit_with(found.hours is not None and not too_much)


@with_options
@with_plan_options(**_TABLE_WORK)
def table(
    models: Annotated[list[str], typer.Option(help="Models, with commas or repeated.", metavar="<str>")],
    gpus: Annotated[list[str], typer.Option(help="GPU ids, with commas or repeated.", metavar="<str>")],
    methods: Annotated[
        list[str] | None, typer.Option(help=f"Of {', '.join(USUAL)}, all by default.", metavar="<str>")
    ] = None,
    format: Annotated[str, typer.Option(help="One of: md, csv, html, latex, json.", metavar="<str>")] = "md",  # noqa: A002
    output: Annotated[str | None, typer.Option(help="Write it to a file, whole.", metavar="<path>")] = None,
    provider: Provider = None,
    tier: Tier = "on_demand",
    price_table: PriceTable = None,
    stack: StackName = "transformers-trainer",
    **options: Any,
) -> None:
    """A table for a planning document: a row per model, method and GPU."""
    from vramcalc.files.writing import write_whole
    from vramcalc.planning.prices import Prices
    from vramcalc.show.formats import FORMATS
    from vramcalc.show.planning_table import planning_table

    if format not in FORMATS:
        raise InvalidValue("--format", format, f"one of {', '.join(FORMATS)}")
    work, rate, billing = taken_from(options, **_TABLE_WORK)
    prices = _prices(price_table)
    found = planning_table(
        _listed(models),
        [known_method(name) for name in _listed(methods or USUAL)],
        _listed(gpus),
        work=work,
        prices=Prices(tuple(_offers(prices, provider, tier)), prices.path, prices.refreshed),
        tier=tier,
        rate=rate,
        billing=billing,
        today=datetime.date.today(),
        stack=stack,
        **noted_settings_of(options),
    )
    text = found.format(format)
    if output is None:
        print_text(text)
    else:
        write_whole(Path(output), f"{text}\n")
    for note in found.notes:
        print_note(note)


def _listed(given: Any) -> list[str]:
    return [name.strip() for part in given for name in part.split(",") if name.strip()]


def _optional(flag: str, text: str | None) -> float | None:
    return None if text is None else number(flag, text)
