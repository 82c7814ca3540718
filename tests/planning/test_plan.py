"""A run in steps, hours and dollars: laws first, then figures worked out by hand."""

from __future__ import annotations

import datetime
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from command import run
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small import TINY, tiny
from steps import GivenStep

from vramcalc import verdict
from vramcalc.cli.plan_options import DEFAULTS
from vramcalc.errors import InvalidValue, UnknownName, VramcalcError
from vramcalc.inputs.stack import TrainingSpec
from vramcalc.interval import Interval
from vramcalc.planning import prices
from vramcalc.planning.cost import Billing, OwnMachine, OwnRate, Rate, bill, offer_rate
from vramcalc.planning.plan import Plan, plan
from vramcalc.planning.workload import Workload, forward_share, hours_of, schedule
from vramcalc.units import human_hours, usd

SHIPPED = prices.read(prices.shipped_path())
STEP = GivenStep(2.0, 1.5, 3.0)
EXACT = Billing(increment_s=1e-6, minimum_s=0.0)
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a price table of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def work(**changes: Any) -> Workload:
    return Workload(**{"examples": 1000, "tokens_per_example": 256, **changes})


def planned(**changes: Any) -> Plan:
    asked = {"gpu": "a100-sxm-80", "work": work(), "offers": SHIPPED, "measured_step_s": 2.0, **changes}
    return plan(TINY, asked.pop("method", "lora"), **asked)


WORK = st.fixed_dictionaries(
    {
        "examples": st.integers(1, 5000),
        "tokens_per_example": st.integers(1, 3000),
        "epochs": st.floats(0.1, 9),
        "validation_share": st.floats(0, 0.9),
        "packing": st.booleans(),
    }
)
TRAINING = st.builds(
    TrainingSpec,
    micro_batch_size=st.integers(1, 9),
    gradient_accumulation_steps=st.integers(1, 9),
    seq_len=st.integers(1, 3000),
)

# -- steps -------------------------------------------------------------------------------------------------------------


@given(WORK, TRAINING)
@settings(max_examples=300, deadline=None)
def test_steps_hold_every_sequence_and_no_step_is_empty(asked: dict[str, Any], training: TrainingSpec) -> None:
    if math.ceil(asked["validation_share"] * asked["examples"]) >= asked["examples"]:
        with pytest.raises(InvalidValue, match="validation_share"):
            schedule(Workload(**asked), training)
        return
    found = schedule(Workload(**asked), training)
    per_step = training.micro_batch_size * training.gradient_accumulation_steps
    assert found.train_examples + found.validation_examples == asked["examples"]
    assert (found.steps_per_epoch - 1) * per_step < found.sequences <= found.steps_per_epoch * per_step
    assert found.steps - 1 < asked["epochs"] * found.steps_per_epoch <= found.steps
    assert 0 <= found.padding_share < 1
    assert found.tokens_per_epoch <= found.sequences * training.seq_len
    assert bool(found.validation_micro_steps) == bool(found.validation_examples)


@given(st.integers(1, 500), st.integers(1, 8), st.integers(1, 8), st.integers(1, 9))
@settings(max_examples=100, deadline=None)
def test_steps_are_linear_in_epochs_and_in_examples_that_fill_them(n: int, micro: int, accum: int, k: int) -> None:
    training = TrainingSpec(micro_batch_size=micro, gradient_accumulation_steps=accum, seq_len=256)
    whole = work(examples=n * micro * accum)
    assert schedule(whole, training).steps == n
    assert schedule(whole.replace(epochs=float(k)), training).steps == k * n
    assert schedule(whole.replace(examples=k * n * micro * accum), training).steps == k * n


@pytest.mark.parametrize(("tokens", "seq_len"), [(100, 400), (512, 512), (700, 512), (3, 1000)])
def test_packing_takes_no_more_sequences_and_leaves_next_to_no_padding(tokens: int, seq_len: int) -> None:
    training = TrainingSpec(seq_len=seq_len)
    packed = schedule(work(tokens_per_example=tokens, packing=True), training)
    assert packed.sequences == math.ceil(1000 * tokens / seq_len)
    assert packed.padding_share < 1 / packed.sequences
    assert packed.tokens_per_epoch == 1000 * tokens
    padded = schedule(work(tokens_per_example=tokens), training)
    assert padded.sequences == 1000
    assert padded.padding_share == pytest.approx(max(0, 1 - tokens / seq_len))
    assert padded.truncated_tokens == max(0, tokens - seq_len)


def test_a_schedule_worked_out_by_hand() -> None:
    """1,003 examples, 10 % apart: 101; 902 in batches of 4: 226; 8 at a time: 29 steps; 2.5 epochs: 73."""
    training = TrainingSpec(micro_batch_size=4, gradient_accumulation_steps=8, seq_len=512)
    found = schedule(work(examples=1003, tokens_per_example=384, epochs=2.5, validation_share=0.1), training)
    assert (found.train_examples, found.validation_examples, found.sequences) == (902, 101, 902)
    assert (found.steps_per_epoch, found.steps) == (29, 73)
    assert found.validation_micro_steps == 3 * 26
    assert found.padding_share == 0.25


def test_the_trainers_own_count_of_steps_is_the_same() -> None:
    """``Trainer.set_initial_training_values`` of the installed transformers, on loaders of many lengths."""
    trainer = pytest.importorskip("transformers.trainer")
    arguments = pytest.importorskip("transformers.training_args")

    class Bare(trainer.Trainer):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            """Without a model."""

        def get_total_train_batch_size(self, args: Any) -> int:
            return 1

        def get_sp_size(self) -> int:
            return 1

        def num_examples(self, dataloader: Any) -> int:
            return len(dataloader)

    for batches, accum, epochs in ((1, 1, 1), (7, 4, 3), (8, 4, 1.5), (901, 16, 2.2), (3, 16, 5)):
        args = arguments.TrainingArguments(num_train_epochs=epochs, gradient_accumulation_steps=accum, use_cpu=True)
        found = Bare().set_initial_training_values(args, [0] * batches)
        training = TrainingSpec(gradient_accumulation_steps=accum, seq_len=256)
        mine = schedule(work(examples=batches, epochs=float(epochs)), training)
        assert found[1] == mine.steps_per_epoch
        assert found[-1] == mine.steps


# -- hours -------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 4000), st.integers(1, 5), st.floats(0.01, 50))
@settings(max_examples=50, deadline=None)
def test_hours_are_steps_times_their_time_and_hold_the_value(n: int, epochs: int, s: float) -> None:
    job = tiny("lora").job
    found = schedule(work(examples=n, epochs=float(epochs)), job.training)
    hours = hours_of(found, GivenStep(s, s / 2, s * 2), job)
    assert hours.value == pytest.approx(n * epochs * s / 3600)
    assert hours.low <= hours.value <= hours.high
    assert hours.high == pytest.approx(4 * hours.low)
    assert hours_of(found, GivenStep(s, s / 2, s * 2), job, overhead_s=36).value == pytest.approx(hours.value + 0.01)


@pytest.mark.parametrize(
    ("method", "checkpointing", "about"),
    [("full", "none", 1 / 3), ("full", "reentrant", 1 / 4), ("lora", "none", 1 / 2), ("qlora", "non_reentrant", 1 / 3)],
)
def test_validation_costs_the_forward_part_of_a_step(method: str, checkpointing: str, about: float) -> None:
    """Two thirds of full training are backward, half of what trains adapters; recomputing adds a forward pass."""
    job = tiny(method, gradient_checkpointing=checkpointing, gradient_accumulation_steps=2).job
    share = forward_share(job)
    assert share == pytest.approx(about, rel=0.15)
    apart = schedule(work(examples=1100, validation_share=1 / 11, epochs=1.0), job.training)
    alone = schedule(work(examples=1000), job.training)
    assert apart.steps == alone.steps
    more = hours_of(apart, STEP, job).value - hours_of(alone, STEP, job).value
    assert more == pytest.approx(100 * share * STEP.s / 2 / 3600)


# -- rates -------------------------------------------------------------------------------------------------------------


def test_a_machine_of_ones_own_costs_its_parts() -> None:
    """30,000 USD over 4 years, half used: 1.711 per working hour; 2 kW at 0.2 USD/kWh and PUE 1.5: 0.60."""
    rate = OwnMachine(
        purchase_usd=30_000.0, lifetime_years=4.0, utilisation=0.5, power_w=2000.0, usd_per_kwh=0.2, pue=1.5,
        idle_power_w=200.0, gpu_count=8,
    ).rate  # fmt: skip
    assert rate.parts["purchase"] == pytest.approx(30_000 / (4 * 8766 * 0.5))
    assert rate.parts["power"] == pytest.approx(0.6)
    assert rate.parts["idle power"] == pytest.approx(0.06)
    assert sum(rate.parts.values()) == rate.usd_per_hour
    assert (rate.gpu_count, rate.as_of, rate.tier) == (8, "as given", "own")


@pytest.mark.parametrize("better", [{"lifetime_years": 5.0}, {"utilisation": 0.9}, {"purchase_usd": 9000.0}])
def test_a_machine_used_longer_or_more_or_bought_for_less_costs_less(better: dict[str, float]) -> None:
    base = {"purchase_usd": 10_000.0, "power_w": 500.0, "usd_per_kwh": 0.3}
    assert OwnMachine(**{**base, **better}).rate.usd_per_hour < OwnMachine(**base).rate.usd_per_hour


def test_an_offer_without_a_date_is_no_rate() -> None:
    undated = next(o for o in SHIPPED if o.as_of is None)
    with pytest.raises(InvalidValue, match="a dated price"):
        offer_rate(undated)


# -- bills -------------------------------------------------------------------------------------------------------------


@given(st.floats(1e-6, 1e4), st.floats(0.01, 100), st.floats(1, 7200), st.floats(0, 7200))
@example(hours=1.0, price=1.0, increment=3916.1875, minimum=3916.1875)
@settings(max_examples=200, deadline=None)
def test_what_is_billed_is_never_less_than_what_is_used_nor_than_the_minimum(
    hours: float, price: float, increment: float, minimum: float
) -> None:
    found = bill(
        Interval(hours / 2, hours, 2 * hours),
        OwnRate(usd_per_hour=price).rate,
        Billing(increment_s=increment, minimum_s=minimum),
    )
    assert found.billed_hours >= hours
    assert found.billed_hours * 3600 >= minimum
    assert found.billed_hours * 3600 <= max(hours * 3600, minimum) + increment * (1 + 1e-9)
    assert found.usd.low <= found.usd.value <= found.usd.high
    assert found.usd.value == pytest.approx(found.billed_hours * price)


@pytest.mark.parametrize(
    ("seconds", "billing", "billed_s"),
    [
        (10, Billing(), 60),
        (60, Billing(), 60),
        (90.2, Billing(), 91),
        (10, Billing(increment_s=3600.0), 3600),
        (3600, Billing(increment_s=3600.0), 3600),
        (3601, Billing(increment_s=3600.0), 7200),
        (7200, Billing(increment_s=60.0, minimum_s=0.0), 7200),
    ],
)
def test_time_is_billed_by_increments(seconds: float, billing: Billing, billed_s: float) -> None:
    assert billing.billed_hours(seconds / 3600) * 3600 == pytest.approx(billed_s)


@given(st.floats(0.1, 100), st.integers(2, 16))
@settings(max_examples=50, deadline=None)
def test_more_gpus_at_the_same_price_each_never_cost_a_job_of_one_gpu_less(price: float, gpus: int) -> None:
    hours = Interval(1.0, 2.0, 3.0)
    one = bill(hours, OwnRate(usd_per_hour=price).rate)
    many = bill(hours, OwnRate(usd_per_hour=price * gpus, gpu_count=gpus).rate)
    assert many.usd.value == pytest.approx(gpus * one.usd.value)
    assert (one.idle_gpus, many.idle_gpus) == (0, gpus - 1)


def test_an_instance_with_fewer_gpus_than_the_run_uses_is_refused() -> None:
    with pytest.raises(InvalidValue, match="at least 2 GPUs"):
        bill(Interval(1, 1, 1), OwnRate(usd_per_hour=1.0).rate, gpus=2)


# -- plans -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", ["a10g", "l4", "a100-sxm-80", "h100-sxm", "rtx-4090"])
def test_the_cheapest_is_the_cheapest_of_its_tier_and_every_offer_is_dated_and_of_the_gpu(gpu: str) -> None:
    found = planned(gpu=gpu)
    mine = [o for o in SHIPPED if o.gpu_id == gpu]
    assert len(found.bills) + found.undated == len(mine)
    for tier in prices.TIERS:
        dated = [o.price_usd_hour for o in mine if o.tier == tier and o.as_of]
        cheapest = found.cheapest(tier)
        assert (cheapest.rate.usd_per_hour if cheapest else None) == min(dated, default=None)
    assert [b.usd.value for b in found.bills] == sorted(b.usd.value for b in found.bills)


@given(st.integers(1, 300), st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_cost_is_linear_in_examples_and_epochs(n: int, k: int) -> None:
    fit = verdict(tiny("lora", gpu="a100-sxm-80"))
    asked = {"offers": SHIPPED, "billing": EXACT, "step": STEP}
    from vramcalc.planning.plan import plan_of

    once = plan_of(fit, work(examples=n), **asked).cheapest()
    epochs = plan_of(fit, work(examples=n, epochs=float(k)), **asked).cheapest()
    examples = plan_of(fit, work(examples=n * k), **asked).cheapest()
    assert once
    assert epochs
    assert examples
    assert epochs.usd.value == pytest.approx(k * once.usd.value)
    assert examples.usd.value == pytest.approx(k * once.usd.value)


def test_ones_own_rate_takes_the_place_of_every_offer() -> None:
    (only,) = planned(rate=OwnRate(usd_per_hour=16.0, gpu_count=8).rate).bills
    assert (only.rate.tier, only.rate.as_of, only.idle_gpus) == ("own", "as given", 7)
    assert only.usd.value == pytest.approx(16 * 2000 / 3600, abs=16 / 3600)


def test_a_job_that_does_not_fit_has_neither_hours_nor_dollars() -> None:
    found = plan("llama-3.1-8b", "full", gpu="t4", work=work(), offers=SHIPPED, measured_step_s=1.0)
    assert (found.hours, found.step, found.bills) == (None, None, ())
    assert "does not fit" in str(found)
    assert found.excess(max_usd=1e6)


def test_a_sequence_is_as_long_as_an_example_unless_said_otherwise() -> None:
    assert planned().verdict.estimate.job.training.seq_len == 256
    longer = planned(seq_len=1024).verdict.estimate.job.training
    assert (longer.seq_len, longer.padded) == (1024, True)
    assert not planned().verdict.estimate.job.training.padded
    assert not planned(seq_len=1024, padded=False).verdict.estimate.job.training.padded
    packed = planned(work=work(packing=True))
    assert packed.verdict.estimate.job.training.seq_len == TrainingSpec().seq_len


def test_a_plan_takes_the_fields_of_its_work_by_name_and_the_current_prices() -> None:
    asked = {"gpu": "a100-sxm-80", "measured_step_s": 2.0}
    by_name = plan(TINY, "lora", examples=1000, tokens_per_example=256, **asked)
    assert by_name.to_dict() == planned(work=work(), **asked).to_dict()
    assert plan(TINY, "lora", work=work(), epochs=2.0, **asked).schedule.steps == 2 * by_name.schedule.steps


def test_examples_that_are_cut_off_are_warned_of() -> None:
    assert any("156 tokens of each example" in w for w in planned(seq_len=100).warnings)


def test_old_prices_are_warned_of_as_seen_from_a_day() -> None:
    assert not any("days old" in w for w in planned().warnings)
    assert any("60 days old" in w for w in planned(today=datetime.date(2026, 11, 22)).warnings)
    # The oldest price of an A100 is of June 2025.
    assert not any("60 days old" in w for w in planned(today=datetime.date(2025, 7, 1)).warnings)


@pytest.mark.parametrize(
    ("limits", "exceeds"),
    [
        ({}, []),
        ({"max_usd": 100.0}, []),
        ({"max_usd": 0.01}, ["more than 0.01 USD"]),
        ({"max_hours": 1.0}, []),
        ({"max_hours": 0.5, "max_usd": 0.01}, ["more than 0.01 USD", "more than 0.5 hours"]),
    ],
)
def test_limits(limits: dict[str, float], exceeds: list[str]) -> None:
    assert planned().excess(**limits) == exceeds


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("examples", 0, "at least 1"),
        ("examples", -5, "at least 1"),
        ("examples", 1.5, "a whole number"),
        ("examples", NAN, "a whole number"),
        ("tokens_per_example", 0, "at least 1"),
        ("epochs", 0.0, "more than 0"),
        ("epochs", -1.0, "more than 0"),
        ("epochs", NAN, "a finite number"),
        ("epochs", INF, "a finite number"),
        ("validation_share", 1.0, "less than 1"),
        ("validation_share", -0.1, "at least 0"),
        ("validation_share", NAN, "a finite number"),
        ("packing", "yes", "True or False"),
    ],
)
def test_a_workload_that_is_none_is_refused(field: str, value: Any, expected: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        work(**{field: value})
    assert str(caught.value).startswith(f"{field} = {value!r}: expected {expected}")


@pytest.mark.parametrize("step", [0, -1, NAN, INF])
def test_a_measured_step_that_is_no_time_is_refused(step: float) -> None:
    with pytest.raises(InvalidValue, match="measured_step_s"):
        planned(measured_step_s=step)


@pytest.mark.parametrize(("value", "field"), [(-1.0, "usd_per_hour"), (0.0, "usd_per_hour"), (NAN, "usd_per_hour")])
def test_a_rate_below_zero_or_none_is_refused(value: float, field: str) -> None:
    with pytest.raises(InvalidValue, match=field):
        OwnRate(usd_per_hour=value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("purchase_usd", -1.0),
        ("lifetime_years", 0.0),
        ("utilisation", 0.0),
        ("utilisation", 1.1),
        ("power_w", -5.0),
        ("usd_per_kwh", NAN),
        ("pue", 0.9),
        ("gpu_count", 0),
    ],
)
def test_a_machine_that_is_none_is_refused(field: str, value: float) -> None:
    base = {"purchase_usd": 1000.0, "power_w": 500.0, "usd_per_kwh": 0.3}
    with pytest.raises(InvalidValue, match=field):
        OwnMachine(**{**base, field: value})


@pytest.mark.parametrize("bounds", [(1, 0, 2), (0, 3, 2), (NAN, 1, 2), (0, INF, INF)])
def test_an_interval_holds_its_value(bounds: tuple[float, float, float]) -> None:
    with pytest.raises(InvalidValue, match="low <= value <= high"):
        Interval(*bounds)


GOOD = "plan qwen2.5-0.5b --gpu l4 --examples 100 --tokens-per-example 64 --measured-step-s 0.5"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("--examples 0", "examples = 0: expected at least 1"),
        ("--examples many", "--examples = 'many': expected a whole number"),
        ("--examples nan", "--examples = 'nan': expected a whole number"),
        ("--epochs nan", "epochs = nan: expected a finite number"),
        ("--validation-share 1", "validation_share = 1.0: expected less than 1"),
        ("--validation-share 0.999", "validation_share = 0.999: expected to leave one of 100"),
        ("--price -1", "usd_per_hour = -1.0: expected more than 0"),
        ("--price nan", "usd_per_hour = nan: expected a finite number"),
        ("--price 1 --instance-gpus 0", "gpu_count = 0: expected at least 1"),
        ("--instance-gpus 8", "expected a --price or a --purchase-usd to go with it"),
        ("--price 1 --power-w 100", "expected no --power-w beside it"),
        ("--power-w 100", "--purchase-usd = None: expected a number to go with --power-w"),
        ("--measured-step-s 0", "measured_step_s = 0.0: expected a positive number of seconds"),
        ("--measured-step-s nan", "measured_step_s = nan: expected a positive number of seconds"),
        ("--overhead-minutes -1", "overhead_s = -60.0: expected a time of at least 0"),
        ("--max-budget-usd 0", "max_budget_usd = 0.0: expected a number above 0"),
        ("--max-hours nan", "max_hours = nan: expected a number above 0"),
        ("--increment-s 0", "increment_s = 0.0: expected more than 0"),
        ("--gpu l44", "no GPU named 'l44'; did you mean"),
        ("--provider awz", "no provider named 'awz'; did you mean 'aws'"),
        ("--tier reserved", "tier = 'reserved': expected on_demand or spot"),
        ("--price-table none.csv", "none.csv: No such file"),
        ("--seq-lens 64,128", "seq_lens = (64, 128): expected one length"),
    ],
)
def test_bad_input_is_status_2_and_one_line(change: str, says: str) -> None:
    answer = run(*GOOD.split(), *change.split())
    assert (answer.status, answer.out) == (2, "")
    assert says in answer.err
    assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize("missing", ["--examples 100 ", "--tokens-per-example 64 "])
def test_what_a_plan_needs_is_asked_for(missing: str) -> None:
    answer = run(*GOOD.replace(missing, "").split())
    assert answer.status == 2
    assert f"{missing.split()[0]} = None: expected a number" in answer.err


def test_a_price_that_was_worked_out_from_another_and_offers_left_out_are_named() -> None:
    text = run(*GOOD.split(), "--gpu", "a10g").out
    derived = {o.label for o in SHIPPED if o.gpu_id == "a10g" and o.kind == "derived"}
    assert derived
    assert {line.split("  ")[-1].strip() for line in text.splitlines() if line.endswith(", derived")} <= {
        f"{label}, derived" for label in derived
    }
    assert text.count(", derived") == len(derived)
    undated = sum(o.as_of is None for o in SHIPPED if o.gpu_id == "h100-sxm")
    assert f"no date: {undated}" in " ".join(run(*GOOD.split(), "--gpu", "h100-sxm").out.split())


def test_the_defaults_that_the_help_names_are_those_of_the_specs() -> None:
    specs = {n: f for spec in (Workload, OwnMachine, Billing) for n, f in spec.model_fields.items()}
    told = {n: f.default for n, f in specs.items() if not f.is_required() and n not in ("packing", "gpu_count")}
    assert told == DEFAULTS
    text = " ".join(run("plan", "--help").out.split())
    for name, value in told.items():
        assert re.search(rf"--{name.replace('_', '-')} <float> [^\[]*\[default: {value:g}\]", text), name


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ("", 0),
        ("--max-budget-usd 5", 0),
        ("--max-hours 1", 0),
        ("--max-budget-usd 0.001", 1),
        ("--max-hours 0.001", 1),
        ("--gpu-memory 1GiB", 1),
    ],
)
def test_the_exit_status_says_whether_it_fits_and_stays_within_limits(change: str, status: int) -> None:
    assert run(*GOOD.split(), *change.split()).status == status
    assert run(*GOOD.split(), *change.split(), "--json").status == status


def test_json_and_text_say_the_same() -> None:
    words = [*GOOD.split(), "--epochs", "3", "--validation-share", "0.2", "--price", "1.99", "--instance-gpus", "8"]
    answer, text = json.loads(run(*words, "--json").out), run(*words).out
    assert answer["schedule"]["steps"] == 240
    assert answer["schedule"]["validation_micro_steps"] == 60
    assert f"{answer['schedule']['steps']:,}: 3 x 80" in text
    assert human_hours(answer["hours"]["value"]) in text
    own = answer["cheapest"]["own"]
    assert usd(own["usd"]["value"]) in text
    assert (own["idle_gpus"], own["rate"]["parts"]) == (7, {"rent": 1.99})
    assert "8, 7 idle" in text
    assert answer["cheapest"]["spot"] is None


def test_every_dollar_has_a_date_and_lines_fit_a_hundred_columns() -> None:
    text = run(*GOOD.split(), "--gpu", "h100-sxm").out
    assert max(map(len, text.splitlines())) <= 100
    priced = [line for line in text.splitlines() if "NVIDIA" in line or "us-" in line]
    assert len(priced) >= 8
    assert all("2026-" in line or "2025-" in line for line in priced)


@pytest.mark.parametrize(
    ("hours", "shown"),
    [(1e-5, "0.04 s"), (0.01, "36 s"), (0.5, "30 min"), (2.0, "2.0 h"), (30, "30 h"), (96, "4.0 days")],
)
def test_hours_as_people_say_them(hours: float, shown: str) -> None:
    assert human_hours(hours) == shown


def test_errors_are_the_packages_own() -> None:
    for call in (lambda: planned(gpu="nope"), lambda: planned(work=work(), seq_len=0), lambda: planned(rank=0)):
        with pytest.raises(VramcalcError):
            call()
    with pytest.raises(UnknownName, match="nope"):
        planned(gpu="nope")
    assert Rate(1.0, 1, "x", "own", "as given").to_dict()["offer"] is None


# -- the other methods -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_plan_compares_its_step_with_those_of_the_other_methods(method: str) -> None:
    """On the same tokens, and with the same adapters where both have them."""
    found = planned(method=method, measured_step_s=None)
    assert {r.methods[0] for r in found.ratios} == {"full", "lora", "qlora"} - {method}
    assert all(r.methods[1] == method and r.low < r.ratio < r.high for r in found.ratios)
    other = planned(method=found.ratios[0].methods[0], measured_step_s=None)
    assert found.step is not None
    assert other.step is not None
    assert found.ratios[0].ratio == pytest.approx(other.step.s / found.step.s)
    assert found.to_dict()["step_ratios"] == [r.to_dict() for r in found.ratios]
    assert str(found.ratios[0]) in " ".join(str(found).split())


def test_a_plan_that_does_not_fit_compares_nothing() -> None:
    assert plan("llama-3.1-70b", "full", gpu="l4", work=work(), offers=SHIPPED).ratios == ()
