"""Prefix tuning: laws, what PEFT trains, keys from a cache, what is refused."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import peft
import pytest
import torch
from configs import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from small import TINY, tiny
from transformers import AutoConfig, AutoModelForCausalLM

from vramcalc import PrefixTuning, estimate, fit
from vramcalc.accuracy.memory.measurements import predict, read_measurements
from vramcalc.accuracy.traces.table import read_traces
from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.hf_config import to_spec
from vramcalc.memory import walks
from vramcalc.memory.walks import Walks
from vramcalc.tables import directory

KV = 2 * 2 * 64
"""Keys and values of a layer of the tiny model, of one token."""
SETTINGS = st.fixed_dictionaries(
    {
        "micro_batch_size": st.integers(1, 3),
        "seq_len": st.integers(2, 500),
        "num_virtual_tokens": st.integers(1, 60),
        "prefix_projection": st.booleans(),
        "autocast": st.sampled_from([None, "bfloat16"]),
        "attn_implementation": st.sampled_from(["sdpa", "eager"]),
        "padded": st.booleans(),
        "keeps_outputs": st.sampled_from(["no", "backward", "next_forward"]),
        "quantization": st.sampled_from(["none", "nf4", "fp4"]),
    }
)

# -- laws --------------------------------------------------------------------------------------------------------------


@given(SETTINGS)
@settings(max_examples=30, deadline=None)
def test_more_virtual_tokens_take_more(settings: dict[str, Any]) -> None:
    more = {**settings, "num_virtual_tokens": settings["num_virtual_tokens"] + 16}
    assert tiny("prefix_tuning", **more).allocated_bytes > tiny("prefix_tuning", **settings).allocated_bytes


@given(SETTINGS)
@settings(max_examples=30, deadline=None)
def test_keys_and_values_of_every_layer_are_learned_or_come_out_of_two_layers(settings: dict[str, Any]) -> None:
    n, layers = settings["num_virtual_tokens"], TINY.num_hidden_layers
    learned, projected = (
        tiny("prefix_tuning", **{**settings, "prefix_projection": p}).trainable_params for p in (False, True)
    )
    assert learned == n * layers * KV
    width = KV // 2
    assert projected == n * width + width * width + width + width * layers * KV + layers * KV


@given(SETTINGS)
@settings(max_examples=12, deadline=None)
def test_a_few_layers_stand_for_all(settings: dict[str, Any]) -> None:
    found = tiny("prefix_tuning", **settings)
    assert found.walks.written_out.program.walked < TINY.num_hidden_layers
    with patch.object(walks, "depths_of", lambda job: [job.model.num_hidden_layers]):
        whole = Walks(found.job)
    assert [i.n_bytes for i in found.instants] == [i.n_bytes for i in whole.instants]
    assert found.walks.from_loaded == whole.from_loaded


def test_a_prefix_takes_less_than_virtual_tokens_as_no_layer_computes_it() -> None:
    prompt, prefix = (tiny(m, num_virtual_tokens=200, micro_batch_size=4) for m in ("prompt_tuning", "prefix_tuning"))
    assert prefix.allocated_bytes < prompt.allocated_bytes


# -- beside PEFT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("width", [None, 48])
@pytest.mark.parametrize("projected", [False, True])
def test_what_trains_is_what_peft_trains(family: str, projected: bool, width: int | None) -> None:
    fields = {"num_virtual_tokens": 5, "prefix_projection": projected}
    if projected and width:
        fields["encoder_hidden_size"] = width
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[family]))
        config = peft.PrefixTuningConfig(task_type="CAUSAL_LM", **fields)
        adapted: Any = peft.get_peft_model(model, config)
    found = estimate(to_spec(CONFIGS[family], family), PrefixTuning(), seq_len=32, **fields)
    assert found.trainable_params == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(("metric", "within"), [("allocated_avg_step_end", 0.0015), ("reserved_max", 0.05)])
def test_the_runs_that_peft_published(metric: str, within: float) -> None:
    """huggingface/peft method_comparison/MetaMathQA on an L40S; of the whole process, evaluation included.

    Between its steps that generates for 50 sequences at a time, whose prefixes alone are 0.5 GiB in float32 for 50
    virtual tokens, and 2.1 for 200: what is reserved is more than training's by a share of that.
    """
    rows = [
        row
        for row in read_measurements(directory() / "measurements.csv")
        if (row["method"], row["metric"]) == ("prefix_tuning", metric)
    ]
    found = list(predict(rows, calibrated=False))
    assert len(found) == len(rows) == 2
    for one in found:
        assert one.predicted_bytes == pytest.approx(one.value_bytes, rel=within), one.row["case_id"]


def test_traces_have_both_encoders_over_every_storage_and_attention() -> None:
    jobs = [row.job for row in read_traces() if type(row.job.method) is PrefixTuning]
    assert {(job.method.prefix_projection, job.method.storage is None) for job in jobs} == {  # type: ignore[union-attr]
        (p, s) for p in (True, False) for s in (True, False)
    }
    assert len({job.model.model_type for job in jobs}) >= 5
    assert {job.stack.attn_implementation for job in jobs} == {"sdpa", "eager", "flash_attention_2"}
    assert {job.stack.autocast for job in jobs} == {None, "bfloat16", "float16"}
    assert {job.stack.transformers for job in jobs} == {"4.57", "5.13", "5.23"}


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_tokens_that_find_keys_in_a_cache_need_a_mask_and_a_single_one_does_not() -> None:
    jobs = [tiny("prefix_tuning", seq_len=n).job for n in (1, 2)]
    assert [job.masked for job in jobs] == [False, True]


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        (
            {"gradient_checkpointing": "reentrant"},
            Unsupported,
            "gradient_checkpointing='reentrant' with method 'prefix_tuning'",
        ),
        ({"peft": "0.17"}, Unsupported, "peft='0.17' with method 'prefix_tuning'"),
        ({"transformers": "4.52"}, Unsupported, "transformers='4.52' with method 'prefix_tuning'"),
        ({"autocast": "float16"}, Unsupported, "dtype='bfloat16' with autocast='float16'"),
        ({"loss": "fused_cross_entropy"}, Unsupported, "with method 'prefix_tuning'"),
        ({"encoder_hidden_size": 48}, InvalidValue, "prefix_projection=True beside it"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        estimate(TINY, "prefix_tuning", seq_len=64, **settings)


def test_a_prefix_that_fills_a_window_is_refused() -> None:
    gemma = catalog.model("gemma-2-2b").replace(sliding_window=64)
    with pytest.raises(Unsupported, match="num_virtual_tokens=64"):
        estimate(gemma, "prefix_tuning", num_virtual_tokens=64, seq_len=64, attn_implementation="eager")


def test_it_has_no_neighbours_interval() -> None:
    assert "method prefix_tuning" in tiny("prefix_tuning", optim="adamw_torch").unchecked


def test_the_way_out_is_the_same_method_over_four_bits() -> None:
    (v,) = fit("llama-3.1-8b", gpus=["rtx-3060-12"], methods=["prefix_tuning"], seq_len=512)
    assert v.status == "does not fit"
    settings = [remedy.settings for remedy in v.remedies]
    assert all(s.get("method", "prefix_tuning") == "prefix_tuning" for s in settings)
    assert any(s.get("quantization") == "nf4" for s in settings)
    assert not any("gradient_checkpointing" in s for s in settings)
