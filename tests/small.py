"""A model small enough to walk a thousand times."""

from __future__ import annotations

from typing import Any

from vramcalc import Estimate, ModelSpec, estimate

TINY = ModelSpec(
    name="tiny",
    model_type="llama",
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=1000,
    max_position_embeddings=4096,
)


def tiny(method: str, **settings: Any) -> Estimate:
    return estimate(TINY, method, **{"seq_len": 256, **settings})
