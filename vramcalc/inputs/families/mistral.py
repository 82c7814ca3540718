"""Mistral: a sliding window in every layer, whatever ``layer_types`` says."""

from __future__ import annotations

from typing import Any

from vramcalc.inputs.families.common import OLDEST, WINDOW, Config, Family, one_kind, with_window


def _window(config: Config, name: str) -> Any:
    return with_window(one_kind(config, name), config.get("sliding_window", WINDOW), config, name)


FAMILY = Family(
    "mistral",
    "Mistral",
    max_position_embeddings=131072,
    num_key_value_heads=8,
    window=_window,
    fused_kernels=("fms_acceleration",),
    traits={
        "raises_logits": (OLDEST, (4, 47)),
        "layer_rotary": (OLDEST, (4, 47)),
        "cached_rotary": (OLDEST, (4, 41)),
        "repeats_before_flash": (OLDEST, (4, 47)),
        "without_sdpa": (OLDEST, (4, 36)),
    },
)
