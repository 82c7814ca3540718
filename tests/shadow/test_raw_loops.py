"""What raw loops do and trainers do not: no mask, gradients zeroed in place, outputs through backward, own losses."""

from __future__ import annotations

from typing import Any

import pytest
from small import TINY, tiny

from vramcalc import estimate
from vramcalc.errors import Unsupported
from vramcalc.memory.calibration.similarity import kernel, likeness, recipe_id
from vramcalc.shadow.training.loop import _BATCH
from vramcalc.show.words import recipe_lines

LOOPS: tuple[dict[str, Any], ...] = (
    {"passes_attention_mask": False},
    {"zero_grad_set_to_none": False},
    {"keeps_outputs": "backward"},
    {"loss": "cross_entropy"},
    {"loss": "shifted_cross_entropy"},
)
METHODS = ("full", "lora", "qlora")


# -- no attention_mask -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transformers", ["4.53", "4.55", "4.57"])
def test_without_a_mask_and_a_cache_sequences_are_taken_for_packed(transformers: str) -> None:
    with_mask, without = (
        tiny("lora", transformers=transformers, seq_len=2048, passes_attention_mask=passes) for passes in (True, False)
    )
    assert (kernel(with_mask.job), kernel(without.job)) == ("flash", "efficient")
    assert without.allocated_bytes > with_mask.allocated_bytes
    cached = tiny("lora", transformers=transformers, use_cache=True, passes_attention_mask=False)
    assert kernel(cached.job) == "flash"
    checkpointed = tiny(
        "lora", transformers=transformers, use_cache=True, passes_attention_mask=False,
        gradient_checkpointing="reentrant",
    )  # fmt: skip
    assert kernel(checkpointed.job) == "efficient"


@pytest.mark.parametrize("transformers", ["4.45", "4.52", "5.0", "5.23"])
def test_other_releases_do_without_a_mask_of_their_own(transformers: str) -> None:
    with_mask, without = (
        tiny("lora", transformers=transformers, seq_len=2048, passes_attention_mask=passes) for passes in (True, False)
    )
    assert kernel(with_mask.job) == kernel(without.job)
    assert 0 <= with_mask.allocated_bytes - without.allocated_bytes <= 2048 * 8


def test_padding_wants_a_mask() -> None:
    with pytest.raises(Unsupported, match=r"padded=True with passes_attention_mask=False"):
        tiny("lora", padded=True, passes_attention_mask=False)


def test_a_window_without_a_mask_is_refused_where_no_trace_was_compared() -> None:
    windowed = TINY.replace(model_type="mistral", sliding_window=128)
    with pytest.raises(Unsupported, match=r"'4\.50' with passes_attention_mask=False .* sliding_window=128"):
        estimate(windowed, "lora", transformers="4.50", passes_attention_mask=False, seq_len=256)
    estimate(windowed, "lora", transformers="4.53", passes_attention_mask=False, seq_len=256)


# -- gradients, outputs, losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_grad", ["start", "end"])
def test_gradients_that_are_zeroed_in_place_are_there_when_the_loss_is(zero_grad: str) -> None:
    settings: dict[str, Any] = {"zero_grad": zero_grad, "autocast": None, "seq_len": 2048, "micro_batch_size": 4}
    dropped, zeroed = (tiny("full", zero_grad_set_to_none=to_none, **settings) for to_none in (True, False))
    gradients = 2 * dropped.trainable_params
    more = zeroed.allocated_bytes - dropped.allocated_bytes
    assert dropped.peak.name == zeroed.peak.name
    assert 0.9 * gradients <= more <= gradients + 512 * 100
    accumulated = tiny("full", gradient_accumulation_steps=2, **settings)
    assert accumulated.allocated_bytes == zeroed.allocated_bytes


@pytest.mark.parametrize("method", METHODS)
def test_outputs_through_backward_are_between_none_and_those_of_a_step(method: str) -> None:
    kept = [
        tiny(method, keeps_outputs=keeps, seq_len=1024).allocated_bytes
        for keeps in ("no", "backward", "step", "next_forward")
    ]
    assert kept == sorted(kept)
    assert kept[0] < kept[-1]


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_on_16_bit_logits_takes_less_than_the_models_own(method: str) -> None:
    full, own, shifted = (
        tiny(method, loss=loss, autocast=None, prepare_model_for_kbit_training=False, seq_len=1024, micro_batch_size=4)
        for loss in ("full", "cross_entropy", "shifted_cross_entropy")
    )
    assert own.allocated_bytes < full.allocated_bytes
    assert own.allocated_bytes <= shifted.allocated_bytes


# -- words and likeness ------------------------------------------------------------------------------------------------


def test_what_a_loop_does_is_said() -> None:
    usual = " ".join(recipe_lines(tiny("lora").job))
    for settings in LOOPS:
        assert " ".join(recipe_lines(tiny("lora", **settings).job)) != usual


@pytest.mark.parametrize("settings", LOOPS, ids=str)
def test_what_no_measured_run_does_is_unchecked(settings: dict[str, Any]) -> None:
    usual, other = tiny("lora"), tiny("lora", **settings)
    ((name, value),) = settings.items()
    assert f"{name} {value}" in other.unchecked
    assert not [told for told in usual.unchecked if told.startswith((*LOOPS[0], *LOOPS[1]))]
    assert recipe_id(usual.job, None) != recipe_id(other.job, None)


def test_what_is_as_in_most_loops_is_no_trait() -> None:
    """Calibrations that were made before these settings could be said hold on."""
    traits = likeness(tiny("lora").job, None).traits
    assert traits.keys().isdisjoint({"passes_attention_mask", "zero_grad_set_to_none"})


def test_a_loss_keeps_the_labels_and_not_the_ids() -> None:
    """Of a batch that the loop drops, ids are what the embedding saves and labels what ``nll_loss`` does."""
    found = tiny("full", loss="cross_entropy", keeps_outputs="no").walks.written_out.program
    backward = next(s.start for s in found.segments if s.phase == "step0.0.backward")
    alive = {e for e in found.events[:backward] if e >= 0} - {~e for e in found.events[:backward] if e < 0}
    assert {found.births[e].op for e in alive} & {*_BATCH} == {"input_ids", "labels"}
