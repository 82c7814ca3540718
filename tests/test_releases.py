"""Releases of transformers that are modelled, and how one is named."""

from __future__ import annotations

from itertools import pairwise

import pytest
from small import tiny

from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.releases import RELEASES, checked_releases, minor_release, release_of
from vramcalc.specs import Stack


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


@pytest.mark.parametrize("version", ["4.42.0", "4.58.1", "5.24", "6.0", "5", "", "five.one", "main"])
def test_a_release_that_has_not_been_checked_is_refused(version: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Stack(transformers=version)
    assert repr(version) in str(caught.value)
    assert checked_releases() in str(caught.value)


@pytest.mark.parametrize(("field", "first", "last"), [("peft", "0.12", "0.21"), ("bitsandbytes", "0.46", "0.50")])
def test_other_libraries_have_a_range(field: str, first: str, last: str) -> None:
    for good in (first, last, f"{last}.9"):
        assert getattr(Stack(**{field: good}), field) == ".".join(good.split(".")[:2])
    for bad in ("0.11.1", "0.51", "1.0"):
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


def test_copied_logits_and_repeated_heads_take_more_than_the_newest_release() -> None:
    newest = tiny("lora", seq_len=256).allocated_bytes
    assert tiny("lora", seq_len=256, transformers="4.48").allocated_bytes > newest
