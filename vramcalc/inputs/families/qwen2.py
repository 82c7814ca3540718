"""Qwen2 and Qwen2.5: a bias on queries, keys and values; a window where ``use_sliding_window`` asks for one."""

from __future__ import annotations

from typing import Any

from vramcalc.errors import Unsupported
from vramcalc.inputs.families.common import SLIDING, WINDOW, Config, Family, one_kind, with_window, wrong


def window_if_used(config: Config, name: str) -> Any:
    """Qwen's window, which layers have from ``max_window_layers`` on, or where ``layer_types`` says so.

    Raises:
        Unsupported: some layers have it.
    """
    window = config.get("sliding_window", WINDOW) if config.get("use_sliding_window") else None
    kind = one_kind(config, name)
    window = with_window(kind, window, config, name)
    if window is None or kind == SLIDING:
        return window
    return None if kind else _from_a_layer_on(config, window, name)


def _from_a_layer_on(config: Config, window: Any, name: str) -> Any:
    first = config.get("max_window_layers", 28)
    if type(first) is not int:
        raise wrong(name, "max_window_layers", first, "a whole number")
    if first <= 0:
        return window
    layers = config["num_hidden_layers"]
    if type(layers) is int and first >= layers:
        return None
    raise Unsupported(f"{name}: a sliding window from layer {first} on is not modelled; supported: all layers or none")


def window_of_all(fields: dict[str, Any]) -> dict[str, Any]:
    """The window as Qwen's classes are told of it."""
    window = fields["sliding_window"]
    return {"sliding_window": window, "use_sliding_window": window is not None, "max_window_layers": 0}


def _told(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["head_dim"] != fields["hidden_size"] // fields["num_attention_heads"]:
        raise Unsupported("Qwen2Config has no head_dim of its own")
    return window_of_all(fields)


FAMILY = Family(
    "qwen2",
    "Qwen2 and 2.5",
    max_position_embeddings=32768,
    since=(4, 37),
    num_key_value_heads=32,
    window=window_if_used,
    told=_told,
    qkv_bias=True,
    traits={
        "raises_logits": ((4, 37), (4, 45)),
        "layer_rotary": ((4, 37), (4, 44)),
        "cached_rotary": ((4, 37), (4, 44)),
        "repeats_before_flash": ((4, 37), (4, 47)),
    },
)
