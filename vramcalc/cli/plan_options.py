"""Command-line options about a run and its price, made from the specs they fill."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vramcalc.cli.options import flag_of, number, whole_number
from vramcalc.errors import InvalidValue

if TYPE_CHECKING:
    from vramcalc.planning.cost import Billing, Rate
    from vramcalc.planning.workload import Workload

T = TypeVar("T")
_Command = Callable[..., None]
_WORK = {
    "examples": (int, "Examples of the data set."),
    "tokens_per_example": (int, "Tokens of an example, without padding."),
    "epochs": (float, "Passes over the examples."),
    "validation_share": (float, "Share of the examples set apart, gone over once an epoch."),
    "packing": (bool, "Lay examples end to end in sequences of --seq-len, without padding."),
}
_PRICE = {
    "price": (float, "USD for an hour of one instance, in place of the table's offers."),
    "instance_gpus": (int, "GPUs of that instance, or of the machine that was bought."),
}
_MACHINE = {
    "purchase_usd": (float, "Price of a machine that was bought; its cost per hour takes the place of offers."),
    "lifetime_years": (float, "Years over which it is written off."),
    "utilisation": (float, "Share of those years in which it works."),
    "power_w": (float, "Watts of the whole machine at work."),
    "idle_power_w": (float, "Watts while it idles."),
    "usd_per_kwh": (float, "Price of electricity."),
    "pue": (float, "Energy of the site over that of its machines."),
}
_BILLING = {
    "increment_s": (float, "Billed time is rounded up to a multiple of it."),
    "minimum_s": (float, "The least time that is billed."),
}
_KINDS: dict[str, tuple[type, str]] = {**_WORK, **_PRICE, **_MACHINE, **_BILLING}
DEFAULTS = {
    "epochs": 1.0,
    "validation_share": 0.0,
    "lifetime_years": 3.0,
    "utilisation": 0.5,
    "idle_power_w": 0.0,
    "pue": 1.0,
    "increment_s": 1.0,
    "minimum_s": 60.0,
}
"""What the help says of the specs' defaults, without importing them whenever any command starts."""
_MANDATORY_OF_A_MACHINE = ("purchase_usd", "power_w", "usd_per_kwh")


def with_plan_options(**defaults: Any) -> Callable[[_Command], _Command]:
    """Give a command that takes ``**options`` those about a run and its price.

    Args:
        **defaults: that the command has for options which no spec has one for; it fills them in itself.
    """

    def decorate(command: _Command) -> _Command:
        signature = inspect.signature(command)
        *own, rest = signature.parameters.values()
        own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        made = [_parameter(name, kind, text, defaults.get(name)) for name, (kind, text) in _KINDS.items()]
        command.__signature__ = signature.replace(parameters=[*own, *made, rest])  # type: ignore[attr-defined]
        return command

    return decorate


def _parameter(name: str, kind: type, text: str, default: Any) -> inspect.Parameter:
    shown = DEFAULTS.get(name, default)
    told = f" [default: {shown:g}]" if shown is not None and kind is not bool else ""
    metavar = None if kind is bool else f"<{kind.__name__}>"
    option = typer.Option(flag_of(name), help=text + told, metavar=metavar, show_default=False)
    annotation = Annotated[bool, option] if kind is bool else Annotated[str | None, option]
    value = False if kind is bool else None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=annotation)


def taken_from(options: dict[str, Any], **defaults: Any) -> tuple[Workload, Rate | None, Billing]:
    """What the options say of the run, of one's own rate and of billing; they are taken out of ``options``.

    Raises:
        InvalidValue: a value that is none, one out of range, or one without those it needs.
    """
    from vramcalc.planning.cost import Billing
    from vramcalc.planning.workload import Workload

    given = dict(defaults)
    for name, (kind, _) in _KINDS.items():
        value = options.pop(name, None)
        if value is not None:
            given[name] = value if kind is bool else (whole_number if kind is int else number)(flag_of(name), value)
    for name in ("examples", "tokens_per_example"):
        if name not in given:
            raise InvalidValue(flag_of(name), None, "a number", f"such as {flag_of(name)} 512")
    return _spec(Workload, _WORK, given), _rate(given), _spec(Billing, _BILLING, given)


def _spec(spec: type[T], names: Iterable[str], given: dict[str, Any]) -> T:
    return spec(**{n: given[n] for n in names if n in given})


def _rate(given: dict[str, Any]) -> Rate | None:
    from vramcalc.planning.cost import OwnMachine, OwnRate

    machine = [n for n in _MACHINE if n in given]
    gpus = {"gpu_count": given["instance_gpus"]} if "instance_gpus" in given else {}
    if "price" in given and machine:
        raise InvalidValue(flag_of("price"), given["price"], f"no {flag_of(machine[0])} beside it", "leave one out")
    if "price" in given:
        return OwnRate(usd_per_hour=given["price"], **gpus).rate
    if machine:
        for name in _MANDATORY_OF_A_MACHINE:
            if name not in given:
                raise InvalidValue(flag_of(name), None, f"a number to go with {flag_of(machine[0])}")
        return OwnMachine(**{n: given[n] for n in machine}, **gpus).rate
    if gpus:
        raise InvalidValue("--instance-gpus", gpus["gpu_count"], "a --price or a --purchase-usd to go with it")
    return None
