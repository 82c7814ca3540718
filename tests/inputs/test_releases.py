"""Releases of transformers that are modelled, and how one is named."""

from __future__ import annotations

from itertools import pairwise

import pytest
from small import TINY, tiny

from vramcalc import estimate
from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.releases import RELEASES, checked_releases, minor_release, release_of
from vramcalc.inputs.stack import ModelType, Stack
from vramcalc.memory.estimate import make_job
from vramcalc.memory.walks import Walks
from vramcalc.shadow.training.loop import MAIN_WORKSPACE


def test_releases_follow_each_other_without_overlap() -> None:
    for older, newer in pairwise(RELEASES):
        assert older.since <= older.checked < newer.since


@pytest.mark.parametrize("release", RELEASES, ids=lambda r: "{}.{}".format(*r.since))
def test_a_release_is_found_from_its_first_to_its_last(release: object) -> None:
    since, checked = release.since, release.checked  # type: ignore[attr-defined]
    assert release_of(since) is release_of(checked) is release
    assert Stack(transformers="{}.{}.7".format(*since)).release is release


def test_the_newest_release_is_the_default() -> None:
    assert Stack().release is RELEASES[-1]
    assert minor_release(Stack().transformers) == RELEASES[-1].checked


@pytest.mark.parametrize("version", ["4.35.2", "4.58.1", "5.24", "6.0", "5", "", "five.one", "main"])
def test_a_release_that_has_not_been_checked_is_refused(version: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Stack(transformers=version)
    assert repr(version) in str(caught.value)
    assert checked_releases() in str(caught.value)


@pytest.mark.parametrize(("field", "first", "last"), [("peft", "0.11", "0.21"), ("bitsandbytes", "0.43", "0.50")])
def test_other_libraries_have_a_range(field: str, first: str, last: str) -> None:
    for good in (first, last, f"{last}.9"):
        assert getattr(Stack(**{field: good}), field) == ".".join(good.split(".")[:2])
    for bad in ("0.10.1", "0.51", "1.0"):
        with pytest.raises(InvalidValue, match=f"{first} to {last}"):
            Stack(**{field: bad})


@pytest.mark.parametrize(
    "settings",
    [
        {"transformers": "4.47", "padded": True},
        {"transformers": "4.52", "attn_implementation": "eager", "gradient_checkpointing": "reentrant"},
        {"attn_implementation": "flash_attention_2", "padded": True},
        {"attn_implementation": "flash_attention_2", "dtype": "float32", "autocast": None},
    ],
)
def test_what_no_trace_was_compared_with_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(Unsupported, match=r"use|give|set"):
        tiny("lora", **settings)


@pytest.mark.parametrize(
    ("model", "settings", "why"),
    [
        ({}, {"transformers": "4.38"}, "always gives SDPA a mask"),
        ({}, {"transformers": "4.38", "attn_implementation": "eager"}, "4,096 squared"),
        ({"model_type": "mistral"}, {"transformers": "4.36"}, "has no SDPA in mistral"),
        ({"model_type": "qwen2"}, {"transformers": "4.36"}, "4.37 or later"),
        ({"model_type": "qwen3"}, {"transformers": "4.50"}, "4.51 or later"),
        ({"head_dim": 128}, {"transformers": "4.42"}, "4.43 or later"),
        ({"mlp_bias": True}, {"transformers": "4.42"}, "4.43 or later"),
    ],
)
def test_what_early_releases_do_not_do_or_was_not_traced_is_refused(
    model: dict[str, object], settings: dict[str, str], why: str
) -> None:
    with pytest.raises(Unsupported, match=why):
        make_job(TINY.replace(**model), "lora", **settings)


@pytest.mark.parametrize(
    ("model_type", "last", "n_bytes"), [("mistral", "4.41", 2), ("llama", "4.40", 2), ("qwen2", "4.44", 2)]
)
def test_tables_of_rotary_positions_are_kept_in_every_layer(model_type: ModelType, last: str, n_bytes: int) -> None:
    """Cosine and sine of every position there could be, in 16 bits; a published run has 512 MiB of them."""
    model = TINY.replace(model_type=model_type)
    after = {"4.41": "4.42", "4.40": "4.41", "4.44": "4.45"}[last]
    with_tables, without = (
        estimate(model, "full", seq_len=64, attn_implementation="flash_attention_2", transformers=release)
        for release in (last, after)
    )
    tables = [row for row in with_tables.rows if "cached" in row.what]
    expected = 2 * model.max_position_embeddings * model.head_dim * n_bytes * model.num_hidden_layers
    assert sum(row.n_bytes for row in tables) == expected
    assert not [row for row in without.rows if "cached" in row.what]


def test_copied_logits_and_repeated_heads_take_more_than_the_newest_release() -> None:
    newest = tiny("lora", seq_len=256).allocated_bytes
    assert tiny("lora", seq_len=256, transformers="4.48").allocated_bytes > newest


@pytest.mark.parametrize(
    ("model_type", "transformers", "first"),
    [("llama", "5.18", "freqs"), ("llama", "5.19", "mm"), ("mistral", "4.45", "mm"), ("mistral", "4.48", "freqs")],
)
def test_cublas_takes_its_workspace_at_the_first_product(model_type: ModelType, transformers: str, first: str) -> None:
    job, _ = make_job(TINY.replace(model_type=model_type), "full", seq_len=16, transformers=transformers)
    walks = Walks(job)
    program, expansion, *_ = walks.written_out
    ops = [program.births[b].op for b in expansion.births]
    events = walks.stream.events
    assert sorted(events) == sorted(expansion.events)
    assert ops[events[events.index(ops.index(MAIN_WORKSPACE)) - 1]] == first
