"""Files of published speeds in their sources' words: read as rows of the project, short of what they lack."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest
from command import run

from vramcalc import tables
from vramcalc.accuracy.time.accuracy import time_accuracy
from vramcalc.accuracy.time.published_speeds import COLUMNS, converted, is_published
from vramcalc.accuracy.time.throughput import measured_step, read_throughput
from vramcalc.errors import DataError, Unsupported

KNOWN = {row["case_id"]: row for row in tables.read("throughput")}
FULL = {
    "case_id": "T-mine-full", "source_repo_or_paper": "me/mine", "source_path_or_table": "log.txt",
    "source_commit_or_version": "1", "model_id": "meta-llama/Llama-3.1-8B", "method": "full", "rank": "",
    "quant": "none", "base_dtype": "bfloat16", "micro_batch_size": "2", "global_batch_size": "8", "seq_len": "4096",
    "seq_note": "fixed: packed to exactly 4096", "grad_checkpointing": "true", "attention_impl": "flash2",
    "framework": "trl SFTTrainer", "torch_version": "2.4.1", "n_gpus": "1", "parallelism": "none",
    "gpu_model": "A100-80GB", "throughput_value": "3000", "throughput_unit": "tokens/s",
    "throughput_scope": "per_gpu", "steps_or_samples": "100 steps", "notes": "",
}  # fmt: skip
LORA = {**FULL, "case_id": "T-mine-lora", "method": "lora", "rank": "16", "throughput_value": "3500"}


def write(path: Path, *rows: Mapping[str, str]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_row_says_what_its_source_said() -> None:
    (row,) = converted([FULL], [])
    step = measured_step(row)
    assert (row["case_id"], row["source"]) == ("mine-full", "me/mine@1:log.txt")
    assert (step.gpu, step.work.tokens, step.work.longest) == ("a100-sxm-80", 4 * 2 * 4096, 4096)
    assert step.step_s == pytest.approx(4 * 2 * 4096 / 3000)


def test_what_the_file_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    """It has no column for the modules that have adapters."""
    found = time_accuracy(write(tmp_path / "speeds.csv", FULL, LORA))
    assert [bool(r.predicted) for r in found.rows] == [True, False]
    assert found.rows[1].reason == "adapters unknown"


def test_a_row_that_the_table_has_in_full_is_that_row() -> None:
    case = "fms-base-20250207-mistral-7b-none-lora-g1-b4"
    same = {**LORA, "case_id": f"T-{case}", "throughput_value": KNOWN[case]["value"]}
    other = {**same, "throughput_value": "1"}
    rows = converted([same, other], tables.read("throughput"))
    assert rows[0]["targets"] == KNOWN[case]["targets"] != ""
    assert rows[1]["targets"] == ""


@pytest.mark.parametrize(
    ("change", "column", "value"),
    [
        ({"seq_note": "fixed random ids"}, "seq_kind", "fixed"),
        ({"seq_note": "packed"}, "seq_kind", "packed"),
        ({"seq_note": "packing off; padding-free (concatenated, no pad tokens)"}, "seq_kind", "padding_free"),
        ({"seq_note": "packing off; variable length, padded to longest in batch"}, "seq_kind", "padded"),
        ({"seq_note": "alpaca2k, max 512"}, "seq_kind", "max_not_reached"),
        ({"seq_note": "max; padded to longest in batch. Mean 209.9 tok/sample"}, "tokens_per_step", "419.8"),
        ({"throughput_unit": "s/iter (8 micro-batches per rank)"}, "unit", "s/step"),
        ({"throughput_unit": "samples/s"}, "unit", "samples/s"),
        ({"global_batch_size": "unknown"}, "grad_accum", ""),
        ({"quant": "gptq-int4"}, "quant", "gptq4"),
        ({"gpu_model": "unknown"}, "gpu", ""),
        ({"gpu_model": "T4-16GB"}, "gpu", "t4"),
        ({"grad_checkpointing": "selective"}, "checkpointing", "selective"),
        ({"framework": "fms-hf-tuning (trl SFTTrainer) + fms-acceleration:foak-liger"}, "kernels", "foak;liger"),
        ({"steps_or_samples": "1 step after 1 warm-up"}, "steps", "1"),
        ({"steps_or_samples": ""}, "steps", ""),
    ],
)
def test_words_are_those_of_the_project(change: dict[str, str], column: str, value: str) -> None:
    assert converted([{**FULL, **change}], [])[0][column] == value


def test_several_gpus_stay_a_reason() -> None:
    with pytest.raises(Unsupported, match="several GPUs"):
        measured_step(converted([{**FULL, "n_gpus": "8", "parallelism": "fsdp"}], [])[0])


def test_the_command_reads_it(tmp_path: Path) -> None:
    done = run("accuracy", "--time", str(write(tmp_path / "speeds.csv", FULL, LORA)))
    assert done.status == 0
    assert "1 of 2 rows predicted" in done.out
    assert "adapters unknown" in done.out


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.csv", FULL, {**FULL, "throughput_value": "fast"})
    with pytest.raises(DataError, match="line 3: value"):
        read_throughput(path)


def test_any_other_file_is_told_what_columns_either_schema_needs(tmp_path: Path) -> None:
    assert is_published(FULL)
    short = {name: FULL[name] for name in COLUMNS if name != "gpu_model"}
    with pytest.raises(DataError, match=r"lacks the columns source.* or one of published speeds with .*gpu_model"):
        read_throughput(write(tmp_path / "short.csv", short))
