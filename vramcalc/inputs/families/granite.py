"""Granite: Llama with the embedding, every branch and the logits multiplied by a number each; since 4.45."""

from __future__ import annotations

from vramcalc.inputs.families.common import Family

FAMILY = Family(
    "granite",
    "Granite",
    max_position_embeddings=2048,
    since=(4, 45),
    biases=("attention_bias", "mlp_bias"),
    logits="scaled",
    fused_kernels=("fms_acceleration",),
    traits={
        "raises_logits": ((4, 45), (4, 47)),
    },
)
