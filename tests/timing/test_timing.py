"""Step times: laws of the model, intervals, measured steps, and what is refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramcalc.errors import DataError, InvalidValue, UnknownName, Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Gpu
from vramcalc.memory.estimate import estimate, make_job
from vramcalc.timing.fitted_factors import TimingTable, timing_table
from vramcalc.timing.flops import Tokens
from vramcalc.timing.roofline import KINDS, Rates, own_factors, rates, together
from vramcalc.timing.step_time import StepTime, step_time
from vramcalc.timing.work import Recipe

KNOWN = [
    gpu for gpu in catalog.gpu_names() if rates(catalog.gpu_row(gpu)) and catalog.gpu_row(gpu)["vendor"] == "NVIDIA"
]
MEASURED = sorted(timing_table().coefficients.products)


def job(method: str = "lora", model: str = "llama-3.1-8b", **given: Any) -> Job:
    return make_job(model, method, **{"seq_len": 512, "gradient_checkpointing": "non_reentrant", **given})[0]


def seconds(method: str = "lora", gpu: str = "a100-sxm-80", **given: Any) -> float:
    return step_time(job(method, **given), gpu).s


def check(t: StepTime) -> None:
    """What holds of every result."""
    assert 0 < t.low_s < t.s < t.high_s < math.inf
    assert sum(term.s for term in t.terms) == pytest.approx(t.s)
    assert all(term.s >= 0 and term.basis for term in t.terms)
    assert t.tokens_per_s > 0


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", KNOWN)
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_terms_sum_to_the_step_within_an_interval(gpu: str, method: str) -> None:
    t = step_time(job(method), gpu)
    check(t)
    assert t.mfu is not None
    assert 0 < t.mfu < 1
    assert t.basis == ("fitted" if gpu in MEASURED else "roofline")


@settings(max_examples=25, deadline=None)
@given(
    method=st.sampled_from(["full", "lora", "qlora"]),
    batch=st.integers(1, 16),
    seq=st.integers(1, 4096),
    accumulation=st.integers(1, 8),
    grown=st.sampled_from(["micro_batch_size", "seq_len", "gradient_accumulation_steps"]),
)
def test_more_tokens_take_longer(method: str, batch: int, seq: int, accumulation: int, grown: str) -> None:
    sizes = {"micro_batch_size": batch, "seq_len": seq, "gradient_accumulation_steps": accumulation}
    assert seconds(method, **sizes) < seconds(method, **{**sizes, grown: sizes[grown] + 1})


def test_a_higher_rank_takes_longer() -> None:
    times = [seconds(rank=r) for r in (1, 8, 64, 256)]
    assert times == sorted(times)


def test_more_layers_take_longer() -> None:
    model = catalog.model("llama-3.1-8b")
    times = [seconds(model=model.replace(num_hidden_layers=n)) for n in (1, 8, 32, 80)]
    assert times == sorted(times)
    assert len(set(times)) == 4


@pytest.mark.parametrize("gpu", MEASURED)
def test_full_fine_tuning_takes_longer_than_lora(gpu: str) -> None:
    same = {"dtype": "float16", "autocast": None, "seq_len": 2048}
    assert seconds("full", gpu, **same) > seconds("lora", gpu, **same)


@pytest.mark.parametrize("gpu", MEASURED)
def test_four_bits_take_longer_than_sixteen(gpu: str) -> None:
    assert seconds("qlora", gpu) > seconds("lora", gpu)


def test_checkpointing_takes_longer() -> None:
    assert seconds(gradient_checkpointing="reentrant") > seconds(gradient_checkpointing="none")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_card_that_beats_another_on_every_line_is_not_slower(method: str, dtype: str) -> None:
    """In bfloat16 from Ampere on: older cards have no tensor cores for it, which is no line of the table's."""
    found = {gpu: made for gpu in KNOWN if (made := rates(catalog.gpu_row(gpu)))}
    cards = [g for g in found if dtype != "bfloat16" or float(catalog.gpu_row(g)["compute_capability"]) >= 8]
    low = {"bnb_4bit_compute_dtype": dtype} if method == "qlora" else {}
    times = {gpu: seconds(method, gpu, seq_len=1024, dtype=dtype, autocast=None, **low) for gpu in cards}
    pairs = [(a, b) for a, b in itertools.permutations(cards, 2) if found[a].covers(found[b])]
    assert len(pairs) > 100
    assert [(a, b) for a, b in pairs if times[a] > times[b] * (1 + 1e-9)] == []


def test_a_gpu_between_two_others_stays_between_them() -> None:
    c = timing_table().coefficients
    measured = {gpu: found for gpu in c.products if (found := rates(catalog.gpu_row(gpu)))}
    best = measured["rtx-4090"]
    better = Rates(best.flops_16 * 1.01, best.flops_32, best.bytes)
    assert better.flops_16 / own_factors("new", better, c, measured)["flops_16"] >= best.flops_16 / c.products[
        "rtx-4090"
    ] * (1 - 1e-9)


def test_every_factor_is_positive() -> None:
    c = timing_table().coefficients
    assert list(c.factors) == list(KINDS)
    assert all(0 < value < math.inf for value in (*c.factors.values(), *c.products.values()))


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_gpu_and_host_take_as_long_as_the_longer_and_less_than_both(device: float, host: float) -> None:
    both = together(device, host)
    assert max(device, host) <= both * (1 + 1e-12)
    assert both <= (device + host) * (1 + 1e-12)


def test_long_steps_scale_with_tokens_and_short_ones_wait_for_the_host() -> None:
    assert seconds(micro_batch_size=32, seq_len=2048) / seconds(micro_batch_size=16, seq_len=2048) == pytest.approx(
        2, rel=0.02
    )
    short = step_time(job(seq_len=16), "h100-sxm")
    assert seconds(gpu="h100-sxm", seq_len=32) / short.s < 1.1
    assert any("host" in note for note in short.notes)


def test_padding_takes_time_and_yields_no_tokens() -> None:
    full = step_time(job(micro_batch_size=2), "a100-sxm-80")
    padded = step_time(job(micro_batch_size=2), "a100-sxm-80", tokens=Tokens.padded([512, 100]))
    assert padded.s == pytest.approx(full.s)
    assert padded.tokens_per_s == pytest.approx(full.tokens_per_s * 612 / 1024)


def test_packing_takes_no_longer_than_padding() -> None:
    lengths = [512, 100, 30]
    packed, padded = (
        step_time(job(micro_batch_size=3), "a100-sxm-80", tokens=t)
        for t in (Tokens.packed(lengths), Tokens.padded(lengths))
    )
    assert packed.s < padded.s


@pytest.mark.parametrize("faster", [Recipe(fused=True), Recipe(compiled=True)])
def test_fused_kernels_take_no_longer(faster: Recipe) -> None:
    assert step_time(job(), "a100-sxm-80", recipe=faster).s < step_time(job(), "a100-sxm-80", recipe=Recipe()).s


def test_steps_of_several_lengths_take_their_mean() -> None:
    one_length = job(seq_len=2048)
    mean = step_time(replace(one_length, training=one_length.training.replace(seq_lens=(512, 512, 2048))), "l4")
    one, other = seconds(gpu="l4", seq_len=512), seconds(gpu="l4", seq_len=2048)
    assert mean.s == pytest.approx((2 * one + other) / 3)
    check(mean)


# -- what is not covered -----------------------------------------------------------------------------------------------


def width(t: StepTime) -> float:
    return t.high_s / t.s


def test_a_gpu_without_published_speeds_has_a_wide_interval_and_says_so() -> None:
    known, other = (step_time(job(seq_len=4096), gpu) for gpu in ("a100-sxm-80", "rtx-3090"))
    assert width(other) > 1.3 * width(known)
    assert other.basis == "roofline"
    assert any("no published speed on rtx-3090" in note for note in other.notes)


def test_few_published_speeds_widen_the_interval_and_are_counted() -> None:
    t = step_time(job(), "h100-sxm")
    assert width(t) > width(step_time(job(), "a100-sxm-80"))
    assert any(note.startswith("1 published speed on h100-sxm") for note in t.notes)


def test_the_fewer_speeds_a_gpu_has_the_wider_its_interval() -> None:
    """One row, three, four, many; all narrower than none."""
    widths = [width(step_time(job(seq_len=4096), gpu)) for gpu in ("rtx-3090", "h100-sxm", "rtx-4090", "a100-sxm-80")]
    assert widths == sorted(widths, reverse=True)


def test_lengths_beyond_the_published_ones_widen_the_interval() -> None:
    within, beyond = (step_time(job(seq_len=n), "a100-sxm-80") for n in (8192, 16384))
    assert width(beyond) > width(within)
    assert any("16,384 tokens" in note for note in beyond.notes)


def test_a_method_without_published_speeds_widens_the_interval() -> None:
    t = step_time(job("full", dtype="float16", autocast=None), "t4")
    assert any("no published speed of full on t4" in note for note in t.notes)


def test_bfloat16_before_ampere_is_timed_without_tensor_cores() -> None:
    low = step_time(job(dtype="float16", autocast=None, adapter_dtype="float32"), "t4")
    t = step_time(job(), "t4")
    assert t.s > 2 * low.s
    assert any("no bfloat16 tensor cores" in note for note in t.notes)


def test_the_math_kernel_is_timed_as_eager_code() -> None:
    t = step_time(job(sdpa_kernel="math", seq_len=4096), "a100-sxm-80")
    assert t.s > seconds(seq_len=4096)
    assert any("math kernel" in note for note in t.notes)


def test_paged_state_is_mentioned() -> None:
    assert any("PCIe" in n for n in step_time(job("full", optim="paged_adamw_8bit"), "rtx-4090").notes)


# -- measured steps ----------------------------------------------------------------------------------------------------


def test_a_measured_step_replaces_the_model_and_narrows_the_interval() -> None:
    t = step_time(job(), "l40s", measured_step_s=0.75)
    check(t)
    assert t.s == pytest.approx(0.75)
    assert t.basis == "measured"
    assert width(t) < width(step_time(job(), "a100-sxm-80"))
    assert not any("published" in note for note in t.notes)


@pytest.mark.parametrize("gpu", ["a100-sxm-80", "l40s"])
def test_a_measured_step_scales_another_size(gpu: str) -> None:
    small, large = job(seq_len=512), job(seq_len=2048)
    factor = 1.7
    t = step_time(large, gpu, measured_step_s=factor * step_time(small, gpu).s, measured_job=small)
    check(t)
    assert t.s == pytest.approx(factor * step_time(large, gpu).s)
    assert width(step_time(large, gpu, measured_step_s=1.0)) < width(t) <= width(step_time(large, gpu))


def test_a_measured_step_needs_no_data_sheet() -> None:
    gpu = Gpu(
        gpu_id="GPU-1234",
        name="unknown",
        architecture=None,
        compute_capability="9.0",
        total_bytes=1 << 34,
        total_basis="given",
    )
    t = step_time(job(), gpu, measured_step_s=2.0)
    check(t)
    assert (t.s, t.mfu) == (2.0, None)
    with pytest.raises(Unsupported, match="measured_step_s"):
        step_time(job(), gpu)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, "1", True, [1.0]])
def test_a_measured_step_is_a_positive_number_of_seconds(value: Any) -> None:
    with pytest.raises(InvalidValue, match="measured_step_s"):
        step_time(job(), "a100-sxm-80", measured_step_s=value)


def test_a_measured_step_of_given_tokens_is_that_step() -> None:
    t = step_time(job(micro_batch_size=2), "l4", tokens=Tokens.packed([100, 30]), measured_step_s=0.5)
    assert (t.s, t.tokens_per_s) == (pytest.approx(0.5), pytest.approx(260))


def test_tokens_and_lengths_of_steps_do_not_go_together() -> None:
    with pytest.raises(InvalidValue, match="tokens"):
        step_time(make_job("llama-3.1-8b", seq_lens=[8, 16])[0], "l4", tokens=Tokens.packed([8]))


def test_a_measured_job_needs_its_step() -> None:
    with pytest.raises(InvalidValue, match="measured_job"):
        step_time(job(), "a100-sxm-80", measured_job=job())


# -- input -------------------------------------------------------------------------------------------------------------


def test_an_estimate_brings_its_gpu() -> None:
    e = estimate("llama-3.2-1b", "lora", gpu="rtx-4090", seq_len=128)
    assert step_time(e) == step_time(e.job, "rtx-4090") == step_time(e, catalog.gpu("rtx-4090"))


def test_no_gpu_is_an_error() -> None:
    with pytest.raises(InvalidValue, match="gpu = None"):
        step_time(job())


def test_an_unknown_gpu_offers_near_names() -> None:
    with pytest.raises(UnknownName, match="did you mean 'h100-sxm'"):
        step_time(job(), "h100-sxmm")


def test_a_gpu_without_rates_is_refused() -> None:
    gpu = catalog.gpu("l4").replace(gpu_id="no-such-card")
    with pytest.raises(Unsupported, match="speed of no-such-card is not known"):
        step_time(job(), gpu)


def test_a_result_is_plain_values() -> None:
    found = step_time(job(), "a100-sxm-80").to_dict()
    assert list(found) == ["s", "low_s", "high_s", "terms", "tokens_per_s", "mfu", "basis", "notes"]
    assert set(found["terms"][0]) == {"name", "s", "basis"}


# -- the shipped fit ---------------------------------------------------------------------------------------------------


def test_the_shipped_fit_reads_back_what_it_writes() -> None:
    table = timing_table()
    assert TimingTable.from_json(table.to_json(), "a test") == table


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"coefficients": {}}', timing_table().to_json().replace('"flash"', '"flush"')]
)
def test_a_broken_fit_says_how_to_make_one(text: str) -> None:
    with pytest.raises(DataError, match=r"vramcalc\.accuracy\.time\.generate"):
        TimingTable.from_json(text, "timing.json")


def test_timing_imports_no_numpy() -> None:
    """The fit needs it, a step's time does not."""
    import subprocess
    import sys

    script = (
        "import sys; from vramcalc.memory.estimate import make_job; from vramcalc.timing.step_time import step_time;"
        "step_time(make_job('llama-3.2-1b', seq_len=64)[0], 'l4'); print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("gpu", "tokens_per_s", "recipe", "training"),
    [
        ("h100-sxm", 5762, Recipe(), {"micro_batch_size": 2, "gradient_checkpointing": "non_reentrant"}),
        ("h100-sxm", 6667, Recipe(compiled=True), {"micro_batch_size": 2, "gradient_checkpointing": "non_reentrant"}),
        ("h200", 8956.3, Recipe(fused=True), {"gradient_checkpointing": "none"}),
        ("b200", 15115.0, Recipe(fused=True), {"gradient_checkpointing": "none"}),
    ],
)
def test_speeds_that_no_fit_has_seen_are_within_the_interval(
    gpu: str, tokens_per_s: float, recipe: Recipe, training: dict[str, Any]
) -> None:
    """Llama 3.1 8B in full at 8,192 tokens on eight GPUs of one machine, per GPU: one GPU is no slower.

    torchtitan benchmarks/llama3_h100_202412 (FSDP2; selective checkpointing), stas00/ml-engineering
    insights/when-to-upgrade-gpus (ZeRO-2, Liger). Communication hides behind the products.
    """
    t = step_time(job("full", seq_len=8192, dtype="bfloat16", autocast=None, **training), gpu, recipe=recipe)
    measured_s = t.tokens_per_s * t.s / tokens_per_s
    assert t.low_s < measured_s < t.high_s


def test_gpus_of_other_makers_are_refused() -> None:
    with pytest.raises(Unsupported, match="only NVIDIA"):
        step_time(job(), "mi300x")
