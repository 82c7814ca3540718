"""A command loads what it needs, and nothing of the others."""

from __future__ import annotations

import pytest
from command import process

from vramcalc.cli.commands import COMMANDS, CommandsByName, made

LOADED = """
import atexit, gc, sys
from vramcalc.__main__ import main
atexit.register(lambda: print(*sys.modules, gc.get_freeze_count() > 0, file=sys.stderr))
main()
"""


def loaded(*arguments: str) -> set[str]:
    return set(process(*arguments, python=("-c", LOADED)).err.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_found_under_its_name(name: str) -> None:
    assert CommandsByName()[name].name == name
    assert made(name) is made(name)


def test_names_are_told_without_loading_any() -> None:
    assert list(CommandsByName()) == list(COMMANDS)
    assert len(CommandsByName()) == len(COMMANDS)


def test_the_version_needs_no_input_and_no_command() -> None:
    found = loaded("--version")
    assert "vramcalc.cli.main" in found
    assert {name for name in found if name.startswith("vramcalc.inputs")} == set()


def test_an_estimate_needs_nothing_of_plans_measurements_or_comparisons() -> None:
    found = {name for name in loaded("estimate", "llama-3.2-1b", "--seq-len", "64") if name.startswith("vramcalc.")}
    assert "vramcalc.cli.jobs" in found
    others = {f"vramcalc.cli.{where.split('.')[0]}" for where in COMMANDS.values()} - {"vramcalc.cli.jobs"}
    assert found.isdisjoint(others)
    assert {name for name in found if name.split(".")[1] in ("timing", "profiling", "accuracy")} == set()


def test_what_is_left_is_not_looked_through_at_the_end() -> None:
    assert "True" in loaded("--version")
