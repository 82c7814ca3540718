"""Patterns of users mean what they mean to PEFT, and none of them can keep an estimate from ending."""

from __future__ import annotations

import re
from typing import Any

import pytest
from command import run
from hypothesis import example, given, settings
from hypothesis import strategies as st

import vramcalc
from vramcalc.errors import InvalidValue
from vramcalc.inputs import patterns

MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
    "mlp.down_proj", "block_sparse_moe.experts.7.w2", "input_layernorm",
)  # fmt: skip
NAMES = [
    *(f"model.layers.{n}.{m}" for n in (0, 1, 9, 10, 12, 20, 31, 199) for m in MODULES),
    *("model.embed_tokens", "model.norm", "lm_head", "", "x\n"),
]
ORDINARY = [
    r".*\.layers\.(1[0-9]|2)\..*q_proj",
    r".*(q|k|v|o)_proj",
    r"^(?!.*(?:mlp|norm)).*\.(?:q_proj|v_proj)$",
    r"model\.layers\.\d+\.self_attn\.(q|v)_proj",
    r"model\.layers\.(?:[0-9]|1[0-5])\.(?:mlp|self_attn)\.(?:\w+_proj)",
    r"(?i).*Q_PROJ",
    r"(?i:MODEL)\..*(?-i:q_proj)",
    r"(?x) .* \. q_proj  # attention",
    r".*\bq_proj\b",
    r".*(?<!k)(?<=[qv])_proj\Z",
    r"\Amodel.*?proj$",
    r"(?s).*",
    r"[^.]+(\.[^.]+){4}",
    r"[a-z_]+(\.(layers|mlp|\d{1,3}|[a-z]+_proj)){2,}",
    r"(model|lm)_?(head)?|(?P<tail>.*norm)",
    r".*\.(?:experts\.\d+\.w[123]|gate)",
    r"",
    r"lm_head|",
    r"(?!)",
    r"(?a:\w+)\.?",
    r".{0,40}",
    r"(?:(?!mlp).)*",
    r"x$",
]


@pytest.mark.parametrize("pattern", ORDINARY)
def test_ordinary_patterns_mean_what_they_mean_to_peft(pattern: str) -> None:
    for name in NAMES:
        assert patterns.fullmatch(pattern, name) is (re.fullmatch(pattern, name) is not None), name
        assert patterns.match(pattern, name) is (re.match(pattern, name) is not None), name


LEAVES = st.sampled_from(
    ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\d", r"\w", r"\b", r"\B", "^", "$", r"\A", r"\Z", "", "(?i:A)"]
)
PATTERNS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "*?", "+?", "??", "{2}", "{1,3}", "{2,}", "{0}"])).map(
            lambda two: f"(?:{two[0]}){two[1]}"
        ),
        st.tuples(st.sampled_from(["(?=", "(?!", "("]), inner).map(lambda two: f"{two[0]}{two[1]})"),
    ),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(PATTERNS, st.text("ab.1A\n", max_size=7))
@example("(?:(?:a)*)*", "aaab")
@example("(?:a|)+b", "aab")
@example(r"(?:\b|a){3}", "aaa")
@example(r"(?:a{2}|a{3}){2}", "aaaaa")
def test_any_pattern_means_what_it_means_to_re(pattern: str, text: str) -> None:
    assert patterns.match(pattern, text) is (re.match(pattern, text) is not None)
    assert patterns.fullmatch(pattern, text) is (re.fullmatch(pattern, text) is not None)


ENDLESS = [
    r"([\w.]+)+X",
    r"(\w*\.?)*X",
    r"((((a|[^X])*)*)*)*X",
    r"(.*)*(.*)*(.*)*(.*)*(.*)*X",
    ".*" * 60 + "X",
    "(" * 40 + "[a-z_.0-9]" + "+)" * 40 + "X",
    "(?:.?){999999999}X",
    "(?:.{1000000}){1000000}",
    "(?:.?.?.?){9}" * 30 + "X",
    "(?=(.*)*(.*)*X)" * 20,
    "(?:(?=.*)(?!.*X).)*" * 9 + "X",
]


@pytest.mark.parametrize("pattern", ENDLESS, ids=range(len(ENDLESS)))
def test_no_pattern_runs_on(pattern: str) -> None:
    """Counted in steps, which have a limit; ``re`` would need centuries for most of these."""
    for name in NAMES[:20]:
        try:
            assert patterns.fullmatch(pattern, name) is False
        except InvalidValue as err:
            assert "fewer repeats inside repeats" in str(err)  # noqa: PT017


@pytest.mark.parametrize("setting", ["target_modules", "modules_to_save"])
def test_an_endless_pattern_is_an_error_like_any_that_matches_nothing(setting: str) -> None:
    value: Any = r"([\w.]+)+X" if setting == "target_modules" else [r"([\w.]+)+X"]
    with pytest.raises(InvalidValue, match=f"^{setting} = .*expected names"):
        vramcalc.estimate("llama-3.1-8b", "lora", **{setting: value})
    answer = run("estimate", "llama-3.1-8b", f"--{setting.replace('_', '-')}", r"([\w.]+)+X")
    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"(q)_\1", "without references to groups"),
        (r"(?P<a>q)(?P=a)", "without references to groups"),
        (r"(q)?(?(1)a|b)", "without references to groups"),
        (r"(?>q)_proj", "without atomic groups"),
        (r"q*+_proj", "without possessive repeats"),
        ("(" * 200 + "a" + ")" * 200, "not nested so deeply"),
        ("(" * 20_000, "at most 4,096 characters"),
        ("a{99999999999999}", "a regular expression (the repetition number is too large)"),
        ("(", "a regular expression (missing )"),
        ("*", "a regular expression (nothing to repeat"),
    ],
)
@pytest.mark.parametrize("setting", ["target_modules", "modules_to_save"])
def test_what_cannot_be_bounded_is_refused_by_name(setting: str, pattern: str, says: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        vramcalc.LoRA(**{setting: pattern if setting == "target_modules" else [pattern]})
    assert str(caught.value).startswith(f"{setting} = ")
    assert says in str(caught.value)


def test_a_pattern_without_a_digit_tells_layers_apart_too() -> None:
    """``\\d`` is the first ten layers, as ``[0-9]`` is, and neither is all of them."""
    found = [
        vramcalc.estimate("qwen2.5-0.5b", "lora", seq_len=64, target_modules=rf".*\.layers\.{layers}\..*q_proj")
        for layers in (r"\d", "[0-9]", ".", r"\d+")
    ]
    first, same, also, every = (e.allocated_bytes for e in found)
    assert first == same == also < every


def test_flags_in_the_middle_of_the_pattern_of_a_saved_module_are_refused() -> None:
    with pytest.raises(InvalidValue, match="global flags not at the start"):
        vramcalc.LoRA(modules_to_save=["(?i)lm_head"])
    assert vramcalc.LoRA(modules_to_save=["(?i:lm_head)"]).modules_to_save == {"(?i:lm_head)"}


def test_ordinary_patterns_are_far_from_the_limit() -> None:
    for pattern in ORDINARY:
        for text in NAMES:
            name = patterns._Name(text, pattern, "target_modules")
            limit = name.left
            patterns._read(pattern)(name, 1)
            assert limit - name.left < limit / 4, pattern
