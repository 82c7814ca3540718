"""The commands by name, each imported and made when it is asked for.

``estimate`` need not wait for what ``plan`` imports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

COMMANDS = {
    "fit": "jobs.fit",
    "estimate": "jobs.estimate",
    "max": "jobs.largest",
    "plan": "plans.plan",
    "table": "plans.table",
    "trace": "jobs.trace",
    "profile": "measure.profile",
    "campaign": "measure.campaign",
    "calibrate": "calibrate.calibrate",
    "gpus": "accuracy_and_lists.gpus",
    "models": "accuracy_and_lists.models",
    "accuracy": "accuracy_and_lists.accuracy",
    "prices": "plans.prices_app",
}
"""Where each one is, in the order of the help: a function, or an app of its own where it has commands."""


class CommandsByName(Mapping[str, Any]):
    """What typer looks a command up in; names are known without importing any."""

    def __getitem__(self, name: str) -> Any:
        return made(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Group(TyperGroup):
    """``vramcalc``, whose commands are those of :data:`COMMANDS`."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "commands": CommandsByName()})


@cache
def made(name: str) -> Any:
    """The command of that name, made of its function; an app makes its own."""
    module, attribute = COMMANDS[name].split(".")
    what = getattr(import_module(f"vramcalc.cli.{module}"), attribute)
    if isinstance(what, typer.Typer):
        return get_command(what)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name)(what)
    return get_command(app)
