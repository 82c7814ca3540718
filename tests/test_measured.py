"""Peaks that other people measured on GPUs."""

from __future__ import annotations

from typing import Any

import pytest

from vramcalc import estimate

T4_LOOP: dict[str, Any] = {
    "gpu": "t4",
    "dtype": "float16",
    "autocast": None,
    "optim": "adamw_torch",
    "decay_groups": False,
    "max_grad_norm": 0.0,
    "zero_grad": "start",
    "keeps_outputs": "step",
    "gradient_checkpointing": "non_reentrant",
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "rank": 32,
}
QLORA: dict[str, Any] = {"bnb_4bit_compute_dtype": "float16", "bnb_4bit_use_double_quant": False}
EFFICIENT: dict[str, Any] = {"sdpa_kernel": "efficient"}
EAGER: dict[str, Any] = {"attn_implementation": "eager"}


@pytest.mark.parametrize(
    ("model", "method", "settings", "measured_bytes"),
    [
        ("HuggingFaceTB/SmolLM2-1.7B", "lora", {"micro_batch_size": 4, "seq_len": 1024, **EFFICIENT}, 6845888512),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "lora", {"micro_batch_size": 2, **EAGER}, 6937499648),
        ("HuggingFaceTB/SmolLM2-1.7B", "qlora", {**EAGER, **QLORA}, 4533000192),
    ],
)
def test_allocated_is_what_torch_reported_on_a_t4(
    model: str, method: str, settings: dict[str, Any], measured_bytes: int
) -> None:
    """``max_memory_allocated``, Anassbzdd/fitcheck@1e72b19a3b48 data/measurements, torch 2.10 and 2.14."""
    found = estimate(model, method, **T4_LOOP, **settings)
    assert found.block_bytes == pytest.approx(measured_bytes, rel=2e-5)
