"""DoRA: laws, what PEFT trains, PEFT's own published run, and storage told apart from the method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from configs import CONFIGS
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from small import TINY, tiny
from transformers import AutoConfig, AutoModelForCausalLM

from vramcalc import DoRA, LoRA, QLoRA, estimate, fit
from vramcalc.accuracy.memory.measurements import predict, read_measurements
from vramcalc.accuracy.traces.table import read_traces
from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.hf_config import to_spec
from vramcalc.tables import directory

CHECKPOINTING = ("none", "reentrant", "non_reentrant")
STORAGE = ("none", "nf4", "fp4")


# -- laws --------------------------------------------------------------------------------------------------------------


SETTINGS = st.fixed_dictionaries(
    {
        "micro_batch_size": st.integers(1, 3),
        "seq_len": st.integers(2, 500),
        "rank": st.integers(1, 40),
        "gradient_checkpointing": st.sampled_from(CHECKPOINTING),
        "autocast": st.sampled_from([None, "bfloat16"]),
        "adapter_dtype": st.sampled_from(["float32", "weights"]),
        "lora_dropout": st.sampled_from([0.0, 0.1]),
        "quantization": st.sampled_from(STORAGE),
    }
)


@given(SETTINGS)
@settings(max_examples=40, deadline=None)
def test_it_takes_more_than_lora(settings: dict[str, Any]) -> None:
    assert tiny("dora", **settings).allocated_bytes > tiny("lora", **settings).allocated_bytes


@given(SETTINGS)
@settings(max_examples=25, deadline=None)
def test_dropout_takes_more_over_weights_as_they_are(settings: dict[str, Any]) -> None:
    """Behind dropout the base layer is computed again; in four bits its result may be narrower than the layer's own."""
    usual = {**settings, "quantization": "none", "gradient_checkpointing": "none", "adapter_dtype": "float32"}
    without, with_it = (tiny("dora", **{**usual, "lora_dropout": p}).allocated_bytes for p in (0.0, 0.1))
    assert with_it >= without


@given(SETTINGS)
@settings(max_examples=25, deadline=None)
def test_a_base_model_in_four_bits_holds_less(settings: dict[str, Any]) -> None:
    plain, stored = (tiny("dora", **{**settings, "quantization": q}) for q in ("none", "nf4"))
    loaded, packed = (next(i.n_bytes for i in e.instants) for e in (plain, stored))
    assert packed < loaded
    assert stored.trainable_params == plain.trainable_params


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_what_trains_is_what_peft_trains(family: str) -> None:
    targets = ["q_proj", "v_proj", "o_proj"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**CONFIGS[family]))
        adapted: Any = get_peft_model(model, LoraConfig(r=4, use_dora=True, target_modules=targets))
    found = estimate(to_spec(CONFIGS[family], family), "dora", rank=4, target_modules=targets, seq_len=32)
    assert found.trainable_params == adapted.get_nb_trainable_parameters()[0]


# -- witnesses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "within"), [("reserved_max", 0.001), ("allocated_avg_step_end", 0.0005)])
def test_the_run_that_peft_published(metric: str, within: float) -> None:
    """huggingface/peft method_comparison/MetaMathQA, lora--llama-3.2-3B-rank32-dora, on an L40S."""
    rows = [
        row
        for row in read_measurements(directory() / "measurements.csv")
        if (row["method"], row["metric"]) == ("dora", metric)
    ]
    (found,) = predict(rows, calibrated=False)
    assert found.predicted_bytes == pytest.approx(found.value_bytes, rel=within)


def test_traces_have_every_checkpointing_over_every_storage_with_and_without_dropout() -> None:
    jobs = [row.job for row in read_traces() if type(row.job.method) is DoRA]
    assert {
        (job.training.gradient_checkpointing, job.method.storage is None, job.method.lora_dropout > 0)  # type: ignore[union-attr]
        for job in jobs
    } == {(c, s, d) for c in CHECKPOINTING for s in (True, False) for d in (True, False)}
    assert len({job.model.model_type for job in jobs}) >= 4
    assert {job.stack.autocast for job in jobs} == {None, "bfloat16", "float16"}


# -- storage apart from the method -------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["nf4", "fp4"])
def test_lora_over_four_bits_is_qlora(code: str) -> None:
    by_words = estimate(TINY, "lora", rank=4, quantization=code, seq_len=64)
    assert by_words.job == estimate(TINY, "qlora", rank=4, bnb_4bit_quant_type=code, seq_len=64).job
    assert by_words.job == estimate(TINY, LoRA(rank=4), quantization=code, seq_len=64).job
    assert estimate(TINY, "qlora", rank=4, quantization=code, seq_len=64).job == by_words.job


def test_a_storage_in_full_is_that_of_its_words() -> None:
    settings = {"quantization": "nf4", "bnb_4bit_use_double_quant": False}
    found = estimate(TINY, "dora", seq_len=64, **settings).job.method
    assert isinstance(found, DoRA)
    assert found.storage == QLoRA(bnb_4bit_use_double_quant=False).storage
    assert DoRA(**found.model_dump()) == found


def test_no_quantization_is_what_it_is_without_the_word() -> None:
    for method in ("full", "lora", "dora"):
        assert estimate(TINY, method, quantization="none", seq_len=64).job == estimate(TINY, method, seq_len=64).job


@pytest.mark.parametrize(
    ("method", "settings", "error", "words"),
    [
        ("full", {"quantization": "nf4"}, Unsupported, "quantization with method 'full'"),
        ("qlora", {"quantization": "none"}, InvalidValue, "nf4 or fp4 with method 'qlora'"),
        ("lora", {"quantization": "int3"}, InvalidValue, "expected none, nf4 or fp4"),
        ("lora", {"quantization": "nf4", "bnb_4bit_quant_type": "fp4"}, InvalidValue, "that of quantization='nf4'"),
        ("dora", {"peft": "0.15"}, Unsupported, "use peft='0.16' or later"),
        ("dora", {"target_modules": ["embed_tokens"]}, Unsupported, "DoRA on the embedding"),
        ("dora", {"fused_kernels": "fms_acceleration", "autocast": "bfloat16"}, Unsupported, "with DoRA"),
    ],
    ids=str,
)
def test_what_does_not_go_together_is_refused(
    method: str, settings: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        estimate(TINY, method, seq_len=64, **settings)


def test_it_has_no_neighbours_interval() -> None:
    found = tiny("dora", optim="adamw_torch")
    assert "method dora" in found.unchecked


def test_the_way_out_is_the_same_method_over_four_bits() -> None:
    (v,) = fit("llama-3.1-8b", gpus=["rtx-3060-12"], methods=["dora"], seq_len=512, rank=8)
    assert v.status == "does not fit"
    settings = [remedy.settings for remedy in v.remedies]
    assert all(s.get("method", "dora") == "dora" for s in settings)
    assert any(s.get("quantization") == "nf4" for s in settings)
