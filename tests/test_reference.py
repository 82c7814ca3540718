"""Estimates against traces of the real libraries that were taken once and are kept in ``reference/traces.csv``."""

from __future__ import annotations

import re

import pytest
from reference.traces import Row, rows

from vramcalc.estimation import estimate_job

ROWS = rows()


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_allocated_and_reserved_are_those_of_the_trace(row: Row) -> None:
    found = estimate_job(row.job())
    assert found.allocated_bytes == pytest.approx(int(row.allocated_bytes), rel=2e-4)
    assert found.reserved_bytes == pytest.approx(int(row.reserved_bytes), rel=5e-3)


def test_every_row_names_its_versions_and_its_date() -> None:
    for row in ROWS:
        release = re.escape(row.job().stack.transformers)
        assert re.search(
            rf"torch 2\.13\.\d.*transformers {release}\.\d.*peft 0\.\d\d\.\d.*bitsandbytes 0\.50\.\d", row.versions
        )
        assert re.fullmatch(r"20\d\d-\d\d-\d\d", row.checked_on)


def test_the_table_covers_every_path_that_changes_memory() -> None:
    """Families, methods, kernels, losses, optimizers: a path that no row takes is a path that nobody has checked."""
    jobs = [row.job() for row in ROWS]
    assert {j.model.model_type for j in jobs} == {"llama", "mistral", "mixtral", "qwen2", "qwen3"}
    assert {j.method.kind for j in jobs} == {"full", "lora", "qlora"}
    assert {j.training.gradient_checkpointing for j in jobs} == {"none", "reentrant", "non_reentrant"}
    assert {j.stack.loss for j in jobs} == {"full", "chunked", "fused_linear"}
    assert {j.stack.attn_implementation for j in jobs} == {"sdpa", "eager", "flash_attention_2"}
    assert {j.stack.sdpa_kernel for j in jobs} >= {"auto", "math", "efficient"}
    assert {j.stack.autocast for j in jobs} == {None, "bfloat16", "float16"}
    assert {j.training.padded for j in jobs} == {True, False}
    assert {j.stack.keeps_outputs for j in jobs} >= {"no", "next_forward"}
    assert {j.training.optim for j in jobs} >= {"adafactor", "adamw_bnb_8bit", "paged_adamw_8bit", "adamw_torch_8bit"}
