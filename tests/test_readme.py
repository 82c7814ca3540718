"""What README.md promises in words that no generator writes."""

from __future__ import annotations

import re
from pathlib import Path

from test_laws import tiny

from vramcalc import verdict
from vramcalc.presets import PRESETS

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_there_are_exactly_two_set_up_commands_and_both_make_their_own_environment() -> None:
    commands = re.findall(r"^python3 -m venv \S+ && .*$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        folder = command.split()[3]
        assert f"{folder}/bin/pip install" in command
    assert re.search(r"pip install \. && \.venv/bin/vramcalc fit", commands[0])
    assert re.search(r"pip install '\.\[test\]' && \.venv-test/bin/pytest$", commands[1])


def test_every_json_field_is_documented() -> None:
    found = tiny("lora", gpu="t4")
    fields = {*found.to_dict(), *verdict(found).to_dict(), *found.to_dict()["rows"][0], "remedies"}
    assert {name for name in fields if f"`{name}`" not in README} == set()


def test_every_recipe_is_listed() -> None:
    section = README[README.index("## The recipe") : README.index("## Command line")]
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE)) == set(PRESETS)


def test_the_other_project_of_that_name_is_mentioned() -> None:
    assert "finetune-vramcalc" in README
    assert "Another project owns the name" in README
