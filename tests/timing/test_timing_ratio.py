"""Ratios of methods on one GPU and the same tokens: laws, intervals, and agreement with the times themselves."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.job import Job
from vramcalc.memory.estimate import estimate, make_job
from vramcalc.timing.fitted_factors import timing_table
from vramcalc.timing.flops import Tokens, step_flops
from vramcalc.timing.ratio import TimeRatio, compare_times
from vramcalc.timing.step_time import step_time

MEASURED = sorted(timing_table().coefficients.products)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LONG: dict[str, Any] = {"seq_len": 4096, "micro_batch_size": 4}
"""Enough tokens that launching kernels and the optimizer hardly show."""


def job(method: str = "lora", model: str = "llama-3.1-8b", **given: Any) -> Job:
    return make_job(model, method, **{"seq_len": 2048, "gradient_checkpointing": "non_reentrant", **given})[0]


def full_to_lora(gpu: str, model: str = "llama-3.1-8b", targets: Any = "all-linear", **given: Any) -> TimeRatio:
    return compare_times(job("full", model, **given), job("lora", model, target_modules=targets, **given), gpu)


# -- one model of times and ratios -------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [*MEASURED, "rtx-3090", "b200"])
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_a_ratio_is_that_of_the_times(gpu: str, method: str) -> None:
    times = [step_time(job(m), gpu).s for m in (method, "lora")]
    assert compare_times(job(method), job("lora"), gpu).ratio == pytest.approx(times[0] / times[1])


@pytest.mark.parametrize("gpu", ["a100-sxm-80", "rtx-3090"])
def test_the_other_way_round_is_the_inverse(gpu: str) -> None:
    a, b = compare_times(job("full"), job("qlora"), gpu), compare_times(job("qlora"), job("full"), gpu)
    assert (a.ratio * b.ratio, a.low * b.high, a.high * b.low) == pytest.approx((1, 1, 1))
    assert (a.methods, b.methods) == (("full", "qlora"), ("qlora", "full"))


@pytest.mark.parametrize("gpu", [*MEASURED, "rtx-3090", "b200"])
def test_a_ratio_is_known_better_than_two_times(gpu: str) -> None:
    """What is wrong with both, the GPU's speed above all, cancels."""
    found = full_to_lora(gpu, **LONG)
    a, b = step_time(job("full", **LONG), gpu), step_time(job("lora", **LONG), gpu)
    assert 0 < found.low < found.ratio < found.high < math.inf
    assert found.high / found.low < (a.high_s / b.low_s) / (a.low_s / b.high_s)


def test_lengths_of_several_steps_are_compared_by_their_means() -> None:
    lengths = {"seq_len": 4096, "seq_lens": (512, 512, 4096)}
    found = compare_times(job("full", **lengths), job("lora", **lengths), "a100-sxm-80")
    ends = [compare_times(job("full", seq_len=n), job("lora", seq_len=n), "a100-sxm-80").ratio for n in (512, 4096)]
    assert min(ends) < found.ratio < max(ends)
    assert found.low < found.ratio < found.high


def test_other_tokens_widen_the_interval_and_say_so() -> None:
    same = compare_times(job("full"), job("lora"), "a100-sxm-80")
    other = compare_times(job("full", micro_batch_size=2), job("lora"), "a100-sxm-80")
    assert other.high / other.ratio > same.high / same.ratio
    assert any("4,096 and 2,048 tokens" in note for note in other.notes)
    assert same.notes == ()


def test_a_gpu_without_published_speeds_says_so() -> None:
    assert any("no published speed on rtx-3090" in note for note in full_to_lora("rtx-3090").notes)


def test_it_is_plain_values() -> None:
    found = full_to_lora("l4")
    assert list(found.to_dict()) == ["methods", "ratio", "low", "high", "notes"]
    assert str(found).startswith("full / lora: ")


def test_an_estimate_brings_its_gpu() -> None:
    a, b = (estimate("llama-3.2-1b", m, gpu="rtx-4090", seq_len=512) for m in ("full", "lora"))
    assert compare_times(a, b) == compare_times(a.job, b.job, "rtx-4090")
    with pytest.raises(InvalidValue, match="gpu"):
        compare_times(a.job, b.job)
    with pytest.raises(Unsupported, match="only NVIDIA"):
        compare_times(a, b, "mi300x")


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("gpu", ["a100-sxm-80", "h100-sxm", "rtx-4090", "l4", "b200"])
@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b"])
def test_full_to_lora_is_between_one_and_what_flops_allow(gpu: str, model: str, checkpointing: str) -> None:
    """Adapters on attention alone: full fine-tuning adds products of weights' gradients and the optimizer's step."""
    given = {**LONG, "gradient_checkpointing": checkpointing}
    a, b = job("full", model, **given), job("lora", model, target_modules=ATTENTION, **given)
    flops = [step_flops(j.model, j.method, j.training, j.stack).total for j in (a, b)]
    times = step_time(a, gpu), step_time(b, gpu)
    optimizer = next(term.s for term in times[0].terms if term.name == "optimizer")
    assert 1 < times[0].s / times[1].s < flops[0] / flops[1] + optimizer / times[1].s


@pytest.mark.parametrize("gpu", ["a100-sxm-80", "h100-sxm"])
def test_full_is_no_faster_than_lora_on_all_linear_layers(gpu: str) -> None:
    """There adapters take about as long as the gradients of the weights that they spare."""
    assert full_to_lora(gpu, **LONG).ratio >= 1
    assert full_to_lora(gpu, **LONG).ratio < full_to_lora(gpu, targets=ATTENTION, **LONG).ratio


@settings(max_examples=25, deadline=None)
@given(
    gpu=st.sampled_from([g for g in MEASURED if g not in ("t4", "v100-sxm2-16")]),
    batch=st.integers(1, 16),
    seq=st.integers(1, 4096),
    accumulation=st.integers(1, 4),
    checkpointing=st.sampled_from(["none", "reentrant"]),
)
def test_four_bits_are_never_faster(gpu: str, batch: int, seq: int, accumulation: int, checkpointing: str) -> None:
    given = {
        "micro_batch_size": batch,
        "seq_len": seq,
        "gradient_accumulation_steps": accumulation,
        "gradient_checkpointing": checkpointing,
    }
    assert compare_times(job("qlora", **given), job("lora", **given), gpu).ratio > 1


@pytest.mark.parametrize("gpu", ["a100-sxm-80", "rtx-4090", "l4"])
def test_four_bits_cost_more_the_fewer_tokens_a_micro_step_has(gpu: str) -> None:
    """Weights are unpacked once per pass, however few tokens there are."""
    ratios = [compare_times(job("qlora", seq_len=n), job("lora", seq_len=n), gpu).ratio for n in (512, 2048, 8192)]
    assert ratios == sorted(ratios, reverse=True)
    accumulated = [step_time(job("qlora", seq_len=2048 // n, gradient_accumulation_steps=n), gpu).s for n in (1, 4, 16)]
    assert accumulated == sorted(accumulated)


def test_padding_free_batches_gain_less_with_four_bits() -> None:
    """Half of the rectangle is padding: without it the layers have half the work, and dequantisation all of it."""
    lengths = [1024, 512, 256, 256]
    gains = {}
    for method in ("lora", "qlora"):
        padded, free = (
            step_time(job(method, micro_batch_size=4, seq_len=1024), "a100-sxm-80", tokens=t).s
            for t in (Tokens.padded(lengths), Tokens.packed(lengths))
        )
        gains[method] = padded / free
    assert 1 < gains["qlora"] < gains["lora"] <= 2.1


# -- what was published ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gpu", "ratio", "given"),
    [
        # fms-acceleration, 2024-12: 4 and 8 x 4,096 tokens, adapters of rank 16 on attention
        ("llama-3.1-8b", "a100-sxm-80", 4.965 / 4.279, {"micro_batch_size": 4, "seq_len": 4096}),
        ("llama-3.1-8b", "a100-sxm-80", 9.613 / 8.448, {"micro_batch_size": 8, "seq_len": 4096}),
    ],
)
def test_published_ratios_are_within_the_interval(model: str, gpu: str, ratio: float, given: dict[str, Any]) -> None:
    found = full_to_lora(gpu, model, ATTENTION, autocast=None, gradient_checkpointing="reentrant", **given)
    assert found.low < ratio < found.high
    assert found.ratio == pytest.approx(ratio, rel=0.15)
