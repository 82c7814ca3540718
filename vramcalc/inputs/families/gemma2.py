"""Gemma 2: a window in every other layer, soft caps of scores and logits; eager attention by default.

SDPA has no soft cap. Since 5.21 transformers refuses it by name, and takes eager attention where none is asked for;
before, it ran SDPA without the cap, and up to 5.0 the model multiplied the embedding, not the embedding's own class. No
trace of such a release has been compared.
"""

from __future__ import annotations

from typing import Any

from vramcalc.errors import Unsupported, shown
from vramcalc.inputs.families.common import (
    FULL,
    NORMS,
    SLIDING,
    WINDOW,
    Config,
    Family,
    kinds_of_layers,
    wrong,
)

_CAPS = {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}


def _window(config: Config, name: str) -> Any:
    """The window of the layers that have one: the first, and every other one after it.

    Raises:
        Unsupported: other layers have it.
    """
    kinds = kinds_of_layers(config, name)
    if any(kind != (FULL if i % 2 else SLIDING) for i, kind in enumerate(kinds)):
        raise Unsupported(
            f"{name}: layer_types {shown(kinds)} is not modelled; supported: 'sliding_attention' and 'full_attention' "
            "in turns"
        )
    window = config.get("sliding_window", WINDOW)
    if window is None:
        raise wrong(name, "sliding_window", window, "a whole number, as every other layer has one")
    return window


def _caps(config: Config, name: str) -> dict[str, Any]:
    """The soft caps, null for none.

    Raises:
        Unsupported: tokens see those after them.
    """
    if config.get("use_bidirectional_attention"):
        raise Unsupported(f"{name}: use_bidirectional_attention is not modelled; supported: null or false")
    return {key: config.get(key, default) for key, default in _CAPS.items()}


FAMILY = Family(
    "gemma2",
    "Gemma 2",
    max_position_embeddings=8192,
    since=(5, 23),
    earlier="builds gemma2 in a way that no trace has been compared with",
    num_key_value_heads=4,
    head_dim=256,
    divides_hidden=True,
    tie_word_embeddings=True,
    activation=("hidden_activation", "gelu_pytorch_tanh"),
    biases=("attention_bias",),
    window=_window,
    full_between=True,
    more=_caps,
    told=lambda fields: {key: fields[key] for key in ("sliding_window", *_CAPS)},
    attention=("eager", "flash_attention_2"),
    logits="soft-capped",
    norms=(*NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm"),
    norms_keep_dtype=True,
    moves_beyond="llama",
)
