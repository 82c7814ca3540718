"""What README.md and the READMEs of the rooms promise in words that no generator writes."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from profile_rows import row
from small import tiny

from vramcalc import verdict
from vramcalc.cli.commands import COMMANDS
from vramcalc.inputs.presets import PRESETS
from vramcalc.profiling.rows import shipped
from vramcalc.profiling.run_campaign import Summary
from vramcalc.show.text.profiles import summary_dict

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "vramcalc"
README = (ROOT / "README.md").read_text()
CLI = (PACKAGE / "cli" / "README.md").read_text()
INPUTS = (PACKAGE / "inputs" / "README.md").read_text()
FOLDERS = ("vramcalc", "tables", "tests")
DOCUMENTS = [ROOT / "README.md", *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))]
ROOMS = ("inputs", "shadow", "memory", "timing", "planning", "profiling", "accuracy", "show", "cli")
OF_THEIR_OWN = (PACKAGE / "shadow" / "families", PACKAGE / "shadow" / "methods")
"""Folders inside a room that have a README of their own."""


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_a_stranger_reads_it_in_one_sitting() -> None:
    assert len(README.encode()) < 10 * 1024


def test_there_are_exactly_two_set_up_commands_and_both_make_their_own_environment() -> None:
    commands = re.findall(r"^python3 -m venv \S+ && .*$", README, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        folder = command.split()[3]
        assert f"{folder}/bin/pip install" in command
    assert re.search(r"pip install \. && \.venv/bin/vramcalc fit", commands[0])
    assert re.search(r"pip install '\.\[test\]' && \.venv-test/bin/pytest$", commands[1])


def test_what_the_project_has_not_measured_is_said_as_long_as_it_is_true() -> None:
    assert ("No number in this README rests on a measurement of the project's own yet" in README) == (not [*shipped()])


def test_the_other_project_of_that_name_is_mentioned() -> None:
    assert "finetune-vramcalc" in README
    assert "Another project owns the name" in README


# -- JSON and recipes --------------------------------------------------------------------------------------------------


def test_every_json_field_is_documented() -> None:
    found = tiny("lora", gpu="t4")
    fields = {*found.to_dict(), *verdict(found).to_dict(), *found.to_dict()["rows"][0], "remedies"}
    assert {field for field in fields if f"`{field}`" not in CLI} == set()


def test_every_field_of_a_profile_row_is_documented() -> None:
    fields = {*row().model_dump(by_alias=True), *summary_dict(Summary(), Path("rows.jsonl"))}
    assert {field for field in fields if f"`{field}`" not in CLI} == set()


def test_every_recipe_is_listed() -> None:
    section = INPUTS[INPUTS.index("## Recipes") : INPUTS.index("What a loop of one's own does")]
    assert set(re.findall(r"^\| `([a-z0-9-]+)` \|", section, re.MULTILINE)) == set(PRESETS)


# -- Python ------------------------------------------------------------------------------------------------------------


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(), re.MULTILINE | re.DOTALL)


def test_python_is_shown_in_twelve_lines() -> None:
    (block,) = python_blocks(ROOT / "README.md")
    assert len([line for line in block.splitlines() if line]) <= 12
    assert max(map(len, block.splitlines())) <= 80


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if python_blocks(path)], ids=name)
def test_python_that_is_shown_runs(path: Path) -> None:
    """Of what stands for a reader's own code, the imports of ours."""
    for block in python_blocks(path):
        statements = ast.parse(block).body
        if path.parent.name == "profiling":
            statements = [s for s in statements if isinstance(s, ast.ImportFrom)]
        exec(compile(ast.Module(statements, []), name(path), "exec"), {})  # noqa: S102 - our own lines


# -- links and files ---------------------------------------------------------------------------------------------------


def links(path: Path) -> Iterator[str]:
    """Relative ones, without what stands in blocks of code."""
    prose = re.sub(r"^ *```.*?^ *```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:|#", target):
            yield target.partition("#")[0]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_every_relative_link_leads_somewhere(path: Path) -> None:
    assert [target for target in links(path) if not (path.parent / target).exists()] == []


def listed(folder: Path) -> set[str]:
    """Files that the README of a folder names, one in each line."""
    return set(re.findall(r"^- `([\w/]+\.py)`: ", (folder / "README.md").read_text(), re.MULTILINE))


def lying(folder: Path) -> set[str]:
    """Modules of a folder, less those of folders that have a README of their own."""
    others = [other for other in OF_THEIR_OWN if other != folder]
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if path.name != "__init__.py" and not any(path.is_relative_to(other) for other in others)
    }


def is_there(folder: Path) -> bool:
    """Whether modules have moved in: the room is a package, and so is every folder that its README names files of."""
    inside = {(folder / file).parent for file in listed(folder)}
    return all((place / "__init__.py").exists() for place in (folder, *inside))


def test_rooms_have_a_readme_that_names_every_file_in_it_once_modules_have_moved_in() -> None:
    """READMEs say where modules will be; a room without ``__init__.py`` is not there yet and is left out by name."""
    folders = [*(PACKAGE / room for room in ROOMS), *OF_THEIR_OWN]
    empty = [name(folder) for folder in folders if not is_there(folder)]
    wrong = {name(f): sorted(listed(f) ^ lying(f)) for f in folders if is_there(f) and listed(f) != lying(f)}
    assert wrong == {}
    assert empty == [] or not (PACKAGE / "cli" / "__init__.py").exists(), "the last room is there, and these are not"


def test_the_readme_has_a_line_for_each_room() -> None:
    assert re.findall(r"^\| \[(\w+)\]\(vramcalc/\w+/README\.md\) \|", README, re.MULTILINE) == list(ROOMS)


# -- what is generated -------------------------------------------------------------------------------------------------


def script(of: str) -> Any:
    """A module of ``.ci``, whose neighbours it may import."""
    sys.path.insert(0, str(ROOT / ".ci"))
    try:
        spec = importlib.util.spec_from_file_location(f"ci_{of}", ROOT / ".ci" / f"{of}.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(ROOT / ".ci"))
    return module


def test_every_generated_block_has_a_maker_and_every_maker_a_block() -> None:
    generate = script("generate")
    marked = {(name(path), m["name"]) for path in DOCUMENTS for m in generate.PART.finditer(path.read_text())}
    whole = {document for document, block, _ in generate.BLOCKS if not block}
    assert {(document, block) for document, block, _ in generate.BLOCKS if block} == marked
    assert {document for document in whole if not (ROOT / document).exists()} == set()


def test_what_is_left_out_of_an_output_is_marked() -> None:
    run = script("commands").run
    assert run("vramcalc --version").splitlines()[:2] == ["```text", "$ vramcalc --version"]
    assert run("vramcalc prices --help", "Options:", 1).splitlines()[2:-1] == ["  ...", "Options:", "  ..."]
    with pytest.raises(SystemExit, match="no line that begins with 'Answer'"):
        run("vramcalc --version", "Answer")
    with pytest.raises(SystemExit, match="failed"):
        run("vramcalc estimate")


def test_a_long_command_is_folded_between_options_and_never_inside_one() -> None:
    folded = script("commands")._folded
    words = " ".join(f"--option-{n} value" for n in range(9))
    lines = folded(f"vramcalc fit model {words}").split(" \\\n    ")
    assert " ".join(lines) == f"vramcalc fit model {words}"
    assert all(len(line) <= 75 for line in lines)
    assert all(line.startswith("--") for line in lines[1:])


def test_a_word_that_no_document_has_is_refused() -> None:
    with pytest.raises(SystemExit, match="no document has tables/plans in its path"):
        script("generate").main(["--check", "tables/plans"])


def test_the_help_of_every_command_is_there_in_the_order_of_the_help() -> None:
    assert tuple(COMMANDS) == script("commands").COMMANDS
    shown = re.findall(r"^\$ vramcalc (\w+) --help$", CLI, re.MULTILINE)
    assert shown == re.findall(r"^  (\w+)  +\w", CLI[CLI.index("Commands:") : CLI.index("<!-- end -->")], re.MULTILINE)


def test_the_picture_says_in_words_what_it_shows() -> None:
    root = ElementTree.fromstring((ROOT / "tables" / "pictures" / "step.svg").read_text())  # noqa: S314 - our own
    assert root.get("role") == "img"
    assert "Highest at" in root.get("aria-label", "")
