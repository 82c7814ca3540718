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
from vramcalc.inputs.families import FAMILIES, Family
from vramcalc.inputs.families.common import REMEDY, given_or, wrong
from vramcalc.inputs.stack import AttnImplementation, ModelSpec

_MAX_FILE_BYTES = 4 << 20
_REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
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
            raise BadConfig(f"{where} {err.strerror}: expected a few KiB of JSON; {REMEDY}") from err
        raise BadConfig(f"{where} cannot be read ({err.strerror}): {expected}") from err
    except UnicodeDecodeError as err:
        raise BadConfig(f"{where} is not UTF-8 text: expected a JSON object in UTF-8; {REMEDY}") from err


def parse(text: str, where: str) -> dict[str, Any]:
    """JSON text as a mapping.

    Raises:
        BadConfig: the text is not a JSON object, or names a key twice.
    """
    try:
        config = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as err:
        raise BadConfig(f"{where} is not valid JSON ({err}): expected one JSON object; {REMEDY}") from err
    if not isinstance(config, dict):
        raise BadConfig(f"{where} holds a {type(config).__name__}: expected one JSON object; {REMEDY}")
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
    family = _family(config, name)
    config = _by_attribute(config, family)
    _refuse_unmodelled(config, family, name)
    missing = [key for key in _REQUIRED if config.get(key) is None]
    if missing:
        raise BadConfig(f"{name}: the configuration lacks {', '.join(missing)}: expected whole numbers; {REMEDY}")
    for key in ModelSpec.model_fields.keys() & config.keys():
        if isinstance(config[key], (dict, list)):
            raise wrong(name, key, config[key], "a single value")
    try:
        return ModelSpec(
            name=name,
            model_type=family.model_type,
            **{key: config[key] for key in _REQUIRED},
            num_key_value_heads=given_or(
                config.get("num_key_value_heads", family.num_key_value_heads), config["num_attention_heads"]
            ),
            head_dim=_head_dim(config, family, name),
            max_position_embeddings=given_or(config.get("max_position_embeddings"), family.max_position_embeddings),
            tie_word_embeddings=given_or(config.get("tie_word_embeddings"), family.tie_word_embeddings),
            **{key: given_or(config.get(key), False) for key in family.biases},
            sliding_window=family.window(config, name),
            attn_implementation=_attn_implementation(config, name),
            **family.more(config, name),
        )
    except InvalidValue as err:
        raise BadConfig(f"{name}: {err}; {REMEDY}") from err


def _by_attribute(config: dict[str, Any], family: Family) -> dict[str, Any]:
    """The configuration with every setting under the one name its class has for it."""
    names = family.aliases
    given = {names[key]: value for key, value in config.items() if key in names}
    return {key: value for key, value in config.items() if key not in names} | given


def _family(config: dict[str, Any], name: str) -> Family:
    model_type = config.get("model_type")
    supported = ", ".join(FAMILIES)
    if model_type is None:
        raise BadConfig(f"{name}: the configuration lacks model_type: expected one of {supported}; {REMEDY}")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        code = "; its own code is never executed" if config.get("auto_map") else ""
        raise Unsupported(f"{name}: model_type {shown(model_type)} is not modelled{code}; supported: {supported}")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise wrong(name, "architectures", architectures, "a list of names")
    if architectures and not any(a.endswith("ForCausalLM") for a in architectures):
        raise Unsupported(
            f"{name}: {shown(architectures[0])} is not modelled; supported: causal language models of {supported}"
        )
    return FAMILIES[model_type]


def _refuse_unmodelled(config: dict[str, Any], family: Family, name: str) -> None:
    """Settings that change memory and that no family models."""
    setting, known = family.activation
    activation = given_or(config.get(setting), known)
    if activation != known:
        raise Unsupported(f"{name}: {setting} {shown(activation)} is not modelled; supported: {known!r}")
    dropout = given_or(config.get("attention_dropout"), 0)
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
        raise wrong(name, "rope_scaling", rope, "an object or null")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in _ROPE_TYPES:
        raise Unsupported(f"{name}: rope type {shown(rope_type)} is not modelled; supported: {', '.join(_ROPE_TYPES)}")


def _head_dim(config: dict[str, Any], family: Family, name: str) -> Any:
    """The width of a head: given, the family's own, or the hidden size over the heads.

    Raises:
        BadConfig: heads that do not divide the hidden size where they must.
    """
    given = given_or(config.get("head_dim"), family.head_dim)
    if given is not None and not family.divides_hidden:
        return given
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    for key, value in (("hidden_size", hidden), ("num_attention_heads", heads)):
        if type(value) is not int or value < 1:
            raise wrong(name, key, value, "a whole number of at least 1")
    if hidden % heads:
        raise wrong(name, "num_attention_heads", heads, f"a divisor of hidden_size ({shown(hidden)})")
    return hidden // heads if given is None else given


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
