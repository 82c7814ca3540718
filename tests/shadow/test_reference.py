"""Estimates against traces of the real libraries that were taken once and are kept in ``tables/traces.csv``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cache
from itertools import product
from typing import get_args

import pytest
from reference import covered

from vramcalc.accuracy.traces.accuracy import RESERVED_TOLERANCE, Compared
from vramcalc.accuracy.traces.table import TracedRow, read_traces
from vramcalc.inputs import releases
from vramcalc.inputs.families import FAMILIES, Family
from vramcalc.inputs.families.common import Trait
from vramcalc.inputs.job import Job
from vramcalc.inputs.releases import RELEASES, Release, minor_release, release_of
from vramcalc.inputs.torch_releases import TORCH_RELEASES
from vramcalc.memory.estimate import estimate_job
from vramcalc.memory.walks import walks_of

ROWS = read_traces()
JOBS = [row.job for row in ROWS]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.trace_id)
def test_allocated_and_reserved_are_those_of_the_trace(row: TracedRow) -> None:
    found = estimate_job(row.job)
    traced = row.allocated_bytes, row.reserved_bytes
    compared = Compared(row, (found.allocated_bytes, found.walks.from_loaded.peak_reserved_bytes), traced)
    assert compared.status == ("explained" if row.explanation else "agrees"), compared.errors


def test_there_are_as_many_rows_as_promised() -> None:
    """200 configurations, ten at the full depth of a released model, up to 70B."""
    assert len(ROWS) >= 200
    full_depth = [job for job in JOBS if job.model.num_hidden_layers >= 16]
    assert len(full_depth) >= 10
    assert max(job.model.params_total for job in full_depth) > 70e9


def test_every_pair_of_settings_has_a_row() -> None:
    assert covered.missing(JOBS) == []


def test_every_combination_of_family_method_checkpointing_and_attention_has_a_row() -> None:
    assert covered.missing_core(JOBS) == []


@pytest.mark.parametrize("what", covered.LOOPS)
def test_what_raw_loops_do_has_rows(what: str) -> None:
    jobs = [job for job in JOBS if covered.LOOPS[what](job)]
    assert {job.method.kind for job in jobs} >= {"full", "lora", "qlora"}
    assert len({job.model.model_type for job in jobs}) >= 4
    assert len({job.training.gradient_checkpointing for job in jobs}) == 3


def test_a_pair_without_a_row_is_noticed() -> None:
    without = [job for job in JOBS if job.training.optim != "lion_8bit"]
    assert (("method", "qlora"), ("optimizer", "lion_8bit")) in covered.missing(without)
    assert ("qwen3", "qlora", "none", "eager") in covered.missing_core(
        [j for j in JOBS if (j.model.model_type, j.method.kind) != ("qwen3", "qlora")]
    )


# -- releases ----------------------------------------------------------------------------------------------------------


ELSEWHERE = {"warms_up", "projects_first", "fuses_experts", "lists_tokens", "always_masks", "without_sdpa"}
"""Traits of reserved memory, whose witnesses are measured; of a mixture of experts (test_mixtral.py); of jobs that are
refused (test_releases.py)."""


def flips() -> Iterator[tuple[Release, str]]:
    """Every release and one of its traits, or of what a family does in it, to be turned round."""
    for release in RELEASES:
        yield from ((release, field.name) for field in fields(Release)[2:] if field.name not in ELSEWHERE)
        for trait, name in product(get_args(Trait), ("llama", "mistral", "qwen2")):
            family = FAMILIES[name]
            tables = {t for t in ("cached_rotary", "idle_tables") if family.has(t, release)}
            # There are tables already.
            idle = trait in ("cached_rotary", "idle_tables") and tables - {trait}
            if trait not in ELSEWHERE and family.since <= release.since and not idle:
                yield release, f"{trait} {name}"


@dataclass(frozen=True)
class Turned(Family):
    """A family with one trait turned round in one release."""

    turned: tuple[str, Release | None] = ("", None)

    def has(self, trait: Trait, release: Release) -> bool:
        return super().has(trait, release) ^ (self.turned == (trait, release))


def turn_round(monkeypatch: pytest.MonkeyPatch, release: Release, what: str) -> None:
    trait, _, family = what.partition(" ")
    if family:
        said = {field.name: getattr(FAMILIES[family], field.name) for field in fields(Family)}
        monkeypatch.setitem(FAMILIES, family, Turned(**said, turned=(trait, release)))
        return
    other = replace(release, **{trait: not getattr(release, trait)})
    monkeypatch.setattr(releases, "RELEASES", tuple(other if r == release else r for r in RELEASES))


def of(release: Release) -> list[TracedRow]:
    return [row for row in ROWS if release_of(minor_release(row.job.stack.transformers) or (0, 0)) == release]


def name(release: Release) -> str:
    return ".".join(map(str, release.since))


@cache
def off_by(row: TracedRow) -> int:
    """How far the allocated peak is from that of the trace. [B]"""
    return abs(estimate_job(row.job).allocated_bytes - row.allocated_bytes)


WITHOUT_EFFECT = {
    # No cache is filled.
    ("4.43", "copies_into_cache"),
    ("4.43", "legacy_cache"),
    # What is copied dies where the copies take its place.
    *((f"4.{minor}", "copies_into_cache") for minor in range(36, 43)),
    # SDPA is given no mask, and one for eager attention is no larger than the other.
    *((f"4.{minor}", "additive_mask") for minor in range(36, 42)),
    # Mistral has no SDPA, or no row is as long as its window.
    *((release, "ignores_window") for release in ("4.36", "4.48", "4.49", "4.50", "4.53", "4.54", "4.56")),
    # Packed sequences are looked for since masks are boolean.
    *((f"4.{minor}", "packs_unmasked") for minor in range(36, 43)),
    *((since, "packs_unmasked") for since in ("4.43", "4.45", "4.46", "4.48", "4.49", "4.50")),
}
"""Traits that change nothing, whatever the job, beside the others of their release."""


@pytest.mark.parametrize(
    ("release", "trait"), [pytest.param(*flip, id=f"{name(flip[0])}-{flip[1]}") for flip in flips()]
)
def test_a_release_with_one_trait_turned_round_disagrees_with_its_traces(
    release: Release, trait: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(row, off_by(row)) for row in of(release)]
    turn_round(monkeypatch, release, trait)
    walks_of.cache_clear()
    try:
        disagrees = any(off_by.__wrapped__(row) > before + 512 for row, before in rows)
    finally:
        walks_of.cache_clear()
    assert disagrees != ((name(release), trait) in WITHOUT_EFFECT)


def attends(job: Job) -> str:
    ops = {birth.op for birth in estimate_job(job).walks.written_out[0].births}
    return next(
        (kernel for kernel, op in (("math", "safe_softmax"), ("efficient", "efficient attention")) if op in ops), ""
    )


def test_each_release_of_torch_has_traces_and_only_grouped_heads_tell_them_apart() -> None:
    """Where flash cannot run, the math kernel takes them until 2.13, and memory-efficient attention from 2.14 on."""
    assert {"{}.{}".format(*r.release) for r in TORCH_RELEASES} == {job.stack.torch for job in JOBS}
    moved = set()
    for row in ROWS:
        stack = row.job.stack
        if (stack.torch, stack.sdpa_kernel) == ("2.14", "auto") and row.job.model.head_dim <= 128:
            older = replace(row.job, stack=stack.replace(torch="2.13", cuda=None))
            reserved = estimate_job(older).walks.from_loaded.peak_reserved_bytes
            if abs(reserved / row.reserved_bytes - 1) > RESERVED_TOLERANCE:
                moved.add((attends(older), attends(row.job)))
    assert moved == {("math", "efficient")}
