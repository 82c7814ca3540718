"""Llama 2, 3, 3.1, 3.2 and whatever else is built on ``LlamaForCausalLM``."""

from __future__ import annotations

from vramcalc.inputs.families.common import OLDEST, Family

FAMILY = Family(
    "llama",
    "Llama",
    max_position_embeddings=2048,
    divides_hidden=True,
    biases=("attention_bias", "mlp_bias"),
    fused_kernels=("fms_acceleration",),
    traits={
        "raises_logits": (OLDEST, (4, 45)),
        "layer_rotary": (OLDEST, (4, 42)),
        "cached_rotary": (OLDEST, (4, 37)),
        "idle_tables": ((4, 38), (4, 40)),
        "always_masks": ((4, 38), (4, 39)),
        "causal_buffer": ((4, 38), (4, 38)),
    },
)
