"""Prompt tuning and p-tuning: laws, what PEFT trains, longer sequences, what is refused."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from configs import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from small import CHECKPOINTING, TINY, tiny
from transformers import AutoConfig, AutoModelForCausalLM

from vramcalc import PromptTuning, PTuning, estimate, fit
from vramcalc.accuracy.memory.measurements import predict, read_measurements
from vramcalc.accuracy.traces.table import read_traces
from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.hf_config import to_spec
from vramcalc.tables import directory

METHODS = ("prompt_tuning", "p_tuning")
MEASURED = directory() / "measurements.csv"
SETTINGS = st.fixed_dictionaries(
    {
        "micro_batch_size": st.integers(1, 3),
        "seq_len": st.integers(2, 500),
        "num_virtual_tokens": st.integers(1, 60),
        "gradient_checkpointing": st.sampled_from(CHECKPOINTING),
        "autocast": st.sampled_from([None, "bfloat16"]),
        "attn_implementation": st.sampled_from(["sdpa", "eager"]),
        "padded": st.booleans(),
        "quantization": st.sampled_from(["none", "nf4", "fp4"]),
    }
)

# -- laws --------------------------------------------------------------------------------------------------------------


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=30, deadline=None)
def test_more_virtual_tokens_take_more(settings: dict[str, Any], method: str) -> None:
    more = {**settings, "num_virtual_tokens": settings["num_virtual_tokens"] + 16}
    assert tiny(method, **more).allocated_bytes > tiny(method, **settings).allocated_bytes


@given(SETTINGS)
@settings(max_examples=30, deadline=None)
def test_a_network_over_virtual_tokens_takes_more_than_none(settings: dict[str, Any]) -> None:
    plain, encoded = (tiny(method, **settings) for method in METHODS)
    assert encoded.allocated_bytes > plain.allocated_bytes
    assert encoded.trainable_params == plain.trainable_params + 3 * (256 * 256 + 256)


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=15, deadline=None)
def test_only_the_sum_of_virtual_and_own_tokens_counts_but_for_what_is_learned(
    settings: dict[str, Any], method: str
) -> None:
    """As many positions go through the model: of four bytes each, only embeddings, states and masks differ."""
    more = {**settings, "num_virtual_tokens": settings["num_virtual_tokens"] + 8, "seq_len": settings["seq_len"] + 8}
    shifted = {**more, "num_virtual_tokens": settings["num_virtual_tokens"]} | {"seq_len": settings["seq_len"] + 16}
    a, b = tiny(method, **more).allocated_bytes, tiny(method, **shifted).allocated_bytes
    # Eight rows of 256: learned, their gradient and two states, copies for three sequences.
    assert abs(a - b) < 8 * 256 * 4 * (4 + 4 * settings["micro_batch_size"]) + 64 * 512


# -- beside PEFT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize(
    ("method", "config"), [(PromptTuning(), "PromptTuningConfig"), (PTuning(), "PromptEncoderConfig")], ids=METHODS
)
def test_what_trains_is_what_peft_trains(family: str, method: Any, config: str) -> None:
    for fields in (
        {},
        {"num_virtual_tokens": 5},
        *([{"encoder_hidden_size": 48}] if method.kind == "p_tuning" else []),
    ):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[family]))
            spec = getattr(peft, config)(task_type="CAUSAL_LM", **{"num_virtual_tokens": 20, **fields})
            adapted: Any = peft.get_peft_model(model, spec)
        found = estimate(to_spec(CONFIGS[family], family), method, seq_len=32, **fields)
        assert found.trainable_params == adapted.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("method", "metric", "within"),
    [
        ("p_tuning", "allocated_avg_step_end", 0.001),
        ("p_tuning", "reserved_max", 0.01),
        ("prompt_tuning", "allocated_avg_step_end", 0.001),
        ("prompt_tuning", "reserved_max", 0.01),
    ],
)
def test_the_runs_that_peft_published(method: str, metric: str, within: float) -> None:
    """huggingface/peft method_comparison/MetaMathQA on an L40S, by PEFT 0.15 to 0.19."""
    rows = [r for r in read_measurements(MEASURED) if (r["method"], r["metric"]) == (method, metric)]
    found = list(predict(rows, calibrated=False))
    assert len(found) == len(rows) > 0
    for one in found:
        assert one.predicted_bytes == pytest.approx(one.value_bytes, rel=within), one.row["case_id"]


@pytest.mark.parametrize("method", [PromptTuning, PTuning])
def test_traces_have_every_checkpointing_over_every_storage(method: type[PromptTuning | PTuning]) -> None:
    jobs = [row.job for row in read_traces() if type(row.job.method) is method]
    assert {(job.training.gradient_checkpointing, job.method.storage is None) for job in jobs} == {
        (c, s) for c in CHECKPOINTING for s in (True, False)
    }
    assert len({job.model.model_type for job in jobs}) >= 5
    assert {job.stack.attn_implementation for job in jobs} == {"sdpa", "eager", "flash_attention_2"}
    assert {job.stack.autocast for job in jobs} == {None, "bfloat16", "float16"}
    assert {job.stack.transformers for job in jobs} == {"4.52", "4.57", "5.13", "5.23"}


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_the_models_positions_hold_virtual_tokens_too() -> None:
    fits, over = (tiny("prompt_tuning", num_virtual_tokens=n, seq_len=4000) for n in (96, 97))
    assert not any("max_position_embeddings" in w for w in fits.warnings)
    assert any("4,000 with 97 virtual tokens before it is above" in w for w in over.warnings)


@pytest.mark.parametrize(
    ("method", "settings", "error", "words"),
    [
        ("full", {"num_virtual_tokens": 5}, Exception, "num_virtual_tokens"),
        ("prompt_tuning", {"peft": "0.14"}, Unsupported, "peft='0.14' with method 'prompt_tuning'"),
        ("p_tuning", {"loss": "cross_entropy"}, Unsupported, "loss='cross_entropy' with method 'p_tuning'"),
        ("p_tuning", {"loss": "fused_cross_entropy"}, Unsupported, "with method 'p_tuning'"),
        (
            "prompt_tuning",
            {"fused_kernels": "fms_acceleration", "autocast": "bfloat16"},
            Unsupported,
            "fused_kernels='fms_acceleration' with method 'prompt_tuning'",
        ),
        ("p_tuning", {"encoder_reparameterization_type": "LSTM"}, InvalidValue, "'MLP'"),
        ("prompt_tuning", {"num_virtual_tokens": 0}, InvalidValue, "at least 1"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(
    method: str, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        estimate(TINY, method, seq_len=64, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_it_has_no_neighbours_interval(method: str) -> None:
    assert f"method {method}" in tiny(method, optim="adamw_torch").unchecked


@pytest.mark.parametrize("method", METHODS)
def test_the_way_out_is_the_same_method_over_four_bits(method: str) -> None:
    (v,) = fit("llama-3.1-8b", gpus=["rtx-3060-12"], methods=[method], seq_len=512)
    assert v.status == "does not fit"
    settings = [remedy.settings for remedy in v.remedies]
    assert all(s.get("method", method) == method for s in settings)
    assert any(s.get("quantization") == "nf4" for s in settings)
