"""Verdicts, remedies and the largest that fits: each holds against an estimate made from scratch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from vramcalc import Estimate, Gpu, ModelSpec, Verdict, estimate, fit, max_micro_batch_size, max_seq_len, verdict
from vramcalc.errors import DoesNotFit, InvalidValue, UnknownName, Unsupported
from vramcalc.inputs.alloc_conf import AllocatorSettings
from vramcalc.inputs.stack import QLoRA, Stack
from vramcalc.memory.calibration.file import current
from vramcalc.planning.largest import LOOKS, NEAR, STEP, Largest
from vramcalc.planning.remedies import Remedy, first_that_fits
from vramcalc.planning.verdict import SAFE
from vramcalc.units import GIB, MIB

MODEL = ModelSpec(
    name="small",
    model_type="llama",
    hidden_size=512,
    intermediate_size=1376,
    num_hidden_layers=3,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=64,
    vocab_size=8000,
    max_position_embeddings=2048,
)
METHODS = ("full", "lora", "qlora")
ORDER = ("does not fit", "tight", "fits")


def gpu(total_bytes: int, **fields: Any) -> Gpu:
    """A device of any size."""
    known = {"gpu_id": "any", "name": "any", "architecture": "Ampere", "compute_capability": "8.0"}
    return Gpu(**{**known, "total_bytes": total_bytes, "total_basis": "given", **fields})


@cache
def job(method: str = "lora", **settings: Any) -> Estimate:
    return estimate(MODEL, method, **{"seq_len": 512, "gpu": gpu(80 * GIB), **settings})


def judged(total_bytes: int, method: str = "lora", **settings: Any) -> Verdict:
    return verdict(job(method, **settings), gpu(total_bytes))


# -- verdicts ----------------------------------------------------------------------------------------------------------


@given(st.sampled_from(METHODS), st.lists(st.integers(500, 1200), min_size=2, max_size=6))
@hypothesis_settings(max_examples=40, deadline=None)
def test_more_memory_never_makes_a_worse_verdict(method: str, per_mille: list[int]) -> None:
    needed = job(method).process_bytes
    ranks = [ORDER.index(judged(needed * n // 1000, method).status) for n in sorted(per_mille)]
    assert ranks == sorted(ranks)


def test_every_verdict_is_met_as_memory_shrinks() -> None:
    needed = job().process_bytes
    sizes = [needed * percent // 100 for percent in range(400, 40, -2)]
    met = [status for status, before in pairwise([judged(n).status for n in sizes] + [""]) if status != before]
    assert met == list(reversed(ORDER))


@given(st.sampled_from(METHODS), st.integers(1, 2 * GIB), st.none() | st.integers(0, 2 * GIB))
@hypothesis_settings(max_examples=60, deadline=None)
def test_headroom_is_what_can_be_used_less_what_is_needed(method: str, total: int, free: int | None) -> None:
    found = verdict(job(method), gpu(total, free_bytes=free))
    assert found.usable_bytes == (total if free is None else free)
    assert found.needed_bytes == found.estimate.process_bytes
    assert found.headroom_bytes == found.usable_bytes - found.needed_bytes
    assert found.to_dict(remedies=False)["headroom_bytes"] == found.headroom_bytes


@pytest.mark.parametrize("method", METHODS)
def test_only_what_is_left_over_is_called_to_spare(method: str) -> None:
    needed = job(method).process_bytes
    assert judged(needed, method).reason == "only 0.00 GiB to spare"
    assert "to spare" not in judged(needed - 1, method).reason


def test_of_a_detected_gpu_only_what_is_free_counts() -> None:
    needed = job().process_bytes
    busy, idle = gpu(80 * GIB, free_bytes=needed // 2), gpu(80 * GIB, free_bytes=5 * needed)
    assert [verdict(job(), device).status for device in (busy, idle)] == ["does not fit", "fits"]


@pytest.mark.parametrize("method", METHODS)
def test_what_is_less_than_sure_is_tight(method: str) -> None:
    """The upper end of the 90 % interval is what 95 % of runs stay below."""
    high = judged(GIB, method).estimate.interval("process", 2 * SAFE - 1).high
    sure, less = judged(int(high) + MIB, method), judged(int(high) - MIB, method)
    assert (sure.status, less.status) == ("fits", "tight")
    assert sure.probability >= SAFE - 1e-6 > less.probability_as_is
    assert less.probability >= less.probability_as_is


@given(st.sampled_from(METHODS), st.lists(st.integers(500, 2000), min_size=2, max_size=5))
@hypothesis_settings(max_examples=40, deadline=None)
def test_more_memory_never_lowers_the_probability(method: str, per_mille: list[int]) -> None:
    needed = job(method).process_bytes
    found = [judged(needed * n // 1000, method).probability for n in sorted(per_mille)]
    assert found == sorted(found)
    assert all(0 <= p <= 1 for p in found)


@pytest.mark.parametrize("expandable", [False, True])
def test_what_fits_only_as_torch_gives_cached_memory_back_is_tight(expandable: bool) -> None:
    found = job("lora", stack="trl-sft", expandable_segments=expandable)
    context = found.context.n_bytes
    statuses = {}
    for room in range(found.allocated_bytes, found.reserved_bytes, MIB):
        under_pressure = verdict(found, gpu(room + context))
        try:
            found.walks.replay(AllocatorSettings(expandable_segments=expandable, limit_bytes=room))
            expected = "tight"
        except DoesNotFit:
            expected = "does not fit"
        assert under_pressure.status == expected
        assert under_pressure.headroom_bytes < 0
        statuses[expected] = under_pressure.reason
    assert "gives cached memory back" in statuses["tight"]
    assert "fragmentation" in statuses["does not fit"]


def test_live_tensors_alone_that_are_too_many_do_not_fit() -> None:
    found = job()
    barely_too_small = verdict(found, gpu(found.allocated_bytes + found.context.n_bytes - 1))
    assert barely_too_small.status == "does not fit"
    assert "fragmentation" not in barely_too_small.reason


def test_a_verdict_takes_the_estimate_to_the_gpu_it_is_asked_about() -> None:
    found = verdict(job(), "t4")
    assert found.estimate.job.compute_capability == (7, 5)
    assert found.needed_bytes == estimate(MODEL, "lora", seq_len=512, gpu="t4").process_bytes
    found = verdict(job(), "a100-sxm-80")
    assert found.estimate.walks is job().walks
    assert found.estimate.gpu == found.gpu
    turing = verdict(job(), gpu(GIB, architecture="Turing"))
    assert turing.needed_bytes == job().reserved_bytes + current().context("Turing").n_bytes < job().process_bytes


def test_a_verdict_needs_a_gpu() -> None:
    with pytest.raises(InvalidValue, match="gpu = None: expected a GPU to hold the estimate against; name one"):
        verdict(estimate(MODEL, seq_len=512))


# -- remedies ----------------------------------------------------------------------------------------------------------

HUNGRY: tuple[dict[str, Any], ...] = (
    {"method": "full", "micro_batch_size": 6, "attn_implementation": "eager"},
    {"method": "full", "optim": "adamw_torch", "seq_len": 16},
    {"method": "full", "optim": "adamw_torch_loop", "sdpa_kernel": "math"},
    {"method": "full", "optim": "lion_32bit"},
    {"method": "full", "optim": "sgd_momentum", "gradient_checkpointing": "reentrant"},
    {"method": "lora", "micro_batch_size": 4, "stack": "trl-sft"},
    {"method": "lora", "stack": "peft-loop", "rank": 64, "target_modules": ["q_proj", "v_proj"]},
    {"method": "qlora", "micro_batch_size": 3, "stack": "pure-bf16-loop"},
    {"method": "qlora", "stack": "trl-sft", "bnb_4bit_quant_type": "fp4"},
)
"""Jobs that leave something to save."""

named = pytest.mark.parametrize("number", range(len(HUNGRY)), ids=[" ".join(map(str, s.values())) for s in HUNGRY])


def short_of_memory(settings: dict[str, Any], share: float = 0.7) -> Verdict:
    """A verdict on a GPU that leaves a share of what the allocator would reserve."""
    found = estimate(MODEL, gpu=gpu(80 * GIB), **{"seq_len": 512, **settings})
    return verdict(found, gpu(found.context.n_bytes + int(found.reserved_bytes * share)))


@cache
def hungry(number: int) -> Verdict:
    return short_of_memory(HUNGRY[number])


def again(settings: dict[str, Any], remedy: Remedy, device: Gpu) -> Verdict:
    """The changed job, by the public interface and from the user's settings on."""
    return verdict(estimate(MODEL, gpu=device, **{"seq_len": 512, **settings, **remedy.settings}))


@named
def test_a_remedy_saves_what_estimating_again_says(number: int) -> None:
    found, settings = hungry(number), HUNGRY[number]
    own = {n: v for n, v in settings.items() if n not in QLoRA.model_fields}
    assert found.remedies
    for remedy in found.remedies:
        kept = own if remedy.settings.get("method") == "lora" else settings
        changed = again(kept, remedy, found.gpu)
        assert remedy.needed_bytes == changed.needed_bytes
        assert remedy.saves_bytes == found.needed_bytes - changed.needed_bytes > 0
        assert remedy.status == changed.status


@named
def test_remedies_are_listed_once_and_with_the_least_intrusive_first(number: int) -> None:
    found = hungry(number)
    singles = [r.change for r in found.remedies if ", " not in r.change or r.change.startswith("micro batch")]
    assert len(set(singles)) == len(singles)
    assert [intrusion(change) for change in singles] == sorted(intrusion(change) for change in singles)


def test_remedies_come_in_the_same_order_each_time() -> None:
    found = hungry(0)
    assert verdict(found.estimate, found.gpu).remedies == found.remedies


KINDS = (
    "expandable_segments",
    "fused optimizer",
    "SDPA attention",
    "fused attention kernel",
    "fused linear loss",
    "gradient checkpointing",
    "micro batch",
    "8-bit optimizer",
    "paged 8-bit optimizer",
    "bf16 weights",
    "sequences of",
    "LoRA",
    "QLoRA",
)


def intrusion(change: str) -> int:
    return next(n for n, kind in enumerate(KINDS) if change.startswith(kind))


def test_every_kind_of_remedy_is_found_somewhere() -> None:
    found = {intrusion(r.change) for number in range(len(HUNGRY)) for r in hungry(number).remedies}
    assert [KINDS[n] for n in sorted(found)] == list(KINDS)


@named
def test_no_remedy_leads_back_to_the_job(number: int) -> None:
    found = hungry(number)
    before = found.estimate.job
    for remedy in found.remedies:
        for name, value in remedy.settings.items():
            part = next((p for p in (before.training, before.stack) if name in type(p).model_fields), None)
            assert (before.method.kind if part is None else getattr(part, name)) != value
    if before.method.kind == "qlora":
        assert not [r for r in found.remedies if "LoRA" in r.change]


@named
def test_a_smaller_micro_batch_keeps_the_batch(number: int) -> None:
    found = hungry(number)
    before = found.estimate.job.training
    smaller = [r.settings for r in found.remedies if "micro_batch_size" in r.settings]
    assert bool(smaller) == (before.micro_batch_size > 1)
    for change in smaller:
        batch = change["micro_batch_size"] * change["gradient_accumulation_steps"]
        assert batch == before.micro_batch_size * before.gradient_accumulation_steps


def test_the_shorter_sequence_is_the_longest_that_fits() -> None:
    found = short_of_memory({"method": "lora"})
    (shorter,) = [r for r in found.remedies if set(r.settings) == {"seq_len"}]
    longer = replace(shorter, settings={"seq_len": shorter.settings["seq_len"] + 1})
    assert shorter.status != "does not fit"
    assert again({"method": "lora"}, longer, found.gpu).status == "does not fit"


@named
def test_the_first_that_fits_is_the_first_of_the_remedies_that_does(number: int) -> None:
    found = hungry(number)
    expected = next((r for r in found.remedies if r.status != "does not fit"), None)
    assert first_that_fits(found) == expected
    assert expected


def test_where_nothing_is_enough_no_remedy_is_called_the_first_that_fits() -> None:
    found = short_of_memory({"method": "qlora"}, share=0.1)
    assert found.remedies
    assert first_that_fits(found) is None
    assert not [r for r in found.remedies if r.status != "does not fit"]


def test_a_change_that_does_not_go_with_the_rest_is_left_out() -> None:
    settings = {"method": "lora", "target_modules": ["q_proj", "lm_head"]}
    with pytest.raises(Unsupported):
        estimate(MODEL, seq_len=512, loss="fused_linear", **settings)
    found = short_of_memory(settings)
    assert len(found.remedies) > 3
    assert not [r for r in found.remedies if "loss" in r.settings]
    assert [r for r in found.remedies if len(r.settings) > 2]


def test_a_batch_beyond_what_can_be_accumulated_is_left_out() -> None:
    found = short_of_memory({"method": "lora", "micro_batch_size": 8, "gradient_accumulation_steps": 1 << 20})
    assert found.remedies
    assert not [r for r in found.remedies if "micro_batch_size" in r.settings]


def test_frozen_weights_stay_float32_where_the_gpu_has_no_bfloat16() -> None:
    found = verdict(
        estimate(MODEL, "lora", dtype="float32", autocast=None, gpu="t4"), gpu(GIB, compute_capability="7.5")
    )
    assert found.remedies
    assert not [r for r in found.remedies if "dtype" in r.settings]


def test_what_fits_needs_no_remedies() -> None:
    assert verdict(job(), gpu(80 * GIB)).to_dict()["remedies"] == []


# -- fit ---------------------------------------------------------------------------------------------------------------


def test_fit_goes_through_methods_and_gpus_in_order() -> None:
    devices = ["t4", gpu(GIB), "l4", gpu(3 * GIB)]
    found = fit(MODEL, gpus=devices, methods=("qlora", "full"), seq_len=64)
    expected = [(method, device) for method in ("qlora", "full") for device in devices]
    assert [(v.estimate.job.method.kind, v.gpu.gpu_id) for v in found] == [
        (method, device if isinstance(device, str) else device.gpu_id) for method, device in expected
    ]
    for (method, device), v in zip(expected, found, strict=True):
        alone = verdict(estimate(MODEL, method, gpu=device, seq_len=64))
        assert v.to_dict(remedies=False) == alone.to_dict(remedies=False)
        assert v.estimate.warnings == alone.estimate.warnings


def test_fit_tries_every_method_unless_told() -> None:
    assert [v.estimate.job.method.kind for v in fit(MODEL, gpus=["t4"], seq_len=64)] == list(METHODS)


def test_settings_of_a_method_go_to_the_methods_that_have_them() -> None:
    full, lora, qlora = (v.estimate.job.method for v in fit(MODEL, gpus=["t4"], rank=3, bnb_4bit_quant_type="fp4"))
    assert not hasattr(full, "rank")
    assert (lora.rank, hasattr(lora, "bnb_4bit_quant_type")) == (3, False)
    assert (qlora.rank, qlora.bnb_4bit_quant_type) == (3, "fp4")


@pytest.mark.parametrize(
    "given",
    [{"methods": ("lore",)}, {"methods": ("full",), "rank": 4}, {"gpus": ["rtx-9999"]}, {"seq_length": 4}],
    ids=str,
)
def test_fit_refuses_names_that_mean_nothing(given: dict[str, Any]) -> None:
    with pytest.raises(UnknownName):
        fit(MODEL, **{"gpus": ["t4"], **given})


# -- the largest -------------------------------------------------------------------------------------------------------

SEARCHES = {"micro_batch_size": max_micro_batch_size, "seq_len": max_seq_len}
search = pytest.mark.parametrize("setting", SEARCHES)


def largest(setting: str, device: Gpu, method: str = "lora", **settings: Any) -> Largest:
    usual = {} if setting == "seq_len" else {"seq_len": 128}
    return SEARCHES[setting](MODEL, method, gpu=device, **{**usual, **settings})


def at(setting: str, value: int, device: Gpu, method: str = "lora", **settings: Any) -> Verdict:
    usual = {} if setting == "seq_len" else {"seq_len": 128}
    return verdict(estimate(MODEL, method, gpu=device, **{**usual, **settings, setting: value}))


@search
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "settings", [{}, {"gradient_checkpointing": "non_reentrant", "expandable_segments": True}], ids=str
)
def test_the_largest_fits_and_one_more_does_not(setting: str, method: str, settings: dict[str, Any]) -> None:
    device = gpu(3 * GIB)
    found = largest(setting, device, method, limit=1 << 15, **settings)
    assert found.verdict.to_dict() == at(setting, found.value, device, method, **settings).to_dict()
    assert found.verdict.status != "does not fit"
    assert at(setting, found.value + 1, device, method, **settings).status == "does not fit"
    assert found.limited_by == "memory"
    assert found.comfortable is not None
    assert found.comfortable <= found.value
    assert at(setting, found.comfortable, device, method, **settings).status == "fits"
    if found.comfortable < found.value:
        assert at(setting, found.comfortable + 1, device, method, **settings).status != "fits"


@search
def test_the_limit_is_kept(setting: str) -> None:
    found = largest(setting, gpu(80 * GIB), limit=7)
    assert (found.value, found.comfortable, found.limited_by) == (7, 7, "limit")


def test_without_a_limit_a_length_ends_where_the_model_does() -> None:
    found = largest("seq_len", gpu(80 * GIB))
    assert (found.value, found.limited_by) == (MODEL.max_position_embeddings, "max_position_embeddings")
    assert not found.verdict.estimate.warnings


@search
def test_a_tight_fit_without_a_comfortable_one_says_so(setting: str) -> None:
    device = gpu(at(setting, 1, gpu(GIB)).needed_bytes)
    found = largest(setting, device)
    assert (found.value >= 1, found.comfortable, found.verdict.status) == (True, None, "tight")


@search
def test_where_not_even_one_fits_there_is_no_largest(setting: str) -> None:
    with pytest.raises(DoesNotFit, match=rf"even {setting} 1 does not fit any: 0\.\d\d GiB needed, 0\.10 GiB usable"):
        largest(setting, gpu(GIB // 10))


@search
def test_what_is_searched_for_cannot_be_given(setting: str) -> None:
    with pytest.raises(InvalidValue, match=rf"{setting} = 4: expected no value.*use limit="):
        largest(setting, gpu(GIB), **{setting: 4})


@search
@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "8", float("nan")])
def test_a_limit_is_a_whole_number_from_one_on(setting: str, limit: Any) -> None:
    with pytest.raises(InvalidValue, match=r"limit = .*: expected a whole number, at least 1"):
        largest(setting, gpu(GIB), limit=limit)


@search
def test_what_is_free_bounds_the_search(setting: str) -> None:
    whole, busy = gpu(GIB), gpu(80 * GIB, free_bytes=GIB)
    assert largest(setting, whole).value == largest(setting, busy).value


def test_the_recipe_moves_the_largest() -> None:
    less = largest("seq_len", gpu(GIB), limit=1 << 12)
    more = largest("seq_len", gpu(GIB), limit=1 << 12, stack=Stack(autocast="bfloat16", loss="fused_linear"))
    assert more.value > less.value


@pytest.mark.parametrize("method", METHODS)
def test_of_a_small_range_the_largest_is_what_trying_every_value_finds(method: str) -> None:
    device = gpu(GIB)
    found = largest("micro_batch_size", device, method, limit=24)
    fitting = [n for n in range(1, 25) if at("micro_batch_size", n, device, method).status != "does not fit"]
    assert found.value == max(fitting)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_that_is_promised_not_to_fit_does(method: str) -> None:
    device = gpu(GIB)
    found = largest("seq_len", device, method)
    first = (found.value // STEP + 1) * STEP
    above = [*range(found.value + 1, found.value + NEAR + 1), *range(first, first + LOOKS * STEP, STEP)]
    within = [n for n in above if n <= MODEL.max_position_embeddings]
    assert not [n for n in within if at("seq_len", n, device, method).status != "does not fit"]
    assert str(LOOKS) in found.to_dict()["guarantee"]


def test_the_search_goes_on_above_a_length_that_does_not_fit() -> None:
    asked = {"method": "qlora", "gpu": "rtx-4090", "limit": 5600}
    found = max_seq_len("llama-3.2-1b", **asked)  # type: ignore[arg-type]
    assert found.value >= 5382
    between = estimate("llama-3.2-1b", "qlora", gpu="rtx-4090", seq_len=5200)
    assert verdict(between).status == "does not fit"
