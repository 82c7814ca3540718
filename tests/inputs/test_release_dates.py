"""Jobs whose release of transformers is not known: which it may be, and what spans them."""

from __future__ import annotations

import datetime
import json

import pytest
from command import run
from small import TINY, tiny

from vramcalc import estimate
from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.release_dates import WINDOW, candidates, not_modelled, out_by, released
from vramcalc.inputs.releases import RELEASES, minor_release
from vramcalc.inputs.stack import Stack

FLASH = {"attn_implementation": "flash_attention_2"}


def test_every_release_that_is_modelled_has_a_date_and_they_follow_each_other() -> None:
    dates = released()
    for release in RELEASES:
        for minor in (release.since, release.checked):
            assert minor in dates
    assert list(dates) == sorted(dates)
    assert list(dates.values()) == sorted(dates.values())


def test_a_run_may_have_used_what_came_out_in_the_half_year_before_it() -> None:
    assert candidates("2024-06-07") == ["4.41", "4.40", "4.39", "4.38", "4.37", "4.36"]
    assert candidates("2024-05-17")[0] == "4.41"
    assert candidates("2024-05-16")[0] == "4.40"
    assert not_modelled("2024-06-07") == []
    assert not_modelled("2024-02-01") == ["4.35", "4.34", "4.33", "4.32"]
    newest, oldest = out_by("2024-06-07")[0], out_by("2024-06-07")[-1]
    assert minor_release("4.41") == newest
    assert released()[oldest] > datetime.date(2024, 6, 7) - WINDOW
    assert len(candidates("unknown")) == sum(
        1 for m in released() if minor_release(f"{m[0]}.{m[1]}") in out_by("unknown")
    )


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("unknown", "5.23@unknown"),
        ("2024-06-07", "4.41@2024-06-07"),
        ("4.39@2024-06-07", "4.39@2024-06-07"),
        ("4.39.3", "4.39"),
    ],
)
def test_what_is_given_for_a_release_is_read_back(given: str, read: str) -> None:
    stack = Stack(transformers=given)
    assert stack.transformers == read
    assert Stack(**json.loads(stack.model_dump_json())) == stack
    assert stack.replace(transformers="4.45").transformers == "4.45"


@pytest.mark.parametrize("given", ["2019-01-01", "2024-13-01", "4.45@2024-06-07", "4.41@never", "@", "Unknown"])
def test_what_is_neither_a_release_nor_a_date_is_refused(given: str) -> None:
    with pytest.raises(InvalidValue, match=r"4\.36"):
        Stack(transformers=given)


def test_intervals_span_what_every_release_would_take() -> None:
    found = tiny("lora", transformers="2024-08-10", **FLASH)
    each = [tiny("lora", transformers=version, **FLASH) for version in candidates("2024-08-10")]
    assert found.allocated_bytes == each[0].allocated_bytes
    assert len({e.allocated_bytes for e in each}) > 1
    for quantity in ("allocated", "blocks", "reserved", "process"):
        spans = [e.interval(quantity) for e in each]
        low, _, high = found.interval(quantity)
        assert (low, high) == (min(s.low for s in spans), max(s.high for s in spans))
    capacity = found.process_bytes
    chances = [e.probability(capacity) for e in each]
    assert min(chances) <= found.probability(capacity) <= max(chances)


def test_a_known_release_spans_nothing_and_says_nothing() -> None:
    found = tiny("lora", transformers="4.44", **FLASH)
    assert found.others == ()
    assert not [w for w in found.warnings if "release" in w]


def test_an_unknown_release_is_said_in_words() -> None:
    found = tiny("lora", transformers="2024-03-01", **FLASH)
    assert "unchecked: the release of transformers is not known" in found.warnings[0]
    assert "4.35" in found.warnings[1]
    assert "not known, run of 2024-03-01" in " ".join(str(found).split())


def test_a_release_that_cannot_run_the_job_is_passed_over() -> None:
    """Mistral has SDPA from 4.37 on; a mixture of experts in four bits is one of linear layers up to 4.57."""
    mistral = TINY.replace(model_type="mistral")
    found = estimate(mistral, "lora", seq_len=64, transformers="2024-03-01")
    assert found.job.stack.transformers == "4.38@2024-03-01"
    assert "4.36" not in {e.job.stack.transformers for e in found.others}
    mixtral = estimate("mixtral-8x7b-v0.1", "qlora", seq_len=64, transformers="unknown", target_modules=["q_proj"])
    assert mixtral.job.stack.transformers == "4.57@unknown"
    with pytest.raises(Unsupported, match=r"4\.36"):
        estimate(mistral, "lora", seq_len=64, transformers="2024-01-02")


def test_the_command_takes_a_date() -> None:
    answer = run("estimate", "llama-3.2-1b", "--transformers", "2024-08-10", "--seq-len", "64", "--json")
    assert json.loads(answer.out)["stack"]["transformers"] == "4.44@2024-08-10"
    assert "release of transformers is not known" in answer.out
