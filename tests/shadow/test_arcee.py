"""Arcee: a feed-forward network without a gate, and a square that autocast runs in float32."""

from __future__ import annotations

from typing import Any

import pytest
from configs import CONFIGS

from vramcalc import estimate
from vramcalc.errors import Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.stack import FullFineTuning, TrainingSpec
from vramcalc.memory import walks
from vramcalc.timing.flops import step_flops

TINY = to_spec(CONFIGS["arcee"], "arcee")


# -- published ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["afm-4.5b", "arcee-ai/AFM-4.5B-Base"])
def test_afm_has_the_parameters_that_are_published(name: str) -> None:
    """docs.arcee.ai, model catalog, AFM-4.5B: 4.5 billion parameters, ReLU squared, grouped-query attention."""
    model = catalog.model(name)
    assert 4.45e9 < model.params_total < 4.65e9
    assert model.num_attention_heads == 5 * model.num_key_value_heads


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
def test_repeated_layers_stand_for_all_of_them(
    method: str, checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def totals() -> tuple[int, int]:
        walks.walks_of.cache_clear()
        found = estimate(model, method, seq_len=96, gradient_checkpointing=checkpointing)
        return found.allocated_bytes, found.reserved_bytes

    model = TINY.replace(num_hidden_layers=9)
    repeated = totals()
    monkeypatch.setattr(walks, "depths_of", lambda job: [job.model.num_hidden_layers])
    assert totals() == repeated


@pytest.mark.parametrize(("autocast", "n_bytes"), [(None, 2 + 2), ("bfloat16", 2 + 4 + 2)])
def test_a_layer_keeps_what_relu_gives_its_square_and_a_raised_copy(autocast: str | None, n_bytes: int) -> None:
    found = estimate(TINY, "full", seq_len=512, autocast=autocast)
    kept = [row for row in found.rows if row.why.startswith("saved for") and row.shape[-2:] == (512, 240)]
    assert sum(row.n_bytes for row in kept) == TINY.num_hidden_layers * 512 * 240 * n_bytes


def test_there_is_one_projection_less_than_in_llama() -> None:
    """The gate, forward and both ways back."""
    llama = to_spec({**CONFIGS["llama"], "intermediate_size": 240}, "llama")

    def layers(model: Any) -> int:
        return step_flops(model, FullFineTuning(), TrainingSpec(seq_len=64)).by("what")["layers"]

    gate = 6 * 64 * llama.hidden_size * llama.intermediate_size * llama.num_hidden_layers
    assert layers(llama) - layers(TINY) == gate
    assert llama.params_total - TINY.params_total == llama.num_hidden_layers * 64 * 240


# -- refused -----------------------------------------------------------------------------------------------------------


def test_what_has_not_been_compared_is_refused() -> None:
    with pytest.raises(Unsupported, match="has no loss='fused_linear' for arcee"):
        estimate(TINY, "lora", seq_len=64, loss="fused_linear")
    with pytest.raises(Unsupported, match=r"no trace has been compared with; use 5\.23 or later"):
        estimate(TINY, "lora", seq_len=64, transformers="4.57")
    with pytest.raises(Unsupported, match="hidden_act 'silu' is not modelled"):
        to_spec({**CONFIGS["arcee"], "hidden_act": "silu"}, "here")
