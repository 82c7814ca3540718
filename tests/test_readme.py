"""What README.md promises in words that no generator writes."""

from __future__ import annotations

import re
from pathlib import Path

from profile_rows import row
from test_laws import tiny

from vramcalc import verdict
from vramcalc.campaign_run import Summary
from vramcalc.presets import PRESETS
from vramcalc.profiles import shipped
from vramcalc.render_profile import summary_dict

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


def test_every_field_of_a_profile_row_is_documented() -> None:
    fields = {*row().model_dump(by_alias=True), *summary_dict(Summary(), Path("rows.jsonl"))}
    assert {name for name in fields if f"`{name}`" not in README} == set()


def test_what_the_project_has_not_measured_is_said_as_long_as_it_is_true() -> None:
    assert ("No number in this README rests on a measurement of the project's own yet" in README) == (not [*shipped()])


def test_every_recipe_is_listed() -> None:
    section = README[README.index("## The recipe") : README.index("## Command line")]
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE)) == set(PRESETS)


def test_the_other_project_of_that_name_is_mentioned() -> None:
    assert "finetune-vramcalc" in README
    assert "Another project owns the name" in README
