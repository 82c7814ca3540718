"""The curve of a step is the sequence of its allocations and frees, and agrees with all that is derived from it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import METHODS, SETTINGS, TINY, tiny

from vramcalc import estimate
from vramcalc.memory.ledger import GROUPS, SCENE
from vramcalc.memory.timeline import Part, Timeline


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=60, deadline=None)
def test_the_highest_point_is_the_peak_and_its_groups_are_the_ledgers(settings: dict[str, Any], method: str) -> None:
    found = tiny(method, **settings)
    line = found.timeline
    at = line.peak_index
    assert max(line.totals) == line.totals[at] == found.allocated_bytes
    there = {group: values[at] for group, values in line.groups.items() if values[at]}
    assert there == {group: n for group, n in found.groups.items() if group != "context"}


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_groups_sum_to_the_total_at_every_instant_and_none_is_negative(settings: dict[str, Any], method: str) -> None:
    line = tiny(method, **settings).timeline
    assert list(line.groups) == [group for group in GROUPS if group in line.groups]
    for n, total in enumerate(line.totals):
        assert total == sum(values[n] for values in line.groups.values())
    assert min(min(values) for values in line.groups.values()) >= 0


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_each_event_is_one_tensor_of_one_group(settings: dict[str, Any], method: str) -> None:
    line = tiny(method, **settings).timeline
    for n, (before, after) in enumerate(pairwise(line.totals)):
        moved = [values[n + 1] - values[n] for values in line.groups.values() if values[n + 1] != values[n]]
        assert len(moved) <= 1
        assert sum(moved) == after - before
        assert (after - before) % 512 == 0


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_a_steady_step_ends_where_it_began(settings: dict[str, Any], method: str) -> None:
    keeps = settings["keeps_outputs"] == "next_forward" or settings["zero_grad"] == "start"
    found = tiny(method, **settings)
    line = found.timeline
    ends = {group: (values[0], values[-1]) for group, values in line.groups.items()}
    left = {group for group, (first, last) in ends.items() if first != last}
    assert left <= ({"gradients", "activations", "temporaries"} if keeps else set())
    assert line.totals[0] == next(i.n_bytes for i in found.instants if i.name == SCENE[1])


@given(SETTINGS, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_parts_cover_the_step_without_gaps_and_reach_the_instants(settings: dict[str, Any], method: str) -> None:
    found = tiny(method, **settings)
    line = found.timeline
    assert [p.start for p in line.parts] == [0, *(p.stop for p in line.parts[:-1])]
    assert line.parts[-1].stop == len(line.totals) - 1
    assert all(part.stop > part.start for part in line.parts)
    highest = {name: [highest_in(line, p) for p in line.parts if p.name == name] for name in NAMES.values()}
    for instant in found.instants:
        name = NAMES.get(instant.name.split(", next")[0].split(", later")[0])
        if name is not None:
            assert instant.n_bytes in highest[name]


NAMES = {"backward, loss and head": "backward, head", "optimizer step": "optimizer step"}
"""Instants that are parts of their own; those of layers are the highest of a pass."""


def highest_in(line: Timeline, part: Part) -> int:
    return max(line.totals[part.start : part.stop + 1])


@pytest.mark.parametrize("method", METHODS)
def test_a_pass_over_the_layers_names_the_first_and_the_last(method: str) -> None:
    line = tiny(method).timeline
    layers = {p.name: p.layers for p in line.parts if p.layers}
    last = TINY.num_hidden_layers - 1
    assert layers == {"forward": (0, last), "backward": (last, 0)}


def test_walked_layers_stand_for_all_of_them() -> None:
    """The curve of a deep model is made from a few walked layers; here against a walk of every layer."""
    deep, shallow = (estimate(TINY.replace(num_hidden_layers=n), "lora", seq_len=64).timeline for n in (6, 4))
    assert len(deep.totals) > len(shallow.totals)
    every = estimate(TINY, "lora", seq_len=64, target_modules=r".*layers\.\d+\..*(q|v)_proj")
    named = estimate(TINY, "lora", seq_len=64, target_modules=["q_proj", "v_proj"])
    assert every.timeline == named.timeline
