"""Cells of rows that differ in the method alone, and lengths that only a cell can tell."""

from __future__ import annotations

import pytest

from vramcalc import tables
from vramcalc.accuracy.time.cells import cell_of, steps_of
from vramcalc.accuracy.time.throughput import measured_step, read_throughput

ROWS = read_throughput(tables.directory() / "throughput.csv")
BY_ID = {row["case_id"]: row for row in ROWS}
FULL = BY_ID["swift-len-qwen-7b-chat-full-none-s2048-b1-ga16-rn-a-fa-gctrue-def"]
LORA = BY_ID["swift-len-qwen-7b-chat-lora-none-s2048-b1-ga16-r8-fa-gctrue-def"]


def test_rows_of_a_cell_have_one_length_which_is_no_more_than_the_longest() -> None:
    found, reasons = steps_of([FULL, LORA])
    assert not reasons
    assert all(step.apart for step in found)
    (length,) = {step.work.longest for step in found}
    assert 256 < length < 2048


def test_the_longer_it_takes_the_longer_the_sequences() -> None:
    lengths = []
    for speed in (4, 2, 1, 0.1):
        found, _ = steps_of([{**row, "value": f"{speed * float(row['value']) / 4}"} for row in (FULL, LORA)])
        lengths.append(found[0].work.longest)
    assert lengths == sorted(lengths)
    assert lengths[-1] == 2048


def test_a_length_needs_two_methods() -> None:
    _, reasons = steps_of([LORA])
    assert reasons == {LORA["case_id"]: "lengths unknown"}


def test_a_step_as_long_as_its_launches_says_nothing_of_its_tokens() -> None:
    ids = ("swift-len-qwen-1-8b-chat-full-none-s512-b1-ga16-rn-a-fa-gctrue-def",
           "swift-len-qwen-1-8b-chat-lora-none-s512-b1-ga16-r8-fa-gctrue-def")  # fmt: skip
    assert set(steps_of([BY_ID[i] for i in ids])[1].values()) == {"lengths unknown"}


@pytest.mark.parametrize("column", ["gpu", "model", "micro_batch", "seq_len", "checkpointing"])
def test_cells_differ_in_what_decides_the_tokens_and_the_machine(column: str) -> None:
    assert cell_of(FULL) == cell_of(LORA)
    assert cell_of({**LORA, column: "none"}) != cell_of(LORA)
    assert cell_of({**LORA, "source": "me/mine@1:a.txt"}) != cell_of(LORA)


def test_a_batch_of_pefts_loop_is_filled_up_to_its_longest_sample() -> None:
    """224 tokens a sample where 210 are text: sorted by length, hardly anything is padding."""
    step = measured_step(BY_ID["speed-mmqa-l40s-lora-torch-2-13-r32-q-v"])
    assert (step.work.tokens, step.work.computed_tokens, step.apart) == (840, 896, False)
    assert step.step_s == pytest.approx(840 / 7174)


def test_all_linear_layers_are_those_of_the_architecture() -> None:
    row = BY_ID["swift-rank-qwen-7b-chat-lora-none-s2048-b1-ga16-r8-fa-gctrue-all"]
    named = {**row, "targets": "c_attn;c_proj;w1;w2"}
    assert measured_step(row, 512).work == measured_step(named, 512).work
    assert measured_step(row, 512).work.quantities["adapters"] > measured_step(LORA, 512).work.quantities["adapters"]
