"""A ``config.json`` means what transformers makes of it; one that is broken or hostile is a typed error, at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from configs import CONFIGS, write_config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import vramcalc
from vramcalc.errors import BadConfig, Unsupported, VramcalcError
from vramcalc.inputs.families import FAMILIES as KNOWN
from vramcalc.inputs.families.common import full_attention
from vramcalc.inputs.hf_config import load, parse, read_config, to_spec

REMEDY = "correct the file or fetch it again"
FAMILIES = list(CONFIGS)
LLAMA = CONFIGS["llama"]


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in keys}


# -- agreement with transformers ---------------------------------------------------------------------------------------

VARIANTS: dict[str, dict[str, Any]] = {
    **CONFIGS,
    "arcee, no optional key": without(
        CONFIGS["arcee"],
        "num_key_value_heads",
        "head_dim",
        "hidden_act",
        "max_position_embeddings",
        "mlp_bias",
        "tie_word_embeddings",
    ),
    "arcee, biases, tied": {
        **CONFIGS["arcee"],
        "attention_bias": True,
        "mlp_bias": True,
        "tie_word_embeddings": True,
    },
    "llama, no optional key": without(
        LLAMA, "num_key_value_heads", "head_dim", "attention_bias", "mlp_bias", "architectures"
    ),
    "llama, nulls": {**LLAMA, "num_key_value_heads": None, "head_dim": None, "rope_parameters": None},
    "llama, biases": {**LLAMA, "attention_bias": True, "mlp_bias": True},
    "llama, tied": {**LLAMA, "tie_word_embeddings": True},
    "mistral, no optional key": {
        **without(CONFIGS["mistral"], "num_key_value_heads", "head_dim", "sliding_window", "max_position_embeddings"),
        "num_attention_heads": 8,
    },
    "mistral, full attention": {**CONFIGS["mistral"], "sliding_window": None},
    "mixtral, no optional key": {
        **without(
            CONFIGS["mixtral"],
            "num_key_value_heads",
            "head_dim",
            "sliding_window",
            "max_position_embeddings",
            "num_local_experts",
            "num_experts_per_tok",
            "output_router_logits",
            "router_jitter_noise",
        ),
        "num_attention_heads": 8,
    },
    "qwen2, no optional key": {
        **without(
            CONFIGS["qwen2"], "num_key_value_heads", "tie_word_embeddings", "max_window_layers", "sliding_window"
        ),
        "num_attention_heads": 32,
    },
    "qwen2, head_dim": {**CONFIGS["qwen2"], "head_dim": 10},
    "qwen2, window on all": {
        **CONFIGS["qwen2"],
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 0,
    },
    "qwen2, window on none": {**CONFIGS["qwen2"], "use_sliding_window": True, "sliding_window": 64},
    "qwen2, window of no layer": {
        **CONFIGS["qwen2"],
        "use_sliding_window": True,
        "sliding_window": 64,
        "max_window_layers": 0,
        "layer_types": ["full_attention"] * 3,
    },
    "qwen2, window by the kinds of layers": {
        **CONFIGS["qwen2"],
        "use_sliding_window": True,
        "sliding_window": 64,
        "layer_types": ["sliding_attention"] * 3,
    },
    "mistral, a window whatever the kinds of layers": {
        **CONFIGS["mistral"],
        "sliding_window": 64,
        "layer_types": ["full_attention"] * 3,
    },
    "qwen3, no optional key": {
        **without(CONFIGS["qwen3"], "num_key_value_heads", "head_dim", "max_position_embeddings"),
        "num_attention_heads": 32,
    },
    "qwen3, default window": {
        **without(CONFIGS["qwen3"], "sliding_window"),
        "use_sliding_window": True,
        "max_window_layers": 0,
    },
    "qwen3, biases": {**CONFIGS["qwen3"], "attention_bias": True},
    "gemma2, no optional key": {
        **without(
            CONFIGS["gemma2"],
            "num_key_value_heads",
            "head_dim",
            "hidden_act",
            "hidden_activation",
            "sliding_window",
            "max_position_embeddings",
            "tie_word_embeddings",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ),
        "hidden_size": 256,
    },
    "gemma2, biases, untied": {**CONFIGS["gemma2"], "attention_bias": True, "tie_word_embeddings": False},
    "gemma2, kinds of layers": {
        **CONFIGS["gemma2"],
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_configuration_means_what_transformers_builds_from_it(config: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    spec = to_spec(config, "here")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert spec.params_total == sum(p.numel() for p in model.parameters())
    attention = model.model.layers[0].self_attn
    assert spec.head_dim == attention.head_dim
    assert spec.num_key_value_heads * spec.head_dim == attention.k_proj.out_features
    assert spec.max_position_embeddings == model.config.max_position_embeddings
    windows = {getattr(layer.self_attn, "sliding_window", None) for layer in model.model.layers}
    if spec.model_type == "mistral":
        windows = {model.config.sliding_window}
    assert windows == ({spec.sliding_window, None} if spec.model_type == "gemma2" else {spec.sliding_window})
    for cap in ("attn_logit_softcapping", "final_logit_softcapping"):
        assert getattr(spec, cap) == getattr(model.config, cap, None)


@pytest.mark.parametrize("alias_first", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_other_names_of_a_setting_count_as_in_transformers(family: str, alias_first: bool) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    names = CONFIG_MAPPING[family].attribute_map
    assert names == dict(KNOWN[family].aliases)
    for alias, field in names.items():
        config = CONFIGS[family]
        given = {alias: config[field] + 1}
        built = CONFIG_MAPPING[family](**({**given, **config} if alias_first else {**config, **given}))
        spec = to_spec({**given, **config} if alias_first else {**config, **given}, "here")
        assert getattr(spec, field) == getattr(built, field) == config[field] + 1
        assert to_spec({**without(config, field), **given}, "here") == spec


@pytest.mark.parametrize("underscored_first", [True, False])
@pytest.mark.parametrize("underscored", [None, "eager", "flash_attention_2"])
def test_of_two_names_of_the_attention_that_with_an_underscore_counts(
    underscored: str | None, underscored_first: bool
) -> None:
    from transformers import AutoConfig

    names = [("_attn_implementation", underscored), ("attn_implementation", "sdpa")]
    config = {**LLAMA, **dict(names if underscored_first else names[::-1])}
    assert to_spec(config, "here").attn_implementation == underscored
    assert AutoConfig.for_model(**config)._attn_implementation == underscored


@pytest.mark.parametrize("family", FAMILIES)
def test_the_attention_of_a_configuration_is_estimated_unless_a_recipe_says_another(
    tmp_path: Path, family: str
) -> None:
    path = str(write_config(tmp_path / "config.json", {**CONFIGS[family], "attn_implementation": "eager"}))
    job: dict[str, Any] = {"seq_len": 64, "method": "full"}
    found = vramcalc.estimate(path, **job)
    assert found.job.stack.attn_implementation == "eager"
    assert any("config.json asks for" in warning for warning in found.warnings)
    same = vramcalc.estimate(path, **job, attn_implementation="eager")
    assert found.allocated_bytes == same.allocated_bytes
    plain = to_spec(CONFIGS[family], "plain")
    asked = next(kernel for kernel in KNOWN[family].attention if kernel != "eager")
    same = vramcalc.estimate(plain, **job, attn_implementation=asked)
    for other in (
        vramcalc.estimate(path, **job, attn_implementation=asked),
        vramcalc.estimate(path, **job, stack=vramcalc.Stack(autocast="bfloat16", attn_implementation=asked)),
    ):
        assert other.job.stack.attn_implementation == asked
        assert other.allocated_bytes == same.allocated_bytes
        assert any("not the eager" in warning for warning in other.warnings)


SEEN_BY_ATTENTION: dict[str, dict[str, Any]] = {
    "a window": {"sliding_window": 64},
    "a window and full layers": {"sliding_window": 64, "layer_types": ["full_attention"] * 3},
    "a window that is used": {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 0},
    "a window in every layer": {
        **{"sliding_window": 64, "use_sliding_window": True},
        "layer_types": ["sliding_attention"] * 3,
    },
    "full layers": {"layer_types": ["full_attention"] * 3},
}


@pytest.mark.parametrize("attn_implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("changes", SEEN_BY_ATTENTION.values(), ids=SEEN_BY_ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_attention_sees_is_what_a_trace_of_the_configuration_keeps(
    monkeypatch: pytest.MonkeyPatch, family: str, changes: dict[str, Any], attn_implementation: str
) -> None:
    from transformers import AutoConfig

    from vramcalc.profiling.real import libraries as job
    from vramcalc.profiling.trace.trace import trace

    config = {**CONFIGS[family], **changes}
    windowless = "sliding_attention" in changes.get("layer_types", ()) and KNOWN[family].window is full_attention
    if windowless or (family == "mixtral" and "sliding_window" in changes):
        with pytest.raises(Unsupported, match="sliding_window"):
            to_spec(config, "here")
        return
    if family == "gemma2" and ("layer_types" in changes or attn_implementation == "sdpa"):
        with pytest.raises(Unsupported, match=r"layer_types|attn_implementation='sdpa'"):
            vramcalc.estimate(to_spec(config, "here"), "full", attn_implementation=attn_implementation)
        return
    spec = to_spec(config, "here")
    settings = {"seq_len": 200, "stack": "pure-bf16-loop", "attn_implementation": attn_implementation}
    found = vramcalc.estimate(spec, "full", **settings)  # type: ignore[arg-type]
    monkeypatch.setattr(job, "hf_config", lambda _model, layers: AutoConfig.for_model(**config))
    traced = trace(spec, found.job.method, found.job.training, found.job.stack)
    assert found.allocated_bytes == traced.peak()[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_and_its_folder_are_the_same_model(tmp_path: Path, family: str) -> None:
    path = write_config(tmp_path / "config.json", CONFIGS[family])
    assert read_config(path).replace(name="") == read_config(tmp_path).replace(name="")
    assert read_config(path) == to_spec(CONFIGS[family], str(path))


# -- what is not modelled ----------------------------------------------------------------------------------------------

NOT_MODELLED: dict[str, tuple[dict[str, Any], str]] = {
    "another architecture": ({"model_type": "gemma3"}, "gemma3"),
    "no name at all": ({"model_type": 7}, "7"),
    "remote code": ({"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}}, "never executed"),
    "a classifier": ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    "another activation": ({"hidden_act": "gelu"}, "gelu"),
    "attention dropout": ({"attention_dropout": 0.1}, "0.1"),
    "quantised weights": ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    "a quantisation that is no object": ({"quantization_config": "awq"}, "awq"),
    "another rope": ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
    "an older spelling of another rope": ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, "dynamic"),
    "rope by its older name, which counts": ({"rope_scaling": {"rope_type": "dynamic"}}, "dynamic"),
    "layers of several kinds": ({"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "sliding"),
    "another attention": ({"attn_implementation": "flex_attention"}, "flex_attention"),
    "another attention by its other name": ({"_attn_implementation": "flash_attention_3"}, "flash_attention_3"),
}
ELSEWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "attention that looks ahead": ({"is_causal": False}, "is_causal False .attention that looks ahead"),
    "attention of no direction": ({"is_causal": None}, "is_causal None .attention that looks ahead"),
    "hidden states": ({"output_hidden_states": True}, "take output_hidden_states out of the file"),
    "attention weights": ({"output_attentions": True}, "take output_attentions out of the file"),
    "tuples": ({"return_dict": False}, "take return_dict out of the file"),
    "its own checkpointing": ({"gradient_checkpointing": True}, "it is a setting of the run"),
    "layers that differ": ({"per_layer_config": {"1": {"intermediate_size": 8}}}, "layers that differ"),
    "windows without one": ({"layer_types": ["sliding_attention"] * 3}, "finds no sliding_window there"),
}


@pytest.mark.parametrize(("changes", "said"), ELSEWHERE.values(), ids=ELSEWHERE)
@pytest.mark.parametrize("family", ["llama", "mixtral", "qwen2", "qwen3", "granite"])
def test_settings_that_move_memory_are_refused_by_name(family: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        to_spec({**CONFIGS[family], **changes}, "here")


@pytest.mark.parametrize("name", ["experts_implementation", "_experts_implementation"])
def test_experts_that_are_not_multiplied_in_groups_are_refused(name: str) -> None:
    assert to_spec({**CONFIGS["mixtral"], name: "grouped_mm"}, "here") == to_spec(CONFIGS["mixtral"], "here")
    with pytest.raises(Unsupported, match="experts_implementation 'eager' is not modelled; supported: 'grouped_mm'"):
        to_spec({**CONFIGS["mixtral"], name: "eager"}, "here")


@pytest.mark.parametrize("kinds", ["full_attention", ["full_attention"] * 2, [1, 2, 3]])
def test_kinds_of_layers_are_one_name_for_each(kinds: object) -> None:
    with pytest.raises(BadConfig, match=f"layer_types = .*expected.*one .*{REMEDY}"):
        to_spec({**LLAMA, "layer_types": kinds}, "here")


@pytest.mark.parametrize(("changes", "shown"), NOT_MODELLED.values(), ids=NOT_MODELLED)
def test_what_is_not_modelled_is_refused_by_name_with_what_is(changes: dict[str, Any], shown: str) -> None:
    with pytest.raises(Unsupported) as caught:
        to_spec({**LLAMA, **changes}, "here")
    message = str(caught.value)
    assert message.startswith("here: ")
    assert shown in message
    assert "supported: " in message or "name the unquantised model" in message


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_window_on_some_layers_is_refused(family: str, first: int) -> None:
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": first}
    with pytest.raises(Unsupported, match=f"from layer {first} on is not modelled; supported: all layers or none"):
        to_spec({**CONFIGS[family], **window}, "here")


# -- broken values -----------------------------------------------------------------------------------------------------

WHOLE_NUMBERS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
BROKEN_NUMBERS: list[Any] = [
    -64,
    0,
    64.0,
    0.5,
    float("nan"),
    float("inf"),
    True,
    "64",
    "",
    [],
    [64],
    {},
    {"value": 64},
    10**9,
    10**400,
    -(10**400),
]


@pytest.mark.parametrize("value", BROKEN_NUMBERS, ids=lambda v: repr(v)[:12])
@pytest.mark.parametrize("key", [*WHOLE_NUMBERS, "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_no_size_is_refused_with_its_key_value_and_remedy(family: str, key: str, value: Any) -> None:
    with pytest.raises(BadConfig) as caught:
        to_spec({**CONFIGS[family], key: value}, "here")
    message = str(caught.value)
    assert message.startswith("here: ")
    assert "expected" in message
    assert message.endswith(REMEDY)
    assert len(message) < 300
    assert key in message
    assert repr(value)[:10] in message


@pytest.mark.parametrize("key", WHOLE_NUMBERS)
@pytest.mark.parametrize("given", ["missing", None])
def test_a_size_without_a_default_has_to_be_there(key: str, given: str | None) -> None:
    config = without(LLAMA, key) if given == "missing" else {**LLAMA, key: None}
    with pytest.raises(BadConfig, match=f"here: the configuration lacks {key}: expected whole numbers; {REMEDY}"):
        to_spec(config, "here")


def test_all_missing_sizes_are_named_at_once() -> None:
    with pytest.raises(BadConfig, match=", ".join(WHOLE_NUMBERS)):
        to_spec({"model_type": "llama"}, "here")


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no model_type": (
        {"model_type": None},
        f"lacks model_type: expected one of {', '.join(KNOWN)}",
    ),
    "heads that do not divide": ({"num_attention_heads": 33}, r"num_attention_heads = 33: expected a divisor of .*64"),
    "key-value heads that do not divide": ({"num_key_value_heads": 3}, r"expected num_key_value_heads \(3\) to divide"),
    "an odd head": ({"head_dim": 15}, "expected an even head_dim"),
    "a bias that is a string": ({"attention_bias": "false"}, "attention_bias = 'false': expected True or False"),
    "a bias that is a number": ({"mlp_bias": 1}, "mlp_bias = 1: expected True or False"),
    "ties that are a string": ({"tie_word_embeddings": "true"}, "tie_word_embeddings = 'true': expected True or False"),
    "positions below one": ({"max_position_embeddings": 0}, "max_position_embeddings = 0: expected at least 1"),
    "positions that are text": ({"max_position_embeddings": "2k"}, "max_position_embeddings = '2k': expected a whole"),
    "architectures that are text": ({"architectures": "LlamaForCausalLM"}, "architectures = .*: expected a list"),
    "architectures of numbers": ({"architectures": [1]}, r"architectures = \[1\]: expected a list of names"),
    "rope that is a list": ({"rope_parameters": [1]}, r"rope_scaling = \[1\]: expected an object or null"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: expected at most"),
}


@pytest.mark.parametrize(("changes", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_value_is_refused_with_its_value_expectation_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadConfig, match=f"^here: .*{message}.*; {REMEDY}$"):
        to_spec({**LLAMA, **changes}, "here")


@pytest.mark.parametrize("window", [0, -1, True, "64", 1.5, [64]], ids=repr)
def test_a_window_that_is_no_size_is_refused(window: Any) -> None:
    with pytest.raises(BadConfig, match=f"sliding_window = .*expected.*{REMEDY}"):
        to_spec({**CONFIGS["mistral"], "sliding_window": window}, "here")


@pytest.mark.parametrize("first", [None, "0", 1.0, False, [0]], ids=repr)
def test_a_first_layer_with_a_window_that_is_no_number_is_refused(first: Any) -> None:
    window = {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": first}
    with pytest.raises(BadConfig, match=f"max_window_layers = .*expected a whole number; {REMEDY}"):
        to_spec({**CONFIGS["qwen2"], **window}, "here")


# -- broken files ------------------------------------------------------------------------------------------------------

TEXT = json.dumps(LLAMA).encode()
FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not valid JSON .*: expected one JSON object"),
    "blank": (b"\n \n", "is not valid JSON .*: expected one JSON object"),
    "truncated": (TEXT[:-20], "is not valid JSON .*: expected one JSON object"),
    "two objects": (TEXT + TEXT, "is not valid JSON .*Extra data"),
    "a comment": (b"// llama\n" + TEXT, "is not valid JSON"),
    "UTF-16": (TEXT.decode().encode("utf-16"), "is not UTF-8 text: expected a JSON object in UTF-8"),
    "binary": (bytes(range(128, 256)) * 40, "is not UTF-8 text: expected a JSON object in UTF-8"),
    "an HTML page": (b"<!DOCTYPE html><html></html>", "is not valid JSON"),
    "a list": (b"[1, 2]", "holds a list: expected one JSON object"),
    "a string": (b'"llama"', "holds a str: expected one JSON object"),
    "a number": (b"4096", "holds a int: expected one JSON object"),
    "null": (b"null", "holds a NoneType: expected one JSON object"),
    "a key that comes twice": (TEXT[:-1] + b', "hidden_size": 128}', "the key 'hidden_size' comes twice"),
    "a key that comes twice inside": (b'{"rope_parameters": {"a": 1, "a": 2}}', "the key 'a' comes twice"),
    "deep lists": (b"[" * 100_000 + b"]" * 100_000, "is not valid JSON"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "is not valid JSON"),
    "a number of ten thousand digits": (b'{"hidden_size": ' + b"9" * 10_000 + b"}", "is not valid JSON"),
    "huge": (b'{"a": "' + b"x" * (5 << 20) + b'"}', "has more than 4,194,304 bytes: expected a few KiB of JSON"),
}


@pytest.mark.parametrize(("content", "message"), FILES.values(), ids=FILES)
def test_a_broken_file_is_refused_with_its_path_expectation_and_remedy(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(BadConfig, match=f"{message}.*; {REMEDY}$") as caught:
        vramcalc.estimate(str(path))
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "key", ["tie_word_embeddings", "model_type", "architectures", "rope_parameters", "quantization_config"]
)
def test_a_value_nested_as_deeply_as_json_allows_is_refused(key: str) -> None:
    """Just below the depth that the parser refuses, showing the value would still be too deep."""
    text = json.dumps({**LLAMA, key: "HERE"})
    for depth in range(800, 1000):
        with pytest.raises((BadConfig, Unsupported)) as caught:
            to_spec(parse(text.replace('"HERE"', "[" * depth + "]" * depth), "here"), "here")
        assert len(str(caught.value)) < 300


def test_text_from_a_file_cannot_steer_the_terminal() -> None:
    with pytest.raises(Unsupported) as caught:
        to_spec({**LLAMA, "architectures": ["\x1b[31mred\nline"]}, "here")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "make", ["missing", "folder without one", "folder of that name", "pipe", "device", "broken link"]
)
def test_a_path_to_no_file_is_refused_at_once(tmp_path: Path, make: str) -> None:
    path = tmp_path / "config.json"
    match make:
        case "folder without one":
            path = tmp_path
        case "folder of that name":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "broken link":
            path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        BadConfig, match=r"expected a config\.json, or a folder that holds one; check the path"
    ) as caught:
        vramcalc.estimate(str(path))
    assert str(path) in str(caught.value)


def test_the_largest_file_that_is_read_is_read_in_full(tmp_path: Path) -> None:
    text = json.dumps(LLAMA).ljust(4 << 20)
    path = tmp_path / "config.json"
    path.write_text(text)
    assert load(path) == LLAMA
    path.write_text(text + " ")
    with pytest.raises(BadConfig, match="more than"):
        load(path)


# -- anything at all ---------------------------------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.integers()
    | st.floats()
    | st.sampled_from(
        [
            "4096",
            "gemma2",
            "granite",
            "llama",
            "mistral",
            "mixtral",
            "qwen2",
            "qwen3",
            "silu",
            "full_attention",
            "default",
            "",
        ]
    )
    | st.text(max_size=5)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(
    {key for config in CONFIGS.values() for key in config}
    | {"layer_types", "quantization_config", "auto_map"}
    | {"num_experts", "attn_implementation", "is_causal", "per_layer_config"}
)


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(
    dropped=st.sets(st.sampled_from(KEYS), max_size=2),
    replaced=st.dictionaries(st.sampled_from(KEYS), JSON, max_size=3),
    method=st.sampled_from(["full", "lora", "qlora"]),
)
def test_any_configuration_is_an_estimate_or_a_typed_error(
    tmp_path: Path, family: str, dropped: set[str], replaced: dict[str, Any], method: str
) -> None:
    config = {**without(CONFIGS[family], *dropped), **replaced}
    path = write_config(tmp_path / "config.json", config)
    assert holds(path, lambda: vramcalc.estimate(str(path), method, seq_len=32).allocated_bytes)


def holds(path: Path, count: Callable[[], int]) -> bool:
    """Whether a count is positive, or refused in one printable line that names the file."""
    try:
        return count() > 0
    except VramcalcError as err:
        return str(err).startswith(str(path)) and str(err).isprintable()


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(
    content=st.binary(max_size=40)
    | st.builds(lambda n, tail: TEXT[:n] + tail, st.integers(0, 400), st.binary(max_size=8))
)
def test_any_bytes_are_a_model_or_a_typed_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-bytes.json"
    path.write_bytes(content)
    assert holds(path, lambda: read_config(path).params_total)
