"""The rows and instants of a peak: which phase each tensor is of, and what instants are called."""

from __future__ import annotations

import pytest
from small import METHODS, tiny

from vramcalc.memory.ledger import SCENE, phases_of

STAGES = [
    "forward, embedding", "forward, layer", "forward, final norm", "forward, head and loss",
    "backward, loss and head", "backward, layer",
]  # fmt: skip
"""Of one micro-step, in time order; what follows them is the optimizer's."""


@pytest.mark.parametrize("method", METHODS)
def test_everything_is_made_in_a_phase(method: str) -> None:
    program = tiny(method, gradient_accumulation_steps=2).walks.written_out.program
    phases = phases_of(program)
    assert set(phases) == {"load", "forward", "head", "backward", "optimizer"}
    assert phases[0] == "load"


@pytest.mark.parametrize("method", METHODS)
def test_instants_are_named_in_time_order(method: str) -> None:
    names = [i.name for i in tiny(method).instants]
    assert names[:2] == list(SCENE)
    kinds = [name.rstrip(" 0123456789") for name in names[2:]]
    assert kinds[:6] == STAGES
    assert kinds[6:] in (
        ["backward, embedding", "optimizer step", "gradients dropped"],
        ["optimizer step", "gradients dropped"],
    )


def test_a_later_micro_step_has_instants_of_its_own() -> None:
    names = [i.name for i in tiny("lora", gradient_accumulation_steps=2).instants]
    later = [n.removesuffix(", later micro-step").rstrip(" 0123456789") for n in names if "micro-step" in n]
    assert later[:6] == STAGES
    assert not [i for i in tiny("lora").instants if "micro-step" in i.name]


def test_a_pass_that_finds_outputs_is_of_the_next_step() -> None:
    found = [i.name for i in tiny("lora", keeps_outputs="next_forward").instants]
    following = [n.removesuffix(", next step").rstrip(" 0123456789") for n in found if n.endswith("next step")]
    assert following == [*STAGES, "backward, embedding"]
    assert not [i for i in tiny("lora").instants if "next step" in i.name]
