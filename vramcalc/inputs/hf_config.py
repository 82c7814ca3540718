"""``config.json`` as transformers 5.23 reads it -> :class:`ModelSpec`.

Defaults are those of the configuration classes; a value that changes memory and is not modelled is refused.
"""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, get_args

from vramcalc.errors import BadConfig, InvalidValue, Unsupported, shown
from vramcalc.files.reading import read_text
from vramcalc.inputs.stack import AttnImplementation, ModelSpec, ModelType

_MAX_FILE_BYTES = 4 << 20
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_DEFAULT_POSITIONS = {
    **{"granite": 2048, "llama": 2048},
    **{"mistral": 131072, "mixtral": 131072},
    **{"qwen2": 32768, "qwen3": 32768},
}
_BIASED = {"attention_bias": ("granite", "llama", "qwen3"), "mlp_bias": ("granite", "llama")}
"""Settings of bias, and the model types that have them."""
_DEFAULT_KEY_VALUE_HEADS = {"mistral": 8, "mixtral": 8, "qwen2": 32, "qwen3": 32}
_DEFAULT_HEAD_DIM = {"qwen3": 128}
_DEFAULT_WINDOW = 4096
_DEFAULT_EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2}
_ATTRIBUTE_MAP = {"mixtral": {"num_experts": "num_local_experts"}}
"""Other names of settings by model type. transformers sets them after the fields, so that they win in any order."""
_SUPPORTED = {
    "is_causal": (True, "attention that looks ahead"),
    "output_hidden_states": (False, "hidden states that are kept"),
    "output_attentions": (False, "attention weights that are handed out"),
    "return_dict": (True, "outputs as a tuple"),
    "gradient_checkpointing": (False, "checkpointing of a model's own; it is a setting of the run"),
    "per_layer_config": (None, "layers that differ"),
}
"""Settings of every model type that move memory: what is modelled, and what any other value means."""
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_REMEDY = "correct the file or fetch it again"


def read_config(path: Path) -> ModelSpec:
    """The model described by a ``config.json``, or by the one in a folder.

    Raises:
        BadConfig: no such file, not JSON, or not the configuration of a model.
        Unsupported: an architecture or a setting that is not modelled.
    """
    return to_spec(load(path / "config.json" if os.path.isdir(path) else path), str(path))


def load(file: Path, where: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: of a few KiB, UTF-8.
        where: what to call it, by default its path.

    Raises:
        BadConfig: no such file, too large, not text, or no JSON object.
    """
    where = where or str(file)
    expected = "expected a config.json, or a folder that holds one; check the path"
    if not os.path.isfile(file):
        raise BadConfig(f"{where} {'is no regular file' if os.path.exists(file) else 'does not exist'}: {expected}")
    try:
        return parse(read_text(file, _MAX_FILE_BYTES), where)
    except OSError as err:
        if err.errno == errno.EFBIG:
            raise BadConfig(f"{where} {err.strerror}: expected a few KiB of JSON; {_REMEDY}") from err
        raise BadConfig(f"{where} cannot be read ({err.strerror}): {expected}") from err
    except UnicodeDecodeError as err:
        raise BadConfig(f"{where} is not UTF-8 text: expected a JSON object in UTF-8; {_REMEDY}") from err


def parse(text: str, where: str) -> dict[str, Any]:
    """JSON text as a mapping.

    Raises:
        BadConfig: the text is not a JSON object, or names a key twice.
    """
    try:
        config = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise BadConfig(f"{where} is not valid JSON ({err}): expected one JSON object; {_REMEDY}") from err
    if not isinstance(config, dict):
        raise BadConfig(f"{where} holds a {type(config).__name__}: expected one JSON object; {_REMEDY}")
    return config


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(key)} comes twice")
    return found


def to_spec(config: dict[str, Any], name: str) -> ModelSpec:
    """The model a configuration describes.

    Args:
        config: contents of a ``config.json``.
        name: what to call the model.

    Raises:
        BadConfig: keys are missing, or values are of the wrong type or out of range.
        Unsupported: an architecture or a setting that is not modelled.
    """
    model_type = _model_type(config, name)
    config = _by_attribute(config, model_type)
    _refuse_unmodelled(config, name)
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if missing:
        raise BadConfig(f"{name}: the configuration lacks {', '.join(missing)}: expected whole numbers; {_REMEDY}")
    for key in ModelSpec.model_fields.keys() & config.keys():
        if isinstance(config[key], (dict, list)):
            raise _bad(name, key, config[key], "a single value")
    try:
        return ModelSpec(
            name=name,
            model_type=model_type,
            **{key: config[key] for key in _REQUIRED},
            num_key_value_heads=_or(
                config.get("num_key_value_heads", _DEFAULT_KEY_VALUE_HEADS.get(model_type)),
                config["num_attention_heads"],
            ),
            head_dim=_head_dim(config, model_type, name),
            max_position_embeddings=_or(config.get("max_position_embeddings"), _DEFAULT_POSITIONS[model_type]),
            tie_word_embeddings=_or(config.get("tie_word_embeddings"), False),
            **{key: _or(config.get(key), False) for key, types in _BIASED.items() if model_type in types},
            sliding_window=_sliding_window(config, model_type, name),
            attn_implementation=_attn_implementation(config, name),
            **_experts(config, model_type, name),
        )
    except InvalidValue as err:
        raise BadConfig(f"{name}: {err}; {_REMEDY}") from err


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _by_attribute(config: dict[str, Any], model_type: str) -> dict[str, Any]:
    """The configuration with every setting under the one name its class has for it."""
    names = _ATTRIBUTE_MAP.get(model_type, {})
    given = {names[key]: value for key, value in config.items() if key in names}
    return {key: value for key, value in config.items() if key not in names} | given


def _bad(name: str, key: str, value: object, expected: str) -> BadConfig:
    return BadConfig(f"{name}: {key} = {shown(value)}: expected {expected}; {_REMEDY}")


def _model_type(config: dict[str, Any], name: str) -> ModelType:
    model_type = config.get("model_type")
    supported = ", ".join(get_args(ModelType))
    if model_type is None:
        raise BadConfig(f"{name}: the configuration lacks model_type: expected one of {supported}; {_REMEDY}")
    if model_type not in get_args(ModelType):
        code = "; its own code is never executed" if config.get("auto_map") else ""
        raise Unsupported(f"{name}: model_type {shown(model_type)} is not modelled{code}; supported: {supported}")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise _bad(name, "architectures", architectures, "a list of names")
    if architectures and not any(a.endswith("ForCausalLM") for a in architectures):
        raise Unsupported(
            f"{name}: {shown(architectures[0])} is not modelled; supported: causal language models of {supported}"
        )
    return model_type  # type: ignore[no-any-return]


def _refuse_unmodelled(config: dict[str, Any], name: str) -> None:
    """Settings that change memory and that no family models."""
    activation = _or(config.get("hidden_act"), "silu")
    if activation != "silu":
        raise Unsupported(f"{name}: hidden_act {shown(activation)} is not modelled; supported: 'silu'")
    dropout = _or(config.get("attention_dropout"), 0)
    if dropout != 0:
        raise Unsupported(f"{name}: attention_dropout {shown(dropout)} is not modelled; supported: 0")
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise Unsupported(f"{name}: weights stored by {shown(method)} are not modelled; name the unquantised model")
    for key, (modelled, meaning) in _SUPPORTED.items():
        if bool(config.get(key, modelled)) != bool(modelled):
            given = f"{key} {shown(config[key])} ({meaning})"
            raise Unsupported(f"{name}: {given} is not modelled; take {key} out of the file")
    # The older name wins where both are given.
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise _bad(name, "rope_scaling", rope, "an object or null")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        raise Unsupported(f"{name}: rope type {shown(rope_type)} is not modelled; supported: {', '.join(_ROPE_TYPES)}")


def _head_dim(config: dict[str, Any], model_type: str, name: str) -> Any:
    """The width of a head: given, the family's own, or the hidden size over the heads.

    Raises:
        BadConfig: heads that do not divide the hidden size where they must.
    """
    given = _or(config.get("head_dim"), _DEFAULT_HEAD_DIM.get(model_type))
    if given is not None and model_type != "llama":
        return given
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    for key, value in (("hidden_size", hidden), ("num_attention_heads", heads)):
        if type(value) is not int or value < 1:
            raise _bad(name, key, value, "a whole number of at least 1")
    if hidden % heads:
        raise _bad(name, "num_attention_heads", heads, f"a divisor of hidden_size ({shown(hidden)})")
    return hidden // heads if given is None else given


def _experts(config: dict[str, Any], model_type: str, name: str) -> dict[str, Any]:
    """Experts and how many of them a token takes; nothing for a dense model.

    Raises:
        Unsupported: router settings that make more tensors.
    """
    if model_type != "mixtral":
        return {}
    if config.get("router_jitter_noise"):
        raise Unsupported(f"{name}: router_jitter_noise {shown(config['router_jitter_noise'])} is not modelled")
    if config.get("output_router_logits"):
        raise Unsupported(f"{name}: output_router_logits (the load-balancing loss) is not modelled; set it to false")
    experts = config.get("_experts_implementation", config.get("experts_implementation"))
    if experts not in (None, "grouped_mm"):
        raise Unsupported(
            f"{name}: experts_implementation {shown(experts)} is not modelled; supported: 'grouped_mm', the default"
        )
    return {key: _or(config.get(key), default) for key, default in _DEFAULT_EXPERTS.items()}


def _attn_implementation(config: dict[str, Any], name: str) -> Any:
    """Attention that the file asks for; the name with an underscore is set last."""
    asked = config.get("_attn_implementation", config.get("attn_implementation"))
    if asked not in (None, *get_args(AttnImplementation)):
        known = ", ".join(map(repr, get_args(AttnImplementation)))
        raise Unsupported(
            f"{name}: attn_implementation {shown(asked)} is not modelled; supported: {known}; take it out of the file "
            "and say which of them is used"
        )
    return asked


def _sliding_window(config: dict[str, Any], model_type: str, name: str) -> Any:
    """The window of every layer, None for full attention.

    Raises:
        BadConfig: ``layer_types`` that are no list of one name for every layer.
        Unsupported: some layers have a window and some do not, or the kinds of layers do not go with the rest.
    """
    kinds = _layer_types(config, name)
    if model_type == "mixtral":
        if config.get("sliding_window") is not None:
            raise Unsupported(f"{name}: sliding_window {shown(config['sliding_window'])} is not modelled for mixtral")
        window = None
    elif model_type == "mistral":
        window = config.get("sliding_window", _DEFAULT_WINDOW)
    elif model_type in ("qwen2", "qwen3"):
        window = config.get("sliding_window", _DEFAULT_WINDOW) if config.get("use_sliding_window") else None
    else:
        window = None
    if kinds == {"sliding_attention"} and window is None:
        raise Unsupported(
            f"{name}: layer_types of sliding_attention without a window of {model_type} is not modelled: transformers "
            "finds no sliding_window there; set both (and use_sliding_window for Qwen), or neither"
        )
    if model_type in ("mistral", "mixtral") or window is None or kinds == {"sliding_attention"}:
        return window
    return None if kinds else _window_from(config, window, name)


def _layer_types(config: dict[str, Any], name: str) -> set[str]:
    """Kinds of attention among the layers, at most one; none where the file does not say."""
    kinds, layers = config.get("layer_types"), config["num_hidden_layers"]
    if kinds is None:
        return set()
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise _bad(name, "layer_types", kinds, "a list of names, one for every layer")
    if len(kinds) != layers:
        raise _bad(name, "layer_types", kinds, f"one name for each of num_hidden_layers ({shown(layers)})")
    found = set(kinds)
    if found not in ({"full_attention"}, {"sliding_attention"}):
        raise Unsupported(
            f"{name}: layer_types {shown(kinds)} is not modelled; supported: 'full_attention' or 'sliding_attention' "
            "throughout"
        )
    return found


def _window_from(config: dict[str, Any], window: Any, name: str) -> Any:
    """Qwen's window, which layers have from ``max_window_layers`` on."""
    first = config.get("max_window_layers", 28)
    if type(first) is not int:
        raise _bad(name, "max_window_layers", first, "a whole number")
    if first <= 0:
        return window
    layers = config["num_hidden_layers"]
    if type(layers) is int and first >= layers:
        return None
    raise Unsupported(f"{name}: a sliding window from layer {first} on is not modelled; supported: all layers or none")
