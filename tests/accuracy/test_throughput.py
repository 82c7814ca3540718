"""Published speeds: every row has a source and a date, becomes a step or has a reason, and broken rows are named."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from vramcalc import tables
from vramcalc.accuracy.published_rows import Row
from vramcalc.accuracy.time.throughput import COLUMNS, measured_step, read_throughput
from vramcalc.errors import DataError, Unsupported
from vramcalc.inputs import catalog

PATH = tables.directory() / "throughput.csv"
ROWS = read_throughput(PATH)
BY_ID = {row["case_id"]: row for row in ROWS}
GOOD = BY_ID["fms-base-20250207-mistral-7b-none-lora-g1-b4"]


def write(path: Path, *rows: Row) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(GOOD), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_every_row_has_a_source_and_a_date_and_its_own_id() -> None:
    assert all(row["source"] and tables.checked_on(row) for row in ROWS)
    assert len(BY_ID) == len(ROWS) == 1349


def test_every_gpu_is_in_the_table_of_gpus() -> None:
    assert {row["gpu"] for row in ROWS} - {""} <= set(catalog.gpu_names())


def reason(row: Row) -> str:
    """Why a row is no step, empty where it is one."""
    try:
        measured_step(row)
    except Unsupported as err:
        return str(err)
    return ""


def test_every_row_is_a_step_or_has_a_reason() -> None:
    found = Counter(reason(row).partition(":")[0] for row in ROWS)
    assert found[""] == 299
    assert found["several GPUs"] == sum(row["n_gpus"] != "1" for row in ROWS) == 790


def test_a_speed_becomes_a_duration() -> None:
    """4 packs of 4,096 tokens at 3,324.155 tokens/s."""
    step = measured_step(GOOD)
    assert step.step_s == pytest.approx(4 * 4096 / 3324.155)
    assert (step.gpu, step.model) == ("a100-sxm-80", "mistralai/Mistral-7B-v0.1")
    assert step.source == "foundation-model-stack/fms-acceleration"


@pytest.mark.parametrize(
    ("case", "seconds"),
    [
        ("qwen1-2023-12-1.8b-lora-s4096", 3.3),
        ("fitcheck-t4-0921-llama-3-2-1b-instruct-qlora-r16-b1-s1024-sdpa", 0.8671),
        ("hfdoc-bertlarge-v100-vanilla", 4 / 8.86),
        ("hfdoc-bertlarge-v100-ga4-gc", 4 / 5.99),
        # 1,218.4 s for 500 steps
        ("fms-pf-20240930-mistral-7b-gptq-autogptq-qlora-g1-b8", 1218.3867 / 500),
    ],
)
def test_durations_are_those_of_an_optimizer_step(case: str, seconds: float) -> None:
    assert measured_step(BY_ID[case]).step_s == pytest.approx(seconds, rel=1e-3)


def test_repetitions_differ_in_time_alone() -> None:
    first, second = (
        measured_step(BY_ID[f"fms-base-{day}-mistral-7b-none-lora-g1-b4"]) for day in ("20250207", "20241114")
    )
    assert first.work == second.work
    assert first.step_s != second.step_s


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n_gpus": "8"}, "several GPUs"),
        ({"method": "vera"}, "method: vera"),
        ({"quant": "fp8"}, "quantisation: fp8"),
        ({"gpu": ""}, "GPU unknown"),
        ({"seq_kind": "max_not_reached"}, "lengths unknown"),
        ({"attention": "unknown"}, "attention: unknown"),
        ({"checkpointing": "selective"}, "checkpointing: selective"),
        ({"sharding": "zero3"}, "ZeRO-3"),
        ({"offload": "both"}, "offload of both"),
        ({"weights_dtype": ""}, "weights dtype unknown"),
        ({"micro_batch": ""}, "batch unknown"),
        ({"targets": "peft-default"}, "adapters unknown"),
        ({"unit": "h/run"}, "unit: h/run"),
        ({"model": "no/such-model"}, "matrices unknown: no/such-model"),
        ({"note": "implausible"}, "implausible"),
    ],
)
def test_what_is_unknown_is_a_reason(change: dict[str, str], expected: str) -> None:
    assert reason({**GOOD, **change}).startswith(expected)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("value", "0"),
        ("value", "-1"),
        ("value", "nan"),
        ("value", "inf"),
        ("value", "fast"),
        ("value", ""),
        ("source", ""),
        ("case_id", ""),
        ("checked_on", ""),
        ("checked_on", "yesterday"),
        ("rank", "-8"),
        ("micro_batch", "0"),
        ("seq_len", "4k"),
        ("grad_accum", "1.5"),
        ("tokens_per_step", "nan"),
        ("seq_kind", "long"),
    ],
)
def test_a_bad_row_is_named_by_line_and_column(tmp_path: Path, column: str, value: str) -> None:
    path = write(tmp_path / "bad.csv", GOOD, {**GOOD, column: value})
    with pytest.raises(DataError, match=f"line 3: {column}"):
        read_throughput(path)


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text("case_id,source\na,b\n")
    with pytest.raises(DataError, match=r"lacks the columns .*value"):
        read_throughput(path)


@pytest.mark.parametrize("text", ["\ufffe\x00", ",".join(COLUMNS) + "\na,b\n"])
def test_what_is_no_table_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "no.csv"
    path.write_text(text, encoding="utf-16")
    with pytest.raises(DataError):
        read_throughput(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_throughput(tmp_path / "none.csv")
