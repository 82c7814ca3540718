"""Tables as files: what is text stays text in a spreadsheet."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from command import run
from configs import CONFIGS, write_config

from vramcalc.show.formats import FORMATS, Cell, formatted


def first_cell(value: Cell, format: str = "csv") -> str:  # noqa: A002
    """The cell as a spreadsheet reads it."""
    text = formatted(("name", "other"), [(value, 1)], format)
    return list(csv.reader(io.StringIO(text, newline="")))[1][0]


@pytest.mark.parametrize(
    "text", ["=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1+1", "=", "-", "-x"]
)
def test_what_would_be_a_formula_is_text(text: str) -> None:
    assert first_cell(text) == f"'{text}"


@pytest.mark.parametrize("cell", [-1.5, -3, "-1.5", "+2", 0, None, "", "a=1", "llama-3.1", "'=1", " =1"])
def test_numbers_and_other_text_stay_as_they_are(cell: Cell) -> None:
    assert first_cell(cell) == ("" if cell is None else str(cell))


def test_names_of_columns_are_inert_too() -> None:
    assert formatted(("=1", "b"), [("a", 1)], "csv").splitlines()[0] == "'=1,b"


@pytest.mark.parametrize("format", [f for f in FORMATS if f != "csv"])
def test_other_formats_hold_what_was_given(format: str) -> None:  # noqa: A002
    assert "'" not in formatted(("a",), [("=1+1",)], format)


def test_a_folder_named_like_a_formula_is_none_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("=1+1").mkdir()
    write_config(Path("=1+1/config.json"), CONFIGS["llama"])
    answer = run("table", "--models==1+1", "--gpus=l4", "--methods=lora", "--format=csv")
    assert (answer.status, answer.out.splitlines()[1][:6]) == (0, "'=1+1,")
