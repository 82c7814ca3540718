"""The facts of a model family: how its ``config.json`` is read, what layers hold, what is modelled of it.

Declarations only: modules are in :mod:`vramcalc.shadow.families`, of which the inputs know nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from vramcalc.errors import BadConfig, Unsupported, shown
from vramcalc.inputs.releases import RELEASES, Minor, Release

Config = dict[str, Any]
"""Contents of a ``config.json``, each setting under the name its class has for it."""

Trait = Literal[
    "raises_logits",
    "layer_rotary",
    "cached_rotary",
    "idle_tables",
    "repeats_before_flash",
    "always_masks",
    "causal_buffer",
    "without_sdpa",
]
"""What some families did in some releases.

- ``raises_logits``: they return float32 logits, made before the loss;
- ``layer_rotary``: every attention has rotary positions of its own;
- ``cached_rotary``: of those, it keeps a table of every position there could be, instead of working positions out;
- ``idle_tables``: of those, it keeps such tables, and works positions out all the same;
- ``repeats_before_flash``: heads are copied before flash-attn, which does not need it;
- ``always_masks``: SDPA is given a mask where its own rule would do;
- ``causal_buffer``: the model keeps a boolean mask of every pair of positions there could be;
- ``without_sdpa``: there is eager attention and flash-attn alone.
"""
Span = tuple[Minor, Minor]
"""First and last minor release."""
OLDEST: Minor = RELEASES[0].since
REMEDY = "correct the file or fetch it again"
FULL, SLIDING = "full_attention", "sliding_attention"
WINDOW = 4096
"""Default of ``sliding_window`` in every class that has one."""
PROJECTIONS = (
    *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")),
    *(f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")),
)
NORMS = ("input_layernorm", "post_attention_layernorm")


def wrong(name: str, key: str, value: object, expected: str) -> BadConfig:
    """The error for a value that is not what its key asks for."""
    return BadConfig(f"{name}: {key} = {shown(value)}: expected {expected}; {REMEDY}")


def given_or(value: Any, default: Any) -> Any:
    """A value, or its default where it is null."""
    return default if value is None else value


def kinds_of_layers(config: Config, name: str) -> list[str]:
    """``layer_types``, checked: one name for every layer, or nothing where the file does not say.

    Raises:
        BadConfig: no list of names, or one of another length.
    """
    kinds, layers = config.get("layer_types"), config["num_hidden_layers"]
    if kinds is None:
        return []
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise wrong(name, "layer_types", kinds, "a list of names, one for every layer")
    if len(kinds) != layers:
        raise wrong(name, "layer_types", kinds, f"one name for each of num_hidden_layers ({shown(layers)})")
    return kinds


def one_kind(config: Config, name: str) -> str | None:
    """The attention of every layer, None where the file does not say.

    Raises:
        Unsupported: some layers have a window and some do not.
    """
    kinds = kinds_of_layers(config, name)
    if kinds and set(kinds) not in ({FULL}, {SLIDING}):
        raise Unsupported(
            f"{name}: layer_types {shown(kinds)} is not modelled; supported: 'full_attention' or 'sliding_attention' "
            "throughout"
        )
    return kinds[0] if kinds else None


def with_window(kind: str | None, window: Any, config: Config, name: str) -> Any:
    """A window, or None, that goes with the kind of all layers.

    Raises:
        Unsupported: layers are said to have a window, and there is none.
    """
    if kind == SLIDING and window is None:
        raise Unsupported(
            f"{name}: layer_types of sliding_attention without a window of {config['model_type']} is not modelled: "
            "transformers finds no sliding_window there; set both (and use_sliding_window for Qwen), or neither"
        )
    return window


def full_attention(config: Config, name: str) -> Any:
    """No window in any layer, whatever ``sliding_window`` is."""
    return with_window(one_kind(config, name), None, config, name)


def _nothing(_config: Config, _name: str) -> dict[str, Any]:
    return {}


def _as_they_are(fields: dict[str, Any]) -> dict[str, Any]:
    return {"sliding_window": fields["sliding_window"]}


@dataclass(frozen=True)
class Family:
    """One architecture.

    Attributes:
        model_type: as ``config.json`` has it.
        title: as people write it.
        max_position_embeddings: default of the configuration class.
        since: first release of transformers whose modules are these.
        earlier: what releases before that do.
        num_key_value_heads: default where the key is absent, None for the number of heads.
        head_dim: default where the key is null or absent, None for the hidden size over the heads.
        divides_hidden: heads have to divide the hidden size, even where ``head_dim`` is given.
        tie_word_embeddings: default.
        activation: the key of the activation, and the one that is modelled, its default.
        gated: the feed-forward part has a gate: two projections of its input, multiplied.
        biases: settings of bias that the class has.
        aliases: other names of settings (``attribute_map``); transformers sets them after the fields, so that they win
            in any order.
        window: ``sliding_window`` of a model, read from its configuration.
        full_between: every other layer, from the second on, sees everything in spite of that window.
        more: reads further fields of :class:`~vramcalc.inputs.model.ModelSpec`.
        told: what the configuration class is told of those fields and of the window.
        attention: implementations that it has, its default first.
        logits: what is done to the head's product; a loss that makes logits by itself would have to do the same.
        liger: liger-kernel has a fused loss for it; it leaves what it does not know as it is, without a word.
        fused_kernels: plugins that replace its kernels.
        qkv_bias: a bias on queries, keys and values alone, whatever the configuration says.
        head_norms: a norm on the queries and keys of every head.
        norms: of a layer, over the hidden size.
        norms_keep_dtype: what they give back has the dtype they are given, whatever that of their weights.
        modules: further leaves of a layer that a name may mean, in any release.
        moves_beyond: the family of the same projections that it moves more than; empty where it moves what Llama does.
        experts: the feed-forward part is a mixture of experts.
        traits: what it did in some releases, from the first to the last of them; whole ones of ``RELEASES``.
    """

    model_type: str
    title: str
    max_position_embeddings: int
    since: Minor = (0, 0)
    earlier: str = ""
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    divides_hidden: bool = False
    tie_word_embeddings: bool = False
    activation: tuple[str, str] = ("hidden_act", "silu")
    gated: bool = True
    biases: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    window: Callable[[Config, str], Any] = full_attention
    full_between: bool = False
    more: Callable[[Config, str], dict[str, Any]] = _nothing
    told: Callable[[dict[str, Any]], dict[str, Any]] = _as_they_are
    attention: tuple[str, ...] = ("sdpa", "eager", "flash_attention_2")
    logits: str = ""
    liger: bool = True
    fused_kernels: tuple[str, ...] = ()
    qkv_bias: bool = False
    head_norms: bool = False
    norms: tuple[str, ...] = NORMS
    norms_keep_dtype: bool = False
    modules: tuple[str, ...] = ()
    moves_beyond: str = ""
    experts: bool = False
    traits: Mapping[Trait, Span] = field(default_factory=dict)

    def has(self, trait: Trait, release: Release) -> bool:
        """Whether it had a trait in a release of transformers."""
        span = self.traits.get(trait)
        return span is not None and span[0] <= release.since <= span[1]
