"""Qwen3 (dense): a norm on the queries and keys of every head; since 4.51."""

from __future__ import annotations

from vramcalc.inputs.families.common import Family
from vramcalc.inputs.families.qwen2 import window_if_used, window_of_all

FAMILY = Family(
    "qwen3",
    "Qwen3 (dense)",
    max_position_embeddings=32768,
    since=(4, 51),
    num_key_value_heads=32,
    head_dim=128,
    biases=("attention_bias",),
    window=window_if_used,
    told=window_of_all,
    head_norms=True,
)
