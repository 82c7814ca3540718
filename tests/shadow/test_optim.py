"""What optimizers keep and take on the way, line by line beside the libraries' own loops.

References:
    pytorch torch/optim/adam.py, sgd.py; transformers optimization.py; bitsandbytes 0.50 optim/optimizer.py;
    torchao 0.18 optim/adam.py.
"""

from __future__ import annotations

from typing import get_args

import pytest
from played import engine, given, parameter, played

from vramcalc.inputs import optimizers as facts
from vramcalc.shadow.engine.tape import Shape
from vramcalc.shadow.training import optimizers as optim
from vramcalc.shadow.training.optimizers import Optimizer


def stepped(name: str, shapes: list[Shape], dtypes: list[str] | None = None) -> tuple[list[str], Optimizer]:
    e = engine()
    weights = [parameter(e, s, d) for s, d in zip(shapes, dtypes or ["bfloat16"] * len(shapes), strict=True)]
    for p in weights:
        p.grad = given(e, p.tensor.shape, p.tensor.dtype, grad=False)

    def run() -> Optimizer:
        found = optim.build(name, e, [weights], frozenset())
        found.step()
        return found

    return played(e, run)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("adamw_torch_fused", "+4 step, +40 exp_avg, +40 exp_avg_sq, +4 step, +6 exp_avg, +6 exp_avg_sq"),
        (
            "adamw_torch",
            "+40 exp_avg, +40 exp_avg_sq, +6 exp_avg, +6 exp_avg_sq, +40 _foreach_sqrt, +6 _foreach_sqrt, "
            "-40 _foreach_sqrt, -6 _foreach_sqrt",
        ),
        (
            "adamw_torch_loop",
            "+40 exp_avg, +40 exp_avg_sq, +6 exp_avg, +6 exp_avg_sq, +40 sqrt, +40 div, -40 sqrt, "
            "+6 sqrt, +6 div, -6 sqrt, -40 div, -6 div",
        ),
        ("sgd", ""),
        ("sgd_momentum", "+40 momentum_buffer, +6 momentum_buffer"),
    ],
)
def test_torchs_own_optimizers(name: str, step: str) -> None:
    """Moments in the parameter's dtype; fused has its step on the device; a loop keeps ``denom`` until the next."""
    assert ", ".join(stepped(name, [(4, 5), (3,)])[0]) == step


def test_every_name_has_facts_and_states() -> None:
    """One that lacks either would be found by a user; every alias stands for a name, and is none."""
    assert optim.OPTIMIZERS.keys() == facts.OPTIMIZERS.keys() == set(get_args(facts.OptimizerName))
    assert set(facts.ALIASES.values()) <= facts.OPTIMIZERS.keys()
    assert facts.ALIASES.keys().isdisjoint(facts.OPTIMIZERS)


STATES = ((8192, "state"), (128, "absmax"))
"""Of 8,192 elements under an 8-bit optimizer."""
CLIP = "+4 norm, +4 rms, -4 norm, +4 div, -4 rms, -4 div"
"""``update.div_((self._rms(update) / clip_threshold).clamp_(min=1.0))``."""


def test_adafactor_lowers_locals_as_its_loop_overwrites_them() -> None:
    """``Adafactor.step``: a bfloat16 matrix, then a float32 vector, whose gradient and weight are not copied."""
    found, _ = stepped("adafactor", [(4, 5), (3,)], ["bfloat16", "float32"])
    matrix = (
        "+80 grad.float(), +16 exp_avg_sq, +20 exp_avg_sq, +80 p.float(), +4 norm, +4 rms, -4 norm, +80 grad**2, "
        "+80 add eps, -80 grad**2, +16 mean, -16 mean, +20 mean, -20 mean, +4 mean of rows, +16 r_factor, "
        f"-4 mean of rows, +20 c_factor, +80 update, -16 r_factor, -20 c_factor, -80 add eps, {CLIP}, +80 neg, -80 neg"
    )
    vector = (
        "-80 grad.float(), +12 exp_avg_sq, -80 p.float(), +4 norm, +4 rms, -4 norm, +12 grad**2, +12 add eps, "
        f"-80 update, -12 grad**2, +12 rsqrt, -12 add eps, {CLIP}, +12 neg, -12 neg, -12 rsqrt"
    )
    assert ", ".join(found) == f"{matrix}, {vector}"


def test_adafactor_averages_the_rows_of_each_matrix_of_a_stack() -> None:
    """``exp_avg_sq_row.mean(dim=-1, keepdim=True)``: one number a matrix, as of the experts of a mixture."""
    found, _ = stepped("adafactor", [(3, 4, 5)])
    assert sum("mean of rows" in line for line in found) == 2
    assert [line for line in found if "exp_avg_sq" in line or (line.startswith("+") and "mean of rows" in line)] == [
        "+48 exp_avg_sq",
        "+60 exp_avg_sq",
        "+12 mean of rows",
    ]


@pytest.mark.parametrize(
    ("n", "states"),
    [
        (4095, ["+16380 state"] * 2),
        (4096, ["+4096 state"] * 2 + ["+64 absmax"] * 2),
        (4097, ["+4097 state"] * 2 + ["+68 absmax"] * 2),
    ],
)
def test_bitsandbytes_keeps_8_bits_from_4096_elements_on(n: int, states: list[str]) -> None:
    """``p.numel() < 4096`` keeps float32; ``absmax`` has a float32 per block of 256, the last one may be short."""
    found, _ = stepped("adamw_bnb_8bit", [(n,)])
    assert found[:2] == ["+1024 8-bit code book"] * 2
    assert [line.rstrip("12") for line in found[2:]] == states


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("lion_8bit", ["+1024 8-bit code book", "+1024 8-bit code book", "+8192 state1", "+128 absmax1"]),
        ("lion_32bit", ["+32768 state1"]),
        ("adamw_bnb_8bit", ["+1024 8-bit code book"] * 2 + [f"+{n} {k}{i}" for n, k in STATES for i in (1, 2)]),
    ],
)  # fmt: skip
def test_lion_has_one_moment(name: str, states: list[str]) -> None:
    assert stepped(name, [(64, 128)])[0] == states


@pytest.mark.parametrize(("n", "paged"), [(99_999, 0), (100_000, 2), (100_001, 2)])
def test_states_of_100000_elements_are_paged(n: int, paged: int) -> None:
    """``get_state_buffer``: ``p.numel() < 1e5`` stays with torch's allocator."""
    found, optimizer = stepped("paged_adamw_32bit", [(n,)])
    assert (found, len(optimizer.paged)) == ([f"+{4 * n} state1", f"+{4 * n} state2"] * (not paged), paged)
    assert {dtype for _, _, dtype in optimizer.paged} <= {"float32"}


@pytest.mark.parametrize(
    ("name", "n", "each"),
    [
        ("adamw_torch_8bit", 4096, ["4096 codes", "64 scales", "1024 code book"]),
        ("adamw_torch_4bit", 8192, ["4096 codes", "128 scales", "64 code book"]),
        ("adamw_torch_8bit", 4095, ["8190"]),
        ("adamw_torch_8bit", 3840, ["7680"]),
        ("adamw_torch_8bit", 4097, ["8194"]),
        ("adamw_torch_4bit", 4100, ["8200"]),
    ],
)
def test_torchao_has_codes_scales_and_a_code_book_for_whole_blocks(name: str, n: int, each: list[str]) -> None:
    """``_new_buffer``: ``p.numel() >= 4096 and p.numel() % block_size == 0``; else the parameter's dtype."""
    found, _ = stepped(name, [(n,)])
    expected = [f"{line.replace(' ', f' {what} ', 1)}" if " " in line else f"{line} {what}"
                for what in ("exp_avg", "exp_avg_sq") for line in each]  # fmt: skip
    assert found == [f"+{line}" for line in expected]
