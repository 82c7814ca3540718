"""What is allocated between phases: parts that add up, and figures that other people measured."""

from __future__ import annotations

import pytest
from small import tiny

from vramcalc.memory.snapshots import snapshots


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("zero_grad", ["start", "end"])
def test_what_a_step_leaves_behind_adds_up(method: str, zero_grad: str) -> None:
    found = tiny(method, zero_grad=zero_grad)
    at = snapshots(found.walks)
    adapters = at["loaded"] - at["base loaded"]
    assert (adapters == 0) == (method == "full")
    assert at["loaded"] < at["step0.forward"] <= found.allocated_bytes
    assert at["step0.backward"] < at["step0.forward"]
    assert at["step0.optimizer"] > at["step0.backward"], "states have been made"
    assert at["step1.optimizer"] == at["step0.optimizer"]
    if zero_grad == "end":
        assert at["step0.zero_grad"] < at["step0.optimizer"]


def test_more_tokens_change_what_lives_through_the_forward_pass_alone() -> None:
    short, long = (snapshots(tiny("lora", seq_len=n).walks) for n in (64, 128))
    assert short["loaded"] == long["loaded"]
    assert short["step0.forward"] < long["step0.forward"]
    assert abs(short["step0.zero_grad"] - long["step0.zero_grad"]) < 4096
