"""``vramcalc accuracy traces``: the table of traces read back, and what is said of predictions beside it."""

from __future__ import annotations

import csv
import datetime
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from command import process, run

from vramcalc.accuracy.axes import AXES, regime
from vramcalc.accuracy.traces.accuracy import RESERVED_TOLERANCE, Compared, TraceAccuracy, pull, trace_accuracy
from vramcalc.accuracy.traces.compare import TOLERANCE, compare
from vramcalc.accuracy.traces.table import COLUMNS, MODELLED, raw_rows, read_traces
from vramcalc.errors import DataError, InvalidValue, Unsupported
from vramcalc.inputs.stack import Stack
from vramcalc.memory.estimate import estimate_job
from vramcalc.show.text.traces import traces_text

ROWS = read_traces()
GOLDEN = Path(__file__).resolve().parents[1] / "reference" / "tiny.txt"
GOOD = {
    "trace_id": "tiny-1",
    "model": "qwen2.5-0.5b",
    "changes": '{"num_hidden_layers": 2}',
    "method": '{"kind": "lora", "rank": 8}',
    "training": '{"seq_len": 64}',
    "stack": '{"decay_groups": false}',
    "compute_capability": "8.0",
    "allocated_bytes": "600000000",
    "reserved_bytes": "700000000",
    "trace_s": "1.5",
    "versions": "torch 2.13.0, transformers 5.23.0, peft 0.21.2, bitsandbytes 0.50.2",
    "checked_on": "2026-11-22",
    "explanation": "",
}


def write(path: Path, rows: Iterable[dict[str, str]], columns: Sequence[str] = COLUMNS) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def tiny(directory: Path) -> Path:
    """Three rows: as predicted, off with an explanation, and off without."""
    (right,) = read_traces(write(directory / "one.csv", [GOOD]))
    found = estimate_job(right.job)
    reserved = found.walks.from_loaded.peak_reserved_bytes
    numbers = {"allocated_bytes": str(found.allocated_bytes), "reserved_bytes": str(reserved)}
    higher = {"allocated_bytes": str(found.allocated_bytes * 100 // 99)}
    reentrant = {"training": '{"seq_len": 64, "gradient_checkpointing": "reentrant"}'}
    return write(
        directory / "three.csv",
        [
            {**GOOD, **numbers},
            {**GOOD, **numbers, **higher, "trace_id": "tiny-2", "explanation": "a reason of one sentence"},
            {**GOOD, **reentrant, "trace_id": "tiny-3"},
        ],
    )


# -- the table ---------------------------------------------------------------------------------------------------------


def test_every_row_is_read_back() -> None:
    raw = raw_rows(Path(__file__).resolve().parents[2] / "tables" / "traces.csv")
    assert [row.trace_id for row in ROWS] == [r["trace_id"] for r in raw]
    for row in ROWS:
        assert row.versions.keys() >= set(MODELLED)
        assert datetime.date(2026, 1, 1) <= datetime.date.fromisoformat(row.checked_on) <= datetime.date.today()
        assert 0 < row.allocated_bytes <= row.reserved_bytes or row.job.stack.allocator.expandable_segments
    assert sum(row.trace_s for row in ROWS) > len(ROWS) / 10


def test_no_two_rows_trace_the_same_job() -> None:
    assert len({row.job for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("trace_id", ""),
        ("model", "no-such-model"),
        ("changes", "{"),
        ("changes", '{"layers": 2}'),
        ("changes", "[]"),
        ("method", '{"rank": 8}'),
        ("method", '{"kind": "vera"}'),
        ("method", '{"kind": "lora", "rank": -8}'),
        ("training", '{"seq_len": "64"}'),
        ("stack", '{"transformers": "4.20"}'),
        ("compute_capability", "8"),
        ("allocated_bytes", ""),
        ("allocated_bytes", "-5"),
        ("reserved_bytes", "1e9"),
        ("trace_s", "soon"),
        ("trace_s", "nan"),
        ("versions", "torch"),
        ("versions", "torch 2.13.0, transformers 4.57.1, peft 0.21.2, bitsandbytes 0.50.2"),
        ("versions", "torch 2.13.0, transformers 5.23.0, bitsandbytes 0.50.2"),
        ("checked_on", "yesterday"),
    ],
)
def test_a_broken_row_is_refused_with_its_line_and_field(tmp_path: Path, field: str, value: str) -> None:
    broken = write(tmp_path / "broken.csv", [GOOD, {**GOOD, "trace_id": "tiny-2", field: value}])
    with pytest.raises(DataError, match=rf"broken\.csv, row 3: {field}"):
        read_traces(broken)


def test_a_job_that_is_refused_is_a_broken_row(tmp_path: Path) -> None:
    stack = '{"attn_implementation": "flash_attention_2", "dtype": "float32"}'
    with pytest.raises(DataError, match=r"row 2: .*flash_attention_2.* takes 16-bit tensors only"):
        read_traces(write(tmp_path / "t.csv", [{**GOOD, "stack": stack}]))


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 3: trace_id = 'tiny-1'.*taken"):
        read_traces(write(tmp_path / "t.csv", [GOOD, GOOD]))


def test_other_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a row under the columns trace_id, model"):
        read_traces(write(tmp_path / "t.csv", [{"a": "1"}], ["a"]))
    with pytest.raises(DataError, match="found no row"):
        read_traces(write(tmp_path / "t.csv", []))
    with pytest.raises(DataError, match="No such file"):
        read_traces(tmp_path / "none.csv")


# -- laws of the report ------------------------------------------------------------------------------------------------


SOME = [*pull(ROWS, 150), *(row for row in ROWS if row.explanation)]
"""Rows that are predicted here; ``test_stored_traces.py`` predicts every one."""


@pytest.fixture(scope="module")
def found() -> TraceAccuracy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vramcalc.accuracy.traces.accuracy.read_traces", lambda _: SOME)
        return trace_accuracy()


def test_every_row_is_counted_once(found: TraceAccuracy) -> None:
    statuses = ("agrees", "explained", "unexplained", "not traced")
    assert sum(map(found.count, statuses)) == len(found.compared) == len(SOME)
    assert sum(r.count for r in found.regimes) == len(found.done)
    for axis, counts in found.settings.items():
        assert counts.total() == len(found.done), axis


def test_every_difference_is_explained_and_no_explanation_is_left_over(found: TraceAccuracy) -> None:
    assert found.ok
    assert [c.row.trace_id for c in found.compared if c.row.explanation and c.status != "explained"] == []


def test_the_worst_of_a_regime_is_its_largest_error(found: TraceAccuracy) -> None:
    for r in found.regimes:
        mine = [c for c in found.done if regime(c.row.job) == r.name]
        assert r.count == len(mine)
        assert abs(r.allocated_error) == max(abs(c.errors[0]) for c in mine if c.errors)
        assert abs(r.reserved_error) == max(abs(c.errors[1]) for c in mine if c.errors)
        assert r.worst_case in {c.row.trace_id for c in mine}


@pytest.mark.parametrize(
    ("allocated", "reserved", "status"),
    [
        (1.0, 1.0, "agrees"),
        (1 + 0.9 * TOLERANCE, 1 - 0.9 * RESERVED_TOLERANCE, "agrees"),
        (1 + 1.1 * TOLERANCE, 1.0, "unexplained"),
        (1.0, 1 - 1.1 * RESERVED_TOLERANCE, "unexplained"),
    ],
)
def test_a_row_agrees_within_both_tolerances(allocated: float, reserved: float, status: str) -> None:
    traced = (10**9, 2 * 10**9)
    compared = Compared(ROWS[0], (round(allocated * traced[0]), round(reserved * traced[1])), traced)
    assert compared.status == status
    explained = replace(compared, row=replace(ROWS[0], explanation="so"))
    assert explained.status == status.replace("unexplained", "explained")


# -- the pull ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit_s", [20, 150, 300])
def test_a_pull_is_always_the_same_and_takes_no_more_time_than_given(limit_s: int) -> None:
    chosen = pull(ROWS, limit_s)
    assert 0.8 * limit_s < sum(row.trace_s for row in chosen) <= limit_s
    assert chosen == pull(ROWS[::-1], limit_s)


def test_a_pull_of_eight_minutes_has_every_kind_and_one_of_all_time_every_row() -> None:
    here = [row for row in ROWS if row.job.stack.transformers == Stack().transformers]
    assert {regime(row.job) for row in pull(here, 480)} == {regime(row.job) for row in here}
    assert len(pull(ROWS, 1e6)) == len(ROWS)


def test_a_pull_of_four_minutes_has_every_family_method_and_way_of_checkpointing() -> None:
    here = [row for row in ROWS if row.job.stack.transformers == Stack().transformers]
    of_all, of_pull = (zip(*(regime(row.job) for row in rows), strict=True) for rows in (here, pull(here, 240)))
    assert [set(names) for names in of_pull] == [set(names) for names in of_all]


def test_no_time_is_refused() -> None:
    with pytest.raises(InvalidValue, match="limit_s = 0: expected more than 0"):
        pull(ROWS, 0)


# -- live --------------------------------------------------------------------------------------------------------------


@pytest.mark.trace
def test_rows_are_traced_again_and_others_say_why_not(tmp_path: Path) -> None:
    other = '{"transformers": "4.57", "decay_groups": false}'
    versions = GOOD["versions"].replace("5.23.0", "4.57.1")
    file = write(tmp_path / "t.csv", [GOOD, {**GOOD, "trace_id": "tiny-2", "stack": other, "versions": versions}])
    found = trace_accuracy(file, live=True)
    first, second = found.compared
    assert first.status == "agrees"
    assert not first.as_stored
    assert second.status == "not traced"
    assert second.reason == "transformers 4.57 is modelled and 5.23.0 is installed"
    assert found.not_traced == {second.reason: 1}
    assert "these are not: tiny-1" in traces_text(found)


@pytest.mark.trace
def test_a_trace_of_another_release_is_refused() -> None:
    row = ROWS[0]
    job = replace(row.job, stack=Stack(transformers="4.57"))
    with pytest.raises(Unsupported, match=r"transformers 4\.57 is modelled and 5\.\d+\.\d+ is installed"):
        compare(estimate_job(job))


# -- text and command --------------------------------------------------------------------------------------------------


def test_the_text_of_a_small_table(tmp_path: Path) -> None:
    text = traces_text(trace_accuracy(tiny(tmp_path)), rows=True) + "\n"
    assert max(map(len, text.splitlines())) <= 100
    assert text == GOLDEN.read_text()


def test_the_text_of_the_whole_table_fits_a_page() -> None:
    peaks = [(row.allocated_bytes, row.reserved_bytes) for row in ROWS]
    found = TraceAccuracy(tuple(Compared(row, p, p) for row, p in zip(ROWS, peaks, strict=True)), stored=True)
    assert max(map(len, traces_text(found).splitlines())) <= 106


def test_an_unexplained_difference_ends_with_status_one(tmp_path: Path) -> None:
    found = trace_accuracy(tiny(tmp_path))
    assert not found.ok
    assert [c.status for c in found.compared] == ["agrees", "explained", "unexplained"]


def test_the_command_says_what_the_library_says(found: TraceAccuracy, monkeypatch: pytest.MonkeyPatch) -> None:
    some = [*pull(SOME, 60), *(row for row in SOME if row.explanation)]
    monkeypatch.setattr("vramcalc.accuracy.traces.accuracy.read_traces", lambda _: some)
    done = run("accuracy", "traces", "--stored", "--json", "--rows")
    assert done.status == 0
    of = {c.row.trace_id: c for c in found.compared}
    expected = TraceAccuracy(tuple(of[row.trace_id] for row in some), stored=True)
    assert done.json == json.loads(json.dumps(expected.to_dict(rows=True)))
    assert set(done.json["rows"][0]) >= {*AXES, "trace_id", "status", "predicted_allocated_bytes"}


def test_the_command_needs_no_torch() -> None:
    argv = ["vramcalc", "accuracy", "traces", "--stored", "--limit-s", "60"]
    script = f"import runpy, sys; sys.modules['torch'] = None; sys.argv = {argv};"
    done = process(python=("-c", f"{script} runpy.run_module('vramcalc', run_name='__main__')"))
    assert done.status == 0, done.err
    assert done.err == ""
    assert done.out.startswith(f"{len(pull(ROWS, 60)):,} traces kept in tables/traces.csv")
    assert f"{len(ROWS) - len(pull(ROWS, 60)):,}" in done.out.partition("Not traced")[2]


@pytest.mark.parametrize("option", [["--stored"], ["--limit-s", "10"]])
def test_options_of_traces_are_refused_for_a_file(option: list[str]) -> None:
    done = run("accuracy", "tables/measurements.csv", *option)
    assert (done.status, done.out) == (2, "")
    assert "'traces' beside --stored or --limit-s" in done.err
