"""Tables for planning documents: the same cells in every format, in one order, written whole or not at all."""

from __future__ import annotations

import csv
import html.parser
import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import run
from hypothesis import given, settings
from hypothesis import strategies as st
from steps import GivenStep

from vramcalc import fit
from vramcalc.errors import InvalidValue, OutputError, UnknownName, Unsupported
from vramcalc.files.writing import write_whole
from vramcalc.planning import plan, prices
from vramcalc.planning.prices import Prices
from vramcalc.planning.workload import Workload
from vramcalc.show.formats import FORMATS, formatted, significant
from vramcalc.show.planning_table import COLUMNS, Choices, planning_table
from vramcalc.units import GIB

SHIPPED = Prices(prices.read(prices.shipped_path()), prices.shipped_path())
WORK = Workload(examples=1000, tokens_per_example=128)
MODELS, METHODS, GPUS = ("qwen2.5-1.5b", "qwen2.5-0.5b"), ("qlora", "full"), ("l4", "t4")
GRID = "--models qwen2.5-1.5b,qwen2.5-0.5b --methods qlora --methods full --gpus l4,t4 --tokens-per-example 128"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a price table of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def a_second_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a known time, so that what is tested is the table."""
    monkeypatch.setattr(plan, "step_time_of", lambda found: GivenStep(1.0, 0.8, 1.3))


def made(**changes: Any) -> Choices:
    return planning_table(MODELS, METHODS, GPUS, work=WORK, prices=SHIPPED, **changes)


# -- readers, one per format -------------------------------------------------------------------------------------------


def from_json(text: str) -> list[list[str]]:
    rows = json.loads(text)
    assert all(list(row) == list(rows[0]) for row in rows)
    return [list(rows[0]), *([cell if cell is not None else "" for cell in row.values()] for row in rows)]


def from_csv(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text)))


def from_markdown(text: str) -> list[list[str]]:
    """As a reader of GitHub's tables splits them: at pipes without a backslash, which then comes off."""
    lines = text.splitlines()
    assert re.fullmatch(r"\|(:?-+:?\|)+", lines.pop(1))
    cells = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines]
    return [[re.sub(r"\\([\\`*_|<>\[\]])", r"\1", cell.strip()) for cell in row] for row in cells]


class _Cells(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data


def from_html(text: str) -> list[list[str]]:
    parser = _Cells()
    parser.feed(text)
    assert parser.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    return [[cell.strip() for cell in row] for row in parser.rows]


LATEX = {
    r"\&": "&", r"\%": "%", r"\$": "$", r"\#": "#", r"\_": "_", r"\^{}": "^", r"\{": "{", r"\}": "}",
    r"\textasciitilde{}": "~", r"\textbackslash{}": "\\", r"\ensuremath{<}": "<", r"\ensuremath{>}": ">",
}  # fmt: skip


def from_latex(text: str) -> list[list[str]]:
    known = re.compile("|".join(map(re.escape, LATEX)))
    body = [line.removesuffix("\\\\").strip() for line in text.splitlines() if line.endswith("\\\\")]
    rows = [re.split(r"(?<!\\)&", line) for line in body]
    for cell in (cell for row in rows for cell in row):
        assert not re.search(r"[&%$#_{}~^\\<>]", known.sub("", cell)), cell
    return [[known.sub(lambda m: LATEX[m[0]], cell.strip()) for cell in row] for row in rows]


READERS: dict[str, Callable[[str], list[list[str]]]] = {
    "md": from_markdown, "csv": from_csv, "html": from_html, "latex": from_latex, "json": from_json,
}  # fmt: skip

WORDS = st.text(st.sampled_from("ab1 _*|<>&%$#~^\\{}[]`\"',;:-"), max_size=12).map(lambda t: " ".join(t.split()))


@given(st.lists(st.lists(WORDS, min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_every_format_gives_back_the_cells_it_was_given(rows: list[list[str]]) -> None:
    columns = ["a", "b_c", "100 %"]
    for name, reader in READERS.items():
        expected = rows
        if name == "csv":  # an apostrophe before what a spreadsheet would take for a formula
            expected = [[f"'{c}" if c[:1] == "-" and not re.fullmatch(r"-\d+", c) else c for c in row] for row in rows]
        assert reader(formatted(columns, rows, name)) == [columns, *expected], name


def test_every_format_has_a_reader() -> None:
    assert set(READERS) == set(FORMATS)


@pytest.mark.usefixtures("a_second_a_step")
def test_a_table_has_the_same_cells_in_every_format() -> None:
    found = made()
    read = {name: reader(found.format(name)) for name, reader in READERS.items()}
    assert read["md"] == read["csv"] == read["html"] == read["latex"]
    assert read["json"][0] == read["csv"][0] == list(COLUMNS)
    for numbers, texts in zip(read["json"][1:], read["csv"][1:], strict=True):
        for name, number, text in zip(COLUMNS, numbers, texts, strict=True):
            assert text == number or float(text) == number, name


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("a_second_a_step")
def test_there_is_a_row_for_every_choice_by_size_method_and_memory() -> None:
    found = [(row.model, row.method, row.gpu) for row in made().rows]
    models = ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-1.5B"]
    assert found == [(m, k, g) for m in models for k in ("full", "qlora") for g in ("t4", "l4")]


@pytest.mark.usefixtures("a_second_a_step")
def test_order_and_repetition_of_what_is_asked_for_change_nothing() -> None:
    again = planning_table(MODELS[::-1] * 2, METHODS[::-1] * 2, GPUS[::-1] * 2, work=WORK, prices=SHIPPED)
    assert again == made()


@pytest.mark.usefixtures("a_second_a_step")
def test_peaks_and_verdicts_are_those_of_fit() -> None:
    rows = {(row.model, row.method, row.gpu): row for row in made().rows}
    for model in MODELS:
        for v in fit(model, gpus=GPUS, methods=METHODS, seq_len=128):
            row = rows[v.estimate.job.model.name, v.estimate.job.method.kind, v.gpu.gpu_id]
            assert (row.verdict, row.peak_gib) == (v.status, round(v.needed_bytes / GIB, 2))


@pytest.mark.usefixtures("a_second_a_step")
def test_dollars_are_those_of_the_cheapest_dated_offer_with_its_date() -> None:
    for row in made().rows:
        mine = [o for o in SHIPPED.offers if o.gpu_id == row.gpu and o.tier == "on_demand" and o.as_of]
        cheapest = min(mine, key=lambda o: o.price_usd_hour)
        assert (row.offer, row.price_date) == (cheapest.label, cheapest.date)
        assert row.usd == round(cheapest.price_usd_hour * 1000 / 3600, 2)
        assert row.usd_low <= row.usd <= row.usd_high
        assert row.hours_low <= row.hours <= row.hours_high == significant(1300 / 3600)


@pytest.mark.usefixtures("a_second_a_step")
def test_what_does_not_fit_has_a_row_without_hours_and_dollars() -> None:
    (row,) = planning_table(["llama-3.1-8b"], ["full"], ["t4"], work=WORK, prices=SHIPPED).rows
    assert row.verdict == "does not fit"
    assert (row.hours, row.usd, row.offer, row.price_date) == (None, None, None, None)
    assert row.peak_gib > row.usable_gib


def test_without_a_step_time_there_are_no_hours_and_a_note_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise Unsupported("nobody knows")

    monkeypatch.setattr(plan, "step_time_of", unknown)
    found = made()
    assert {row.hours for row in found.rows} == {None}
    assert any("nobody knows" in note for note in found.notes)
    assert {row.steps for row in found.rows} == {1000}


@pytest.mark.usefixtures("a_second_a_step")
def test_the_recipe_says_what_differs() -> None:
    plain, checkpointed = made(), made(gradient_checkpointing="reentrant", micro_batch_size=4)
    assert all("no checkpointing" in row.recipe for row in plain.rows)
    assert all("reentrant checkpointing" in row.recipe for row in checkpointed.rows)
    assert all("1 x 4 x 128 tokens a step" in row.recipe for row in checkpointed.rows)
    assert all("1000 examples of 128 tokens, epochs: 1" in row.recipe for row in plain.rows)


@pytest.mark.usefixtures("a_second_a_step")
def test_an_offer_says_that_it_is_spot_and_how_many_gpus_it_bills() -> None:
    eight = [o for o in SHIPPED.offers if o.gpu_count == 8]
    for tier, says in (("spot", ", spot, 8 GPUs"), ("on_demand", ", 8 GPUs")):
        found = planning_table(
            ["qwen2.5-0.5b"], ["lora"], ["l4"], work=WORK, prices=Prices(tuple(eight), SHIPPED.path), tier=tier
        )
        assert found.rows[0].offer.endswith(says)
        assert ("spot" in found.rows[0].offer) == (tier == "spot")


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("--format yaml", "--format = 'yaml': expected one of md, csv, html, latex, json"),
        ("--models no-such-model", "no model named 'no-such-model'"),
        ("--models google/gemma-2b", "is not modelled"),
        ("--gpus l44", "no GPU named 'l44'"),
        ("--gpus ,", "gpus = []: expected at least one"),
        ("--methods vera", "--method = 'vera': expected one of full, lora, qlora"),
        ("--examples 0", "examples = 0: expected at least 1"),
        ("--price nan", "usd_per_hour = nan"),
        ("--provider awz", "no provider named 'awz'"),
        ("--rank 0", "rank = 0: expected at least 1"),
        ("--seq-len 0", "seq_len = 0: expected at least 1"),
    ],
)
def test_bad_input_writes_nothing(tmp_path: Path, change: str, says: str) -> None:
    target = tmp_path / "table.md"
    target.write_text("as it was")
    words = [w for w in GRID.split() if change != "--gpus ," or w not in ("--gpus", "l4,t4")]
    answer = run("table", *words, *change.split(), "--output", target)
    assert (answer.status, answer.out) == (2, "")
    assert says in answer.err
    assert len(answer.err.splitlines()) == 1
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["table.md"]
    assert target.read_text() == "as it was"


@pytest.mark.parametrize("which", [{"models": ()}, {"methods": ()}, {"gpus": ()}])
def test_an_empty_list_is_refused(which: dict[str, tuple[str, ...]]) -> None:
    asked: dict[str, Any] = {"models": MODELS, "methods": METHODS, "gpus": GPUS, **which}
    with pytest.raises(InvalidValue, match="expected at least one"):
        planning_table(**asked, work=WORK, prices=SHIPPED)


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(UnknownName, match="no method named 'vera'"):
        planning_table(MODELS, ["vera"], GPUS, work=WORK, prices=SHIPPED)


@pytest.mark.parametrize("place", ["folder", "file/below", "name" * 100])
def test_a_path_that_cannot_be_written_is_an_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("in the way")
    answer = run("table", *GRID.split(), "--output", tmp_path / place)
    assert (answer.status, answer.out) == (2, "")
    assert "cannot be written" in answer.err
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "cache") == ["file", "folder"]
    assert list((tmp_path / "folder").iterdir()) == []


def test_a_file_is_replaced_whole_and_keeps_its_permissions(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "table.csv"
    write_whole(target, "one")
    target.chmod(0o640)
    write_whole(target, "two\n")
    assert target.read_bytes() == b"two\n"
    assert target.stat().st_mode & 0o777 == 0o640
    assert [p.name for p in target.parent.iterdir()] == ["table.csv"]


def test_what_is_not_accepted_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "table.csv"
    target.write_text("old")

    def refuse(path: Path) -> None:
        assert path.read_text() == "new"
        raise OutputError("not this")

    with pytest.raises(OutputError, match="not this"):
        write_whole(target, "new", check=refuse)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["table.csv"]


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("a_second_a_step")
@pytest.mark.parametrize("name", FORMATS)
def test_the_command_prints_and_writes_the_same_table(tmp_path: Path, name: str) -> None:
    printed = run("table", *GRID.split(), "--examples", "1000", "--format", name)
    assert printed.status == 0
    assert printed.out == made().format(name) + "\n"
    target = tmp_path / f"table.{name}"
    silent = run("table", *GRID.split(), "--examples", "1000", "--format", name, "--output", target)
    assert (silent.out, target.read_text(encoding="utf-8")) == ("", printed.out)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_shows_on_a_terminal_and_nowhere_else(terminal: bool) -> None:
    words = [sys.executable, "-m", "vramcalc", "table", *GRID.split(), "--format", "csv"]
    leader, follower = pty.openpty()
    with os.fdopen(leader, "rb", buffering=0) as screen:
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=follower if terminal else subprocess.PIPE, check=True
        )
        os.write(follower, b"\n.")
        os.close(follower)
        shown = screen.read(1 << 16).decode()
    assert from_csv(done.stdout.decode())[0] == list(COLUMNS)
    assert ("estimating" in shown) == terminal
    assert "estimating" not in (done.stderr or b"").decode()


@given(st.floats(1e-6, 1e6))
@settings(max_examples=100, deadline=None)
def test_three_digits_are_within_half_a_percent(value: float) -> None:
    assert significant(value) == pytest.approx(value, rel=0.006)
