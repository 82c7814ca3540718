"""What must hold for every job, whatever the numbers are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from small import CHECKPOINTING, METHODS, SETTINGS, TINY, going_with, tiny

from vramcalc import Estimate, LoRA, QLoRA, estimate
from vramcalc.inputs.job import Job
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.inputs.stack import FullFineTuning, Stack, TrainingSpec
from vramcalc.memory.ledger import size_of
from vramcalc.memory.walks import Walks
from vramcalc.shadow.depth.program import Program
from vramcalc.shadow.training.loop import Loop, Sizes


@given(SETTINGS, st.sampled_from(METHODS), st.sampled_from(["micro_batch_size", "seq_len"]))
@settings(max_examples=60, deadline=None)
def test_a_larger_batch_or_length_never_takes_less(settings: dict[str, Any], method: str, grows: str) -> None:
    before = tiny(method, **settings)
    after = tiny(method, **{**settings, grows: settings[grows] + 1})
    assert after.allocated_bytes >= before.allocated_bytes


@given(SETTINGS, st.sampled_from(["lora", "qlora", "dora", "adalora"]), st.integers(2, 200))
@settings(max_examples=40, deadline=None)
def test_a_higher_rank_never_takes_less(settings: dict[str, Any], method: str, rank: int) -> None:
    # bitsandbytes keeps 8-bit states from 4,096 elements on and 32-bit ones below: there a higher rank can take less.
    assume(settings["optim"] != "adamw_bnb_8bit")
    low, high = ({"init_r": r, "target_r": 1} if method == "adalora" else {"rank": r} for r in (rank, rank + 1))
    assert tiny(method, **high, **settings).allocated_bytes >= tiny(method, **low, **settings).allocated_bytes


@given(SETTINGS, st.sampled_from(METHODS), st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_more_layers_take_more(settings: dict[str, Any], method: str, n_layers: int) -> None:
    fewer, more = (
        estimate(TINY.replace(num_hidden_layers=n), method, **going_with(method, settings)).allocated_bytes
        for n in (n_layers, n_layers + 1)
    )
    assert more > fewer


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=60, deadline=None)
def test_rows_sum_to_the_peak_and_the_peak_is_the_highest_instant(settings: dict[str, Any], method: str) -> None:
    found = tiny(method, **settings)
    assert sum(row.n_bytes for row in found.rows) == found.allocated_bytes == found.peak.n_bytes
    assert sum(found.groups.values()) == found.allocated_bytes + found.context.n_bytes
    assert found.peak.n_bytes == max(i.n_bytes for i in found.instants)
    assert found.runner_up.n_bytes <= found.peak.n_bytes
    assert all(row.n_bytes > 0 and row.count > 0 for row in found.rows)


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_what_is_reserved_holds_what_is_allocated(settings: dict[str, Any], method: str) -> None:
    found = tiny(method, **settings)
    assert found.allocated_bytes <= found.block_bytes <= found.reserved_bytes <= found.process_bytes
    assert found.allocated_bytes <= found.reserved_expandable_bytes
    assert found.process_bytes == found.reserved_bytes + found.context.n_bytes


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=30, deadline=None)
def test_a_short_walk_says_what_the_full_walk_says(settings: dict[str, Any], method: str) -> None:
    """Identical layers are not walked one by one; the totals of all instants are those of a walk over every layer."""
    job = tiny(method, **settings).job
    loop = Loop(job, Sizes.of(job), job.model.num_hidden_layers)
    loop.steady_step()
    program = Program(loop.tape, job.model.num_hidden_layers, job.model.num_hidden_layers)
    peak = max(top for top, _ in program.totals([size_of(b) for b in program.births])[2:])
    short = Walks(job)
    assert short.ranked[0].n_bytes == peak
    assert short.trainable_params == loop.trainable_params


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=30, deadline=None)
def test_one_steady_step_stands_for_the_second_of_two(settings: dict[str, Any], method: str) -> None:
    """The peak of a job is met in its second step, when every optimizer state is there."""
    walks = Walks(tiny(method, **settings).job)
    stream = walks.stream
    current = best = 0
    for index, event in enumerate(stream.events):
        current += _rounded(stream.sizes[event]) if event >= 0 else -_rounded(stream.sizes[~event])
        if index >= len(stream.load):
            best = max(best, current)
    assert best == walks.ranked[0].n_bytes


def _rounded(n_bytes: int) -> int:
    return -(-n_bytes // 512) * 512


def saved(found: Estimate) -> int:
    """Activations kept for the backward pass when the loss is reached."""
    return next(i.n_bytes for i in found.instants if i.name == "forward, final norm")


@pytest.mark.parametrize("method", [m for m in METHODS if m != "prefix_tuning"])
@pytest.mark.parametrize("flavour", CHECKPOINTING[1:])
def test_checkpointing_never_raises_saved_activations(method: str, flavour: str) -> None:
    for seq_len in (16, 300, 1024):
        plain = tiny(method, seq_len=seq_len)
        assert saved(tiny(method, seq_len=seq_len, gradient_checkpointing=flavour)) <= saved(plain)


def test_lora_of_vanishing_rank_is_the_frozen_forward_and_backward() -> None:
    """Per unit of rank the peak changes by a constant; what is left at rank zero trains nothing."""
    at = {r: tiny("lora", rank=r, seq_len=512) for r in (64, 128, 192)}
    slope = at[128].allocated_bytes - at[64].allocated_bytes
    assert at[192].allocated_bytes - at[128].allocated_bytes == slope
    frozen = at[64].allocated_bytes - slope
    parameters = TINY.params_total * 2
    assert parameters < frozen < at[64].allocated_bytes
    assert at[128].trainable_params == 2 * at[64].trainable_params
    states = {r: e.groups["optimizer"] for r, e in at.items()}
    assert states[64] - (states[128] - states[64]) < states[64] / 50


@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen2.5-7b", "qwen3-8b", "mistral-7b-v0.3", "llama-3.2-1b"])
def test_qlora_stores_fewer_bytes_of_parameters_than_lora(model: str) -> None:
    lora, qlora = (
        estimate(model, method, prepare_model_for_kbit_training=False).groups["parameters"]
        for method in ("lora", "qlora")
    )
    assert qlora < 0.55 * lora


def test_double_quantization_saves_what_the_paper_says() -> None:
    """0.37 bits per parameter at 64 weights per block (Dettmers et al., arXiv:2305.14314, section 3)."""
    plain, double = (
        estimate("llama-2-7b", "qlora", bnb_4bit_use_double_quant=on).groups["parameters"] for on in (False, True)
    )
    quantised = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert (plain - double) * 8 / quantised == pytest.approx(0.373, abs=0.002)


@pytest.mark.parametrize("method", METHODS)
def test_settings_that_do_not_change_memory_do_not(method: str) -> None:
    """Accumulation beyond two micro-steps repeats the second; alpha scales values, not sizes."""
    assert tiny(method, gradient_accumulation_steps=2).allocated_bytes == (
        tiny(method, gradient_accumulation_steps=64).allocated_bytes
    )
    if "lora_alpha" in METHOD_CLASSES[method].model_fields:
        assert tiny(method, lora_alpha=1.0).allocated_bytes == tiny(method, lora_alpha=999.0).allocated_bytes


def test_paged_states_are_outside_the_allocator_and_said() -> None:
    plain, paged = (tiny("full", optim=o) for o in ("adamw_bnb_32bit", "paged_adamw_32bit"))
    assert plain.paged_bytes == 0
    assert paged.paged_bytes > 0
    assert plain.groups["optimizer"] - paged.groups.get("optimizer", 0) == pytest.approx(paged.paged_bytes, rel=0.01)


def test_emptying_the_cache_lets_a_step_start_clean_but_never_hides_the_peak() -> None:
    for period in (1, 10):
        found = tiny("lora", empty_cache_steps=period)
        assert found.reserved_bytes >= found.allocated_bytes
        assert found.walks.stream.empty_before
    assert not tiny("lora").walks.stream.empty_before


@pytest.mark.parametrize(
    ("method", "training", "stack"),
    [
        (LoRA(target_modules={"q_proj", "lm_head"}), {}, {"loss": "chunked"}),
        (LoRA(target_modules={"q_proj", "lm_head"}), {}, {"loss": "fused_linear"}),
        (FullFineTuning(), {}, {"dtype": "float16", "autocast": "float16"}),
        (LoRA(), {}, {"dtype": "float16", "autocast": "float16", "adapter_dtype": "weights"}),
        (LoRA(modules_to_save={"lm_head"}), {}, {"dtype": "float16", "autocast": "float16"}),
        (QLoRA(modules_to_save={"q_proj"}), {}, {}),
    ],
)
def test_combinations_that_cannot_run_are_refused_with_a_way_out(
    method: LoRA | FullFineTuning, training: dict[str, Any], stack: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=r"take lm_head out|let what trains be float32|cannot be trained"):
        Loop(Job(TINY, method, TrainingSpec(**training), Stack(**stack)), Sizes(1, 64, 16), 3)


def test_outputs_that_are_kept_cost_memory_while_they_are() -> None:
    """``no`` < ``step`` < ``next_forward``: the logits through the backward pass, then through the next forward too."""
    no, step, following = (tiny("lora", keeps_outputs=k, seq_len=1024) for k in ("no", "step", "next_forward"))
    logits = 1024 * TINY.vocab_size * 4
    assert step.allocated_bytes - no.allocated_bytes == pytest.approx(logits, abs=1 << 15)
    assert following.allocated_bytes >= step.allocated_bytes
    assert any(i.name.endswith("next step") for i in following.instants)


def test_module_names_are_listed_in_one_order() -> None:
    found = tiny("lora", target_modules=["v_proj", "q_proj", "o_proj"]).to_dict()["method"]["target_modules"]
    assert found == ["o_proj", "q_proj", "v_proj"]
