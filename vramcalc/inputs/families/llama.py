"""Llama 2, 3, 3.1, 3.2 and whatever else is built on ``LlamaForCausalLM``."""

from __future__ import annotations

from vramcalc.inputs.families.common import Family

FAMILY = Family(
    "llama",
    "Llama",
    max_position_embeddings=2048,
    divides_hidden=True,
    biases=("attention_bias", "mlp_bias"),
    fused_kernels=("fms_acceleration",),
)
