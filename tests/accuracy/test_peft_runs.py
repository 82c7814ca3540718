"""Reserved memory of PEFT's published comparison of methods on an L40S: nine runs, one of which gave one length."""

from __future__ import annotations

from typing import Any

import pytest
from reference.peft_runs import Run, runs

from vramcalc import estimate
from vramcalc.accuracy.memory.unpublished_lengths import PEFT_METAMATHQA, Buckets
from vramcalc.units import MIB

ESTIMATED: dict[str, tuple[str, dict[str, Any]]] = {
    "lora--llama-3.2-3B-rank32": ("lora", {"rank": 32, "target_modules": ["q_proj", "v_proj"]}),
    "lora--llama-3.2-3B-rank64": ("lora", {"rank": 64, "target_modules": ["q_proj", "v_proj"]}),
    "lora--llama-3.2-3B-rank10-target-mlp": (
        "lora",
        {"rank": 10, "target_modules": ["gate_proj", "up_proj", "down_proj"]},
    ),
    "full-finetuning--llama-3.2-3B-lr_0.00001": ("full", {}),
}
RUNS = runs()


def predicted(run: Run) -> int:
    if run.config:
        return int(run.traced_bytes)
    method, settings = ESTIMATED[run.name]
    lengths = PEFT_METAMATHQA.history
    found = estimate(
        "llama-3.2-3b", method, stack="peft-loop", gpu="l40s", micro_batch_size=4, seq_lens=lengths, **settings
    )
    return found.reserved_bytes - 2 * MIB


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_reserved_is_what_the_benchmark_reports(run: Run) -> None:
    allowed = 0.01 if run.name.startswith("full") else 0.0015
    assert predicted(run) == pytest.approx(int(run.reserved_bytes), rel=allowed)


def test_every_traced_run_says_by_what() -> None:
    traced = [run for run in RUNS if run.config]
    assert len(RUNS) == 9
    assert {run.name for run in RUNS} - {run.name for run in traced} == set(ESTIMATED)
    assert all("peft" in run.versions and run.checked_on and run.source for run in traced)


def test_a_bucket_is_sorted_and_has_the_mean_and_the_longest_it_was_given() -> None:
    usual = PEFT_METAMATHQA.usual
    assert list(usual) == sorted(usual, reverse=True)
    assert len(usual) == PEFT_METAMATHQA.n_batches
    assert usual[0] < PEFT_METAMATHQA.longest == max(PEFT_METAMATHQA.history)
    # A batch is as long as its longest sample: on average longer than samples are, and not by much.
    assert 1 < sum(usual) / len(usual) / PEFT_METAMATHQA.mean < 1.1


def test_samples_of_one_length_make_batches_of_that_length() -> None:
    same = Buckets(200.0, 10_000, spread=1e-6, micro_batch_size=2, n_batches=3, mean_batch=200)
    assert same.usual == (200, 200, 200)
