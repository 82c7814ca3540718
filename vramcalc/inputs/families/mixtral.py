"""Mixtral: eight feed-forward networks, of which a router gives every token two; no window."""

from __future__ import annotations

from typing import Any

from vramcalc.errors import Unsupported, shown
from vramcalc.inputs.families.common import OLDEST, Config, Family, given_or, one_kind, with_window

_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}


def _window(config: Config, name: str) -> Any:
    kind = one_kind(config, name)
    if config.get("sliding_window") is not None:
        raise Unsupported(f"{name}: sliding_window {shown(config['sliding_window'])} is not modelled for mixtral")
    return with_window(kind, None, config, name)


def _experts(config: Config, name: str) -> dict[str, Any]:
    """Experts and how many of them a token takes.

    Raises:
        Unsupported: router settings that make more tensors.
    """
    if config.get("router_jitter_noise"):
        raise Unsupported(f"{name}: router_jitter_noise {shown(config['router_jitter_noise'])} is not modelled")
    if config.get("output_router_logits"):
        raise Unsupported(f"{name}: output_router_logits (the load-balancing loss) is not modelled; set it to false")
    experts = config.get("_experts_implementation", config.get("experts_implementation"))
    if experts not in (None, "grouped_mm"):
        raise Unsupported(
            f"{name}: experts_implementation {shown(experts)} is not modelled; supported: 'grouped_mm', the default"
        )
    return {key: given_or(config.get(key), default) for key, default in _EXPERTS.items()}


FAMILY = Family(
    "mixtral",
    "Mixtral",
    max_position_embeddings=131072,
    num_key_value_heads=8,
    aliases={"num_experts": "num_local_experts"},
    window=_window,
    more=_experts,
    told=lambda fields: {key: fields[key] for key in ("sliding_window", *_EXPERTS)},
    fused_kernels=("fms_acceleration",),
    modules=("block_sparse_moe.gate",),
    experts=True,
    traits={
        "raises_logits": (OLDEST, (4, 45)),
        "layer_rotary": (OLDEST, (4, 47)),
        "cached_rotary": (OLDEST, (4, 47)),
        "repeats_before_flash": (OLDEST, (4, 47)),
        "without_sdpa": (OLDEST, (4, 36)),
    },
)
