"""Quoted figures: read as they stand, answered where they can be, and counted where they cannot."""

from __future__ import annotations

from typing import Any

import pytest
from steps import GivenStep

from vramcalc import estimate, tables
from vramcalc.accuracy import claims
from vramcalc.accuracy.claims import NEAR, Claim, answer, memory_recipes, read_claims
from vramcalc.inputs import catalog
from vramcalc.planning import prices

CLAIMS = {claim.claim_id: claim for claim in read_claims()}
OFFERS = prices.read(prices.shipped_path())


def claim(like: str, **changes: Any) -> Claim:
    return Claim(**{**vars(CLAIMS[like]), **changes})


@pytest.fixture
def fixed_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand tokens a second, whatever the job."""

    def step(found: Any) -> GivenStep:
        t = found.job.training
        s = t.micro_batch_size * t.gradient_accumulation_steps * t.seq_len / 1000
        return GivenStep(s, 0.9 * s, 1.1 * s)

    monkeypatch.setattr(claims, "step_time_of", step)


def test_every_row_is_read_as_it_stands() -> None:
    for row in tables.read("claims"):
        read = CLAIMS[row["claim_id"]]
        assert read.as_stated == row["as_stated"]
        assert read.low == (float(row["value_low"]) if row["value_low"] else 0)
        assert read.high == (float(row["value_high"]) if row["value_high"] else float("inf"))
        assert read.low <= read.high
        assert read.gpu is None or read.gpu in catalog.gpu_names()
        assert read.model is None or catalog.model(read.model)


@pytest.mark.parametrize(
    ("claim_id", "model", "method", "gpu", "gpu_count", "examples", "low", "unit"),
    [
        ("c37", "llama-2-7b", "qlora", "a10g", 1, 1000, 2, "hours"),
        ("c38", "llama-2-7b", "qlora", "a10g", 1, 1000, 3, "USD"),
        ("c39", "llama-2-7b", "lora", "a100-sxm-80", 1, 10_000, 4, "hours"),
        ("c40", "llama-2-7b", "lora", "a100-sxm-80", 1, 10_000, 12, "USD"),
        ("c41", "llama-2-13b", "full", "a100-sxm-80", 4, 50_000, 24, "hours"),
        ("c42", "llama-2-13b", "full", "a100-sxm-80", 4, 50_000, 300, "USD"),
        ("c43", "llama-2-70b", "full", "a100-sxm-80", 8, 50_000, 120, "hours"),
        ("c44", "llama-2-70b", "full", "a100-sxm-80", 8, 50_000, 3000, "USD"),
    ],
)
def test_the_four_scenarios(
    claim_id: str, model: str, method: str, gpu: str, gpu_count: int, examples: int, low: float, unit: str
) -> None:
    found = CLAIMS[claim_id]
    read = (found.model, found.method, found.gpu, found.gpu_count, found.examples, found.low, found.unit)
    assert read == (model, method, gpu, gpu_count, examples, low, unit)


@pytest.mark.parametrize("claim_id", ["c41", "c42", "c43", "c44"])
def test_several_gpus_are_unsupported_with_the_reason(claim_id: str) -> None:
    found = answer(CLAIMS[claim_id], OFFERS)
    assert (found.reason, found.tried) == ("several GPUs are not supported yet", 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"quantity": "latency"}, "not about memory, time or cost"),
        ({"subject": "rule"}, "about rule, not about a run"),
        ({"unit": "x"}, "in x"),
        ({"method": "prompt-tuning"}, "method prompt-tuning"),
        ({"model": None}, "model not said"),
        ({"gpu_count": 2}, "several GPUs are not supported yet"),
        ({"gpu": None}, "GPU not said"),
        ({"examples": None}, "number of examples not said"),
    ],
)
def test_what_is_not_said_or_not_known_is_a_reason_and_no_answer(change: dict[str, Any], reason: str) -> None:
    found = answer(claim("c37", **change), OFFERS)
    assert (found.reason, found.recipes, found.tried) == (reason, (), 0)


def test_a_figure_on_memory_is_true_of_the_recipes_near_it_and_of_no_others() -> None:
    asked = claim("c35", model="qwen2.5-0.5b", low=3.0, high=3.0)
    found = answer(asked, OFFERS)
    peaks = [estimate("qwen2.5-0.5b", "qlora", **settings).allocated_bytes / 1e9 for settings in memory_recipes(asked)]
    near = [n for n in peaks if abs(n / 3.0 - 1) <= NEAR]
    assert found.tried == len(peaks)
    assert len(found.recipes) == len(near) > 0
    assert found.usual == f"{min(peaks):.1f} to {max(peaks):.1f} GB"
    assert found.recipes[0].endswith(f"{min(near, key=lambda n: abs(n - 3)):.1f} GB")


def test_a_figure_below_every_recipe_is_true_of_none() -> None:
    found = answer(claim("c13", low=2.0, high=2.0), OFFERS)
    assert (found.recipes, found.reason) == ((), "")
    assert found.tried > 0


def test_a_figure_in_float32_is_held_against_float32_weights() -> None:
    assert all(s["dtype"] == "float32" for s in memory_recipes(CLAIMS["c07"]))
    assert not any("dtype" in s for s in memory_recipes(CLAIMS["c08"]))


@pytest.mark.usefixtures("fixed_speed")
def test_a_figure_on_time_is_true_of_the_runs_whose_interval_holds_it() -> None:
    """At 1,000 tokens a second, 1,000 examples in 2 hours are 7,200 tokens of each in all epochs; 10 % either way."""
    found = answer(CLAIMS["c37"], OFFERS)
    assert found.usual.startswith("1 epoch of 512 tokens")
    assert found.recipes
    for words in found.recipes:
        epochs, _, tokens = words.partition(" tokens")[0].replace(" epochs of ", " epoch of ").partition(" epoch of ")
        assert 7200 / 1.1 * 0.98 <= float(epochs) * int(tokens.replace(",", "")) <= 7200 / 0.9 * 1.02, words


@pytest.mark.usefixtures("fixed_speed")
def test_a_figure_on_cost_is_that_of_the_cheapest_offer_on_demand() -> None:
    """An A10G costs 1.006 USD an hour at the least: 3 USD are 2.98 hours."""
    for words in answer(CLAIMS["c38"], OFFERS).recipes:
        epochs, _, tokens = words.partition(" tokens")[0].replace(" epochs of ", " epoch of ").partition(" epoch of ")
        hours = 1000 * float(epochs) * int(tokens.replace(",", "")) / 1000 / 3600
        assert 0.9 * hours * 1.006 <= 3.05
        assert 1.1 * hours * 1.006 >= 2.95
