"""A method or a setting that nobody measured or counted has no neighbour's interval and no neighbour's time."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from small import TINY

from vramcalc import LoRA, QLoRA, compare_times, step_flops, step_time
from vramcalc.errors import Unsupported
from vramcalc.inputs.base import MOVES_NO_MEMORY
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Method, Stack, TrainingSpec
from vramcalc.memory.calibration.conformal import LEVEL
from vramcalc.memory.calibration.file import shipped
from vramcalc.memory.calibration.similarity import Likeness, likeness


class Rotated(LoRA):
    """A method of this test: what it trains is nobody's business."""

    kind: Literal["rotated"] = "rotated"  # type: ignore[assignment]
    blocks: int = 4
    seed: Annotated[int, MOVES_NO_MEMORY] = 0


def job(method: Method) -> Job:
    return Job(TINY, method, TrainingSpec(seq_len=256, optim="adamw_torch"), Stack())


def like(method: Method) -> Likeness:
    return likeness(job(method), None)


def test_what_no_run_has_of_a_method_is_listed() -> None:
    found = shipped().unchecked("reserved", like(Rotated(blocks=2, seed=7)))
    assert set(found) - set(shipped().unchecked("reserved", like(LoRA()))) == {"method rotated", "blocks 2"}


def test_its_interval_is_wider() -> None:
    narrow, wide = (shipped().outlook("reserved", like(method)).bounds(LEVEL) for method in (LoRA(), Rotated()))
    assert wide[0] < narrow[0] <= 0 <= narrow[1] < wide[1]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rank": 64}, {"rank": "64"}),
        ({"rank": 32, "lora_alpha": 5.0, "lora_dropout": 0.1}, {}),
        ({"target_modules": ["q_proj", "down_proj"]}, {}),
        ({"target_modules": ["lm_head", "q_proj"]}, {"target_modules": "lm_head, q_proj"}),
        ({"modules_to_save": ["lm_head"]}, {"modules_to_save": "lm_head"}),
        ({"bnb_4bit_compute_dtype": "float32"}, {"bnb_4bit_compute_dtype": "float32"}),
        ({"bnb_4bit_quant_type": "fp4"}, {}),
    ],
    ids=str,
)
def test_settings_of_a_method_are_told_unless_runs_have_them(settings: dict[str, Any], told: dict[str, str]) -> None:
    usual, other = like(QLoRA()).traits, like(QLoRA(**settings)).traits
    assert {name: value for name, value in other.items() if name not in usual} == told


def test_a_method_that_is_not_walked_as_itself_has_no_time() -> None:
    with pytest.raises(Unsupported, match="'rotated' is not modelled"):
        step_time(job(Rotated()), "a100-sxm-80")
    with pytest.raises(Unsupported, match="'rotated' is not modelled"):
        compare_times(job(LoRA()), job(Rotated()), "a100-sxm-80")
    with pytest.raises(Unsupported, match="'rotated' is not modelled"):
        step_flops(TINY, Rotated(), TrainingSpec())
