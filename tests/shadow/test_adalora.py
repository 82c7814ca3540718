"""AdaLoRA: laws, what PEFT trains by release, importance beside the step, PEFT's own published runs, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configs import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import AdaLoraConfig, get_peft_model
from small import TINY, tiny
from transformers import AutoConfig, AutoModelForCausalLM

from vramcalc import AdaLoRA, LoRA, estimate, fit
from vramcalc.accuracy.memory.measurements import predict, read_measurements
from vramcalc.accuracy.traces.table import read_traces
from vramcalc.errors import InvalidValue, UnknownName, Unsupported
from vramcalc.inputs.hf_config import to_spec
from vramcalc.memory.snapshots import snapshots
from vramcalc.tables import directory
from vramcalc.units import round_up

CHECKPOINTING = ("none", "reentrant", "non_reentrant")
SETTINGS = st.fixed_dictionaries(
    {
        "micro_batch_size": st.integers(1, 3),
        "seq_len": st.integers(2, 500),
        "gradient_checkpointing": st.sampled_from(CHECKPOINTING),
        "autocast": st.sampled_from([None, "bfloat16"]),
        "adapter_dtype": st.sampled_from(["float32", "weights"]),
        "lora_dropout": st.sampled_from([0.0, 0.1]),
        "quantization": st.sampled_from(["none", "nf4", "fp4"]),
        "gradient_accumulation_steps": st.integers(1, 3),
    }
)


def ada(rank: int = 12, **settings: Any) -> Any:
    return tiny("adalora", **{"init_r": rank, "target_r": 1, **settings})


# -- laws --------------------------------------------------------------------------------------------------------------


@given(SETTINGS, st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_it_takes_more_than_lora(settings: dict[str, Any], rank: int) -> None:
    assert ada(rank, **settings).allocated_bytes > tiny("lora", rank=rank, **settings).allocated_bytes


@given(SETTINGS, st.integers(2, 40))
@settings(max_examples=25, deadline=None)
def test_importance_is_three_tensors_of_every_adapter(settings: dict[str, Any], rank: int) -> None:
    """They are kept from the first step on, whatever is highest."""
    with_it, without = (snapshots(ada(rank, update_and_allocate=u, **settings).walks) for u in (True, False))
    size = 4 if settings["adapter_dtype"] == "float32" else 2
    d, kv, inner = TINY.hidden_size, TINY.num_key_value_heads * TINY.head_dim, TINY.intermediate_size
    widths = [d, d, d, kv, d, kv, d, d, d, inner, d, inner, inner, d]
    kept = sum(round_up(size * rank * n, 512) for n in widths) + 7 * round_up(size * rank, 512)
    for moment in ("step0.optimizer", "step1.optimizer"):
        assert with_it[moment] - without[moment] == 3 * TINY.num_hidden_layers * kept
    assert with_it["step0.backward"] == without["step0.backward"]


@given(SETTINGS, st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_how_long_the_phases_are_moves_nothing(settings: dict[str, Any], delta: int, tinit: int, tfinal: int) -> None:
    long = {"tinit": tinit, "tfinal": tfinal, "deltaT": delta, "total_step": tinit + tfinal + 1}
    told = {"beta1": 0.5, "beta2": 0.5, "orth_reg_weight": 0.0, "target_r": 3}
    usual, other = ada(**settings), ada(**settings, **long, **told)
    assert usual.allocated_bytes == other.allocated_bytes
    assert usual.likeness == other.likeness


def test_steps_that_are_listed_are_a_run_in_which_ranks_are_cut() -> None:
    """Each step ends the importance of the one before: what is kept does not grow with their number."""
    few, many = (
        estimate(TINY, "adalora", target_modules=["q_proj"], optim="adamw_torch", seq_lens=[64, 128] * n)
        for n in (1, 4)
    )
    assert many.allocated_bytes >= few.allocated_bytes
    ends = [snapshots(e.walks) for e in (few, many)]
    assert ends[1]["step3.optimizer"] == ends[1]["step1.optimizer"]


# -- what trains -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_what_trains_is_what_peft_trains(family: str, dtype: str) -> None:
    """PEFT 0.21 lets a rank train that it has cast with its layer: one number an adapter."""
    targets = ["q_proj", "v_proj", "o_proj"]
    config = AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=targets)
    # Not on the meta device, where PEFT casts nothing.
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[family]), dtype=getattr(torch, dtype))
    adapted: Any = get_peft_model(model, config)
    made: dict[str, Any] = {"init_r": 4, "target_r": 2, "target_modules": targets, "dtype": dtype, "seq_len": 32}
    if family == "mixtral":
        made["transformers"] = "4.57"
    spec = to_spec(CONFIGS[family], family)
    assert estimate(spec, "adalora", **made).trainable_params == adapted.get_nb_trainable_parameters()[0]


def test_the_rank_trains_from_0_21_on_only() -> None:
    late, early = (ada(peft=release).trainable_params for release in ("0.21", "0.20"))
    assert late - early == 7 * TINY.num_hidden_layers
    assert ada(peft="0.20", lora_dropout=0.1).allocated_bytes < ada(peft="0.21", lora_dropout=0.1).allocated_bytes


# -- witnesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "within"), [("reserved_max", 0.005), ("allocated_avg_step_end", 0.003)])
def test_the_runs_that_peft_published(metric: str, within: float) -> None:
    """huggingface/peft method_comparison/MetaMathQA on an L40S: PEFT 0.15, 0.18 and 0.19.

    What is allocated on average lacks the importance that the last tenth of the steps does not keep any more.
    """
    rows = [
        row
        for row in read_measurements(directory() / "measurements.csv")
        if (row["method"], row["metric"]) == ("adalora", metric)
    ]
    assert {row["peft_version"][:4] for row in rows} == {"0.15", "0.18", "0.19"}
    for found in predict(rows, calibrated=False):
        assert found.predicted_bytes == pytest.approx(found.value_bytes, rel=within)


def test_traces_have_every_checkpointing_over_every_storage_with_and_without_dropout() -> None:
    jobs = [row.job for row in read_traces() if type(row.job.method) is AdaLoRA]
    assert {
        (job.training.gradient_checkpointing, job.method.storage is None, job.method.lora_dropout > 0)  # type: ignore[union-attr]
        for job in jobs
    } == {(c, s, d) for c in CHECKPOINTING for s in (True, False) for d in (True, False)}
    assert len({job.model.model_type for job in jobs}) >= 5
    assert {job.stack.autocast for job in jobs} == {None, "bfloat16", "float16"}
    assert {job.stack.peft for job in jobs} == {f"0.{minor}" for minor in range(15, 22)}


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"peft": "0.14"}, Unsupported, "use peft='0.15' or later"),
        ({"target_modules": ["embed_tokens"]}, Unsupported, "no AdaLoRA for embeddings"),
        ({"fused_kernels": "fms_acceleration", "autocast": "bfloat16"}, Unsupported, "with AdaLoRA"),
        ({"rank": 8}, UnknownName, "rank"),
        ({"rank_pattern": {}}, UnknownName, "rank_pattern"),
        ({"layers_to_transform": [0]}, UnknownName, "layers_to_transform"),
        ({"init_r": 8}, InvalidValue, "target_r = 8: expected less than init_r, 8"),
        ({"total_step": 10, "tinit": 6, "tfinal": 4}, InvalidValue, "more than tinit and tfinal, 10"),
        ({"beta1": 1.0}, InvalidValue, "beta1"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(settings: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        estimate(TINY, "adalora", seq_len=64, **settings)


def test_peft_takes_the_configuration() -> None:
    AdaLoraConfig(**AdaLoRA().peft_fields)
    AdaLoraConfig(**AdaLoRA(tinit=5, tfinal=7, deltaT=100).peft_fields)


@pytest.mark.parametrize("schedule", [{}, {"tinit": 200, "tfinal": 500, "total_step": 5000, "deltaT": 7}])
def test_a_step_is_measured_in_which_ranks_are_cut(schedule: dict[str, int]) -> None:
    method = AdaLoRA(**schedule)
    at, fields = method.allocates_at, method.peft_fields
    assert at is not None
    assert fields["tinit"] < at < fields["total_step"] - fields["tfinal"]
    assert at % fields["deltaT"] == 0
    assert method.replace(update_and_allocate=False).allocates_at is None
    assert LoRA().allocates_at is None


def test_the_answer_says_who_has_to_call_what() -> None:
    assert any("update_and_allocate is taken to be called" in warning for warning in ada().warnings)
    assert any("cuts no rank" in warning for warning in ada(update_and_allocate=False).warnings)
    assert not any("update_and_allocate" in warning for warning in tiny("lora").warnings)


def test_it_has_no_neighbours_interval() -> None:
    unchecked = ada(optim="adamw_torch").unchecked
    assert "method adalora" in unchecked
    assert "init_r 64" in ada(64, optim="adamw_torch").unchecked
    assert "update_and_allocate False" in ada(optim="adamw_torch", update_and_allocate=False).unchecked


def test_the_way_out_is_the_same_method_over_four_bits() -> None:
    (v,) = fit("llama-3.1-8b", gpus=["rtx-3060-12"], methods=["adalora"], seq_len=512)
    assert v.status == "does not fit"
    assert any(remedy.settings.get("quantization") == "nf4" for remedy in v.remedies)
    assert all(remedy.settings.get("method", "adalora") == "adalora" for remedy in v.remedies)
