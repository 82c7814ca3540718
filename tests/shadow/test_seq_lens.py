"""Steps of varying lengths: the replay of a run is that of its steps walked one by one, and that of a trace."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from command import run
from configs import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st

from vramcalc import estimate, estimate_grid, max_micro_batch_size, max_seq_len
from vramcalc.errors import InvalidValue
from vramcalc.inputs import catalog
from vramcalc.inputs.alloc_conf import AllocatorSettings
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import TrainingSpec
from vramcalc.memory.estimate import Estimate
from vramcalc.profiling.trace.trace import trace
from vramcalc.shadow.allocator.replay import Replay, replay
from vramcalc.shadow.training.loop import Loop, Sizes
from vramcalc.shadow.training.requests import plan
from vramcalc.units import MIB

LENGTHS = (100, 37, 180, 64)
RECIPES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("llama", "full", {}),
    ("llama", "lora", {"stack": "peft-loop"}),
    ("llama", "lora", {"stack": "pure-bf16-loop", "gradient_accumulation_steps": 2}),
    ("mistral", "qlora", {"gradient_checkpointing": "reentrant", "zero_grad": "start"}),
    ("qwen2", "full", {"stack": "pure-bf16-loop", "optim": "adamw_bnb_8bit"}),
    ("qwen2", "lora", {"stack": "trl-sft", "loss": "full"}),
    ("qwen3", "lora", {"keeps_outputs": "next_forward", "empty_cache_steps": 2}),
)
recipes = pytest.mark.parametrize(("family", "method", "recipe"), RECIPES, ids=str)


def made(family: str, method: str, *, layers: int | None = None, **how: Any) -> Estimate:
    model = to_spec(CONFIGS[family], family)
    return estimate(model if layers is None else model.replace(num_hidden_layers=layers), method, **how)


@lru_cache(maxsize=8)
def walked(job: Job) -> tuple[list[int], list[int], int, list[int], int]:
    """Every step of the run over every layer: events, sizes, start, where the cache is emptied; the highest sum."""
    loop = Loop(job, Sizes.of(job), job.model.num_hidden_layers)
    assert job.training.seq_lens is not None
    loop.steps(job.training.seq_lens)
    tape, period = loop.tape, job.stack.empty_cache_steps
    begins = {phase.split(".")[0]: start for start, phase, _ in reversed(tape.marks)}
    n_steps = len(job.training.seq_lens)
    emptied = [begins[f"step{n}"] for n in range(period, n_steps, period)] if period else []
    sizes = [b.requested_bytes for b in tape.births]
    events = tape.events[: tape.marks[-1][0]]
    current = best = 0
    for index, event in enumerate(events):
        current += -(-sizes[event] // 512) * 512 if event >= 0 else -(-(-sizes[~event] // 512) * 512)
        if index >= begins["step0"]:
            best = max(best, current)
    return events, sizes, begins["step0"], emptied, best


def one_by_one(found: Estimate, chosen: AllocatorSettings) -> tuple[Replay, int]:
    """Every step of the run walked over every layer and replayed; the highest sum of tensors."""
    events, sizes, start, emptied, best = walked(found.job)
    return replay(events, sizes, chosen, start=start, empty_at=emptied), best


# -- what is replayed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lengths",
    [LENGTHS, (64, 64), (64, 180, 64, 180, 64, 64, 180), (180, 37, 37, 180, 100, 37, 180, 100) * 3],
    ids=["all different", "twice the same", "two", "again and again"],
)
@pytest.mark.parametrize(
    "chosen",
    [AllocatorSettings(), AllocatorSettings(expandable_segments=True), AllocatorSettings(True, 24 * MIB, 4)],
    ids=["default", "expandable", "rounding"],
)
@recipes
def test_walking_only_steps_that_differ_says_what_walking_all_of_them_says(
    family: str, method: str, recipe: dict[str, Any], lengths: tuple[int, ...], chosen: AllocatorSettings
) -> None:
    found = made(family, method, layers=6, seq_lens=lengths, **recipe)
    everything, _ = one_by_one(found, chosen)
    assert found.walks.replay(chosen) == everything


ORDERS = pytest.mark.parametrize(
    "lengths",
    [LENGTHS, (180, 37, 100, 64), (180, 64, 180), (180,)],
    ids=["longest later", "longest first", "and again", "one"],
)
"""Where the longest step comes: without optimizer states and outputs of a step before, or with them."""


@ORDERS
@recipes
def test_allocated_is_the_highest_of_the_listed_steps(
    family: str, method: str, recipe: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    found = made(family, method, layers=6, seq_lens=lengths, **recipe)
    assert found.allocated_bytes == one_by_one(found, AllocatorSettings())[1]
    assert sum(row.n_bytes for row in found.rows) == found.allocated_bytes == max(found.timeline.totals)
    assert found.allocated_bytes <= found.block_bytes <= found.reserved_bytes <= found.process_bytes


@pytest.mark.trace
@pytest.mark.parametrize("lengths", [LENGTHS, (180, 37)], ids=["longest later", "longest first"])
@recipes
def test_a_run_asks_for_what_the_libraries_ask_for(
    family: str, method: str, recipe: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    found = made(family, method, seq_lens=lengths, **{**recipe, "empty_cache_steps": None})
    job = found.job
    traced = trace(job.model, job.method, job.training, job.stack, steps=len(lengths), seq_lens=lengths)
    # Two scalars of 512 bytes are where the shadow takes liberties.
    assert found.allocated_bytes == pytest.approx(traced.peak()[0], abs=1024)
    sizes = [a.n_bytes for a in traced.allocations]
    for chosen in (AllocatorSettings(), AllocatorSettings(expandable_segments=True)):
        theirs = replay(traced.events, sizes, chosen, start=traced.start)
        ours = found.walks.replay(chosen, reads=False)
        assert ours.peak_reserved_bytes == theirs.peak_reserved_bytes


@pytest.mark.parametrize("stack", ["transformers-trainer", "pure-bf16-loop"])
def test_one_length_again_and_again_is_that_length(stack: str) -> None:
    many = made("llama", "lora", stack=stack, seq_lens=[100] * 5)
    one = made("llama", "lora", stack=stack, seq_len=100)
    assert (many.allocated_bytes, many.peak.n_bytes) == (one.allocated_bytes, one.peak.n_bytes)
    if stack == "transformers-trainer":
        assert many.instants == tuple(i for i in one.instants if i.name != "optimizer states made")
    assert many.reserved_bytes >= one.reserved_bytes


@given(st.lists(st.sampled_from([16, 33, 100, 180]), min_size=1, max_size=12))
@settings(deadline=None, max_examples=20)
def test_more_steps_never_take_less(lengths: list[int]) -> None:
    before = made("llama", "lora", seq_lens=lengths[:-1] or lengths)
    after = made("llama", "lora", seq_lens=lengths)
    assert after.allocated_bytes >= before.allocated_bytes
    assert after.reserved_bytes >= before.reserved_bytes


def test_varying_lengths_leave_holes_that_one_length_does_not() -> None:
    varying = estimate("qwen2.5-0.5b", "lora", seq_lens=range(200, 2049, 231))
    steady = estimate("qwen2.5-0.5b", "lora", seq_len=2048)
    assert varying.allocated_bytes == steady.allocated_bytes
    assert varying.reserved_bytes > steady.reserved_bytes


@pytest.mark.parametrize(
    ("lengths", "warned"),
    [([2048], True), ([2048, 512], True), ([2048, 512, 2048], False), ([512, 2048], False), (None, False)],
)
def test_a_run_whose_longest_step_is_its_first_says_that_one_that_goes_on_needs_more(
    lengths: list[int] | None, warned: bool
) -> None:
    found = estimate("qwen2.5-0.5b", "full", gradient_checkpointing="non_reentrant", seq_lens=lengths)
    steady = estimate("qwen2.5-0.5b", "full", gradient_checkpointing="non_reentrant", seq_len=2048)
    assert any("seq_lens: the longest step (2,048 tokens) is the first" in w for w in found.warnings) == warned
    assert (found.allocated_bytes < steady.allocated_bytes) == warned


# -- which steps are walked ------------------------------------------------------------------------------------------

runs = st.lists(st.integers(1, 5), min_size=1, max_size=30)


@given(runs)
def test_without_anything_carried_over_each_length_is_walked_once_beside_the_first_step(lengths: list[int]) -> None:
    walked, order = plan(lengths, carries=False)
    assert [walked[index] for index in order] == lengths
    assert len(walked) == 1 + len(set(lengths[1:]))
    assert order.count(0) == 1


@given(runs)
def test_what_is_carried_over_comes_from_a_step_of_the_same_length(lengths: list[int]) -> None:
    walked, order = plan(lengths, carries=True)
    assert [walked[index] for index in order] == lengths
    for before, (place, index) in zip(lengths, list(enumerate(order))[1:], strict=False):
        assert walked[index - 1] == before
        assert (index == 1) == (place == 1), "only the second step finds what the first one left"


# -- how they are given ----------------------------------------------------------------------------------------------


def test_the_length_of_a_run_is_its_longest_and_giving_one_replaces_the_list() -> None:
    spec = TrainingSpec(seq_lens=[64, 128, 32])
    assert (spec.seq_len, spec.seq_lens) == (128, (64, 128, 32))
    assert spec.replace(micro_batch_size=2).seq_lens == (64, 128, 32)
    assert spec.replace(seq_lens=[8]).seq_len == 8
    assert spec.replace(seq_lens=None).seq_len == 128
    one = spec.replace(seq_len=16)
    assert (one.seq_len, one.seq_lens) == (16, None)


@pytest.mark.parametrize(
    ("given_", "parts"),
    [
        ({"seq_lens": []}, ("seq_lens = []", "length of each optimizer step", "leave it out")),
        ({"seq_lens": "512"}, ("seq_lens = '512'", "length of each optimizer step", "leave it out")),
        ({"seq_lens": [512, 0]}, ("seq_lens = 0", "at least 1", "leave it out")),
        ({"seq_lens": [512, 2.5]}, ("seq_lens = 2.5", "a whole number", "leave it out")),
        ({"seq_lens": [512], "seq_len": 64}, ("seq_len = 64", "the longest of seq_lens, 512", "only one of them")),
    ],
)
def test_lengths_that_make_no_run_are_refused(given_: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidValue) as caught:
        estimate("qwen2.5-0.5b", **given_)
    for part in parts:
        assert part in str(caught.value)


def test_a_list_has_no_place_in_a_grid_or_in_the_search_for_the_longest() -> None:
    with pytest.raises(InvalidValue, match=r"seq_lens = \(8, 16\).*use seq_len"):
        estimate_grid("qwen2.5-0.5b", seq_lens=[8, 16], micro_batch_size=[1, 2])
    with pytest.raises(InvalidValue, match=r"seq_lens = \[8, 16\].*leave it out"):
        max_seq_len("qwen2.5-0.5b", gpu="l4", seq_lens=[8, 16])


@pytest.mark.parametrize("stack", ["transformers-trainer", "pure-bf16-loop"])
def test_the_largest_batch_of_a_run_fits_and_the_next_does_not(stack: str) -> None:
    how: dict[str, Any] = {"seq_lens": [2000, 64, 900], "stack": stack}
    found = max_micro_batch_size("qwen2.5-0.5b", "lora", gpu="l4", **how)
    usable = catalog.gpu("l4").usable_bytes
    larger = estimate("qwen2.5-0.5b", "lora", gpu="l4", micro_batch_size=found.value + 1, **how)
    assert found.verdict.status != "does not fit"
    assert larger.process_bytes > usable


def test_the_recipe_says_that_lengths_vary() -> None:
    answer = run("estimate", "qwen2.5-0.5b", "--seq-lens", "64, 2048,512")
    assert answer.status == 0
    assert "micro batch 1 x 64 to 2,048 tokens over 3 steps" in " ".join(answer.out.split())
    assert "--seq-lens = 'x'" in run("estimate", "qwen2.5-0.5b", "--seq-lens", "64,x").err
