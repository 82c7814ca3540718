"""Kernels of the fms_acceleration plugin: figures that other people measured, and traces of its own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vramcalc import estimate
from vramcalc.accuracy.memory.measurements import Row, read_measurements
from vramcalc.inputs import catalog
from vramcalc.memory import walks
from vramcalc.shadow.depth import few_layers

PATH = Path(__file__).resolve().parents[2] / "tables" / "measurements.csv"
MODELS = ("mistralai/Mistral-7B-v0.1", "meta-llama/Meta-Llama-3-8B")
DTYPES = {"bf16": "bfloat16", "none": None}
LOSSES = {"unsloth": "fused_cross_entropy", "liger": "fused_linear"}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FUSED: dict[str, Any] = {
    "fused_kernels": "fms_acceleration",
    "dtype": "bfloat16",
    "attn_implementation": "flash_attention_2",
    "prepare_model_for_kbit_training": False,
}
MEASURED = [
    row
    for row in read_measurements(PATH)
    if row["kernels"].startswith("foak")
    and row["model"] in MODELS
    and row["n_gpus"] == "1"
    and row["metric"] == "allocated_max"
]


def settings_of(row: Row) -> dict[str, Any]:
    """The benchmark's recipe: SFTTrainer on packed sequences, reentrant checkpointing, one A100."""
    found = {
        **FUSED,
        "transformers": row["transformers_version"],
        "gpu": "a100-sxm-80",
        "autocast": DTYPES[row["autocast"]],
        "loss": LOSSES[row["loss"]],
        "micro_batch_size": int(row["micro_batch"]),
        "seq_len": int(row["seq_len"]),
        "gradient_checkpointing": row["checkpointing"],
        "optim": "adamw_torch",
        "zero_grad": "end",
    }
    if row["method"] == "full":
        return found
    return found | {
        "rank": int(row["rank"]),
        "lora_dropout": float(row["lora_dropout"]),
        "target_modules": row["targets"].split(";"),
    }


def test_rows_of_every_method_and_loss_are_compared() -> None:
    assert len(MEASURED) >= 23
    assert {(r["model"], r["method"], r["loss"]) for r in MEASURED} >= {
        (model, method, loss) for model in MODELS for method in ("lora", "qlora") for loss in LOSSES
    }
    assert {r["loss"] for r in MEASURED if r["method"] == "full"} == set(LOSSES)


@pytest.mark.parametrize("row", MEASURED, ids=lambda row: row["run_id"])
def test_allocated_is_what_torch_reported_on_an_a100(row: Row) -> None:
    """``max_memory_allocated`` of foundation-model-stack/fms-acceleration's benchmarks, torch 2.4."""
    found = estimate(row["model"], row["method"], **settings_of(row))
    assert found.block_bytes == pytest.approx(int(row["value_bytes"]), rel=6e-5)


NARROW = {"intermediate_size": 256, "vocab_size": 1000}
"""Leaves the peak to attention."""
TRACED: list[tuple[str, dict[str, Any], str, dict[str, Any], int]] = [
    ("llama-3.1-8b", {}, "full", {"gradient_checkpointing": "reentrant", "seq_len": 1500}, 13682356224),
    ("llama-3.1-8b", {}, "lora", {"lora_dropout": 0.1, "seq_len": 1500}, 5273138176),
    ("mistral-7b-v0.1", {}, "full", {"loss": "fused_cross_entropy", "seq_len": 1500}, 7958424064),
    (
        "mistral-7b-v0.1",
        {},
        "lora",
        {"loss": "fused_cross_entropy", "seq_len": 1500, "gradient_checkpointing": "reentrant"},
        2812359680,
    ),
    (
        "mistral-7b-v0.1",
        {},
        "lora",
        {"loss": "fused_cross_entropy", "seq_len": 500, "attn_implementation": "sdpa", "sdpa_kernel": "efficient"},
        2692098048,
    ),
    ("llama-3.1-8b", NARROW, "qlora", {"lora_dropout": 0.1, "gradient_checkpointing": "reentrant"}, 387642880),
    ("llama-3.1-8b", NARROW, "qlora", {}, 426721792),
    (
        "llama-3.1-8b",
        NARROW,
        "qlora",
        {"lora_dropout": 0.1, "target_modules": ATTENTION[:3], "gradient_checkpointing": "non_reentrant"},
        343730688,
    ),
    ("mistral-7b-v0.1", NARROW, "qlora", {"lora_dropout": 0.1, "target_modules": ATTENTION[3:]}, 387656192),
    ("mistral-7b-v0.1", NARROW, "qlora", {"lora_dropout": 0.1, "attn_implementation": "eager"}, 1394302976),
    (
        "llama-3.1-8b",
        {},
        "qlora",
        {"target_modules": ["q_proj", "v_proj", "gate_proj"], "seq_len": 128, "loss": "fused_cross_entropy"},
        2912539648,
    ),
]


@pytest.mark.parametrize(("name", "changes", "method", "given_settings", "traced_bytes"), TRACED)
def test_allocated_is_what_a_trace_of_the_plugin_says(
    name: str, changes: dict[str, Any], method: str, given_settings: dict[str, Any], traced_bytes: int
) -> None:
    """Its autograd functions on fake tensors, kernels not launched, in three layers.

    fms_acceleration_foak 0.5.0, torch 2.13, transformers 4.45.2, peft 0.13.2, bitsandbytes 0.50, 2026-11-22. Buffers
    of rotary embeddings and scalars, 512 bytes each, make the difference.
    """
    model = catalog.model(name).replace(num_hidden_layers=3, **changes)
    adapters = {} if method == "full" else {"rank": 64, "target_modules": ATTENTION}
    recipe = {"autocast": "bfloat16", "loss": "fused_linear", "transformers": "4.45", "optim": "adamw_torch_fused"}
    found = estimate(
        model, method, **{**FUSED, **recipe, **adapters, "micro_batch_size": 2, "seq_len": 700, **given_settings}
    )
    assert found.allocated_bytes == pytest.approx(traced_bytes, abs=12 * 1024)


@given(
    st.sampled_from(["full", "lora"]),
    st.sampled_from(["none", "reentrant", "non_reentrant"]),
    st.integers(1, 3),
    st.integers(2, 600),
    st.sampled_from(["flash_attention_2", "sdpa", "eager"]),
)
@settings(max_examples=40, deadline=None)
def test_kernels_that_write_in_place_never_take_more(
    method: str, checkpointing: str, batch: int, length: int, attention: str
) -> None:
    model = catalog.model("llama-3.2-1b").replace(num_hidden_layers=3)
    job: dict[str, Any] = {
        "gradient_checkpointing": checkpointing,
        "micro_batch_size": batch,
        "seq_len": length,
        "dtype": "bfloat16",
        "autocast": "bfloat16",
        "attn_implementation": attention,
    }
    plain = estimate(model, method, **job)
    fused = estimate(model, method, **job, fused_kernels="fms_acceleration")
    # Sines and cosines stay with their node until the graph dies.
    kept_bytes = 2 * (2 * length * model.head_dim + 512)
    assert fused.allocated_bytes <= plain.allocated_bytes + kept_bytes
    in_place = estimate(model, method, **job, fused_kernels="fms_acceleration", loss="fused_cross_entropy")
    per_token = {"labels": 8, "loss": 4, "logsumexp": 4 + 8 + 4 + 8}
    assert in_place.allocated_bytes <= fused.allocated_bytes + batch * length * sum(per_token.values()) + 4096


def test_norms_get_no_gradient_and_no_optimizer_state() -> None:
    def of(group: str, kernels: str) -> set[str]:
        found = estimate("llama-3.2-1b", "full", dtype="bfloat16", autocast=None, seq_len=64, fused_kernels=kernels)
        return {r.module for r in found.rows if r.group == group and "norm" in r.module}

    for group in ("gradients", "optimizer"):
        assert of(group, "none")
        assert not of(group, "fms_acceleration")


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_repeated_layers_stand_for_all_of_them(
    method: str, checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that are added to in place pass through every layer."""

    def totals() -> tuple[int, int, int]:
        walks.walks_of.cache_clear()
        adapters = {} if method == "full" else {"target_modules": ATTENTION, "lora_dropout": 0.1}
        recipe = {**FUSED, **adapters, "autocast": "bfloat16", "loss": "fused_linear"}
        found = estimate(model, method, **recipe, seq_len=349, gradient_checkpointing=checkpointing)
        return found.allocated_bytes, found.block_bytes, found.reserved_bytes

    model = catalog.model("llama-3.2-1b").replace(num_hidden_layers=7, intermediate_size=512)
    repeated = totals()
    monkeypatch.setattr(few_layers, "WALKED_LAYERS", ())
    assert totals() == repeated


def test_results_of_a_projection_wait_for_each_other_in_a_grid_too() -> None:
    """Symbols take the same path as numbers."""
    from vramcalc import estimate_grid

    recipe = {**FUSED, "autocast": "bfloat16", "loss": "fused_linear", "target_modules": ATTENTION}
    recipe |= {"transformers": "4.45", "gradient_checkpointing": "reentrant"}
    found = estimate_grid("mistral-7b-v0.1", "qlora", micro_batch_size=[1, 4], seq_len=[512, 1536], **recipe)
    for i, (batch, length) in enumerate([(1, 512), (4, 1536)]):
        one = estimate("mistral-7b-v0.1", "qlora", micro_batch_size=batch, seq_len=length, **recipe)
        assert int(found.allocated_bytes[i]) == one.allocated_bytes
