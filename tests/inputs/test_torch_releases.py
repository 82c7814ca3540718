"""Releases of torch: the wheels there are, and the attention kernel that each chooses."""

from __future__ import annotations

from typing import Any

import pytest
from configs import CONFIGS
from small import TINY

from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.stack import Stack
from vramcalc.inputs.torch_releases import TORCH_RELEASES, Capability, checked_torch
from vramcalc.memory.calibration.similarity import kernel, likeness, recipe_id
from vramcalc.memory.estimate import estimate, make_job
from vramcalc.shadow.engine.kernels import choose_sdpa_kernel
from vramcalc.show.words import common_lines

PLAIN: dict[str, Any] = {"dtype": "bfloat16", "masked": False, "grouped": False, "head_dim": 128}


def chosen(
    capability: Capability, torch: str = "2.13", cuda: str | None = None, asked: str = "auto", **more: Any
) -> str:
    wheel = Stack(torch=torch, cuda=cuda).wheel
    return choose_sdpa_kernel(asked, compute_capability=capability, wheel=wheel, **{**PLAIN, **more})


# -- what may be said ------------------------------------------------------------------------------------------------


def test_the_table_is_of_releases_in_order_whose_default_wheel_exists() -> None:
    assert [r.release for r in TORCH_RELEASES] == sorted({r.release for r in TORCH_RELEASES})
    assert all(r.default_cuda in r.cudnn for r in TORCH_RELEASES)
    assert Stack().wheel.release is TORCH_RELEASES[0]


@pytest.mark.parametrize("release", TORCH_RELEASES, ids=lambda r: "{}.{}".format(*r.release))
def test_a_release_and_its_wheels_are_found(release: Any) -> None:
    version = "{}.{}".format(*release.release)
    assert Stack(torch=f"{version}.1").torch == version
    assert Stack(torch=version).wheel == Stack(torch=version, cuda=release.default_cuda).wheel
    for cuda, cudnn in release.cudnn.items():
        assert Stack(torch=version, cuda=cuda).wheel.cudnn == cudnn


@pytest.mark.parametrize("version", ["2.12.0", "2.15", "3.0", "2", "", "main"])
def test_a_release_that_has_not_been_checked_is_refused(version: str) -> None:
    with pytest.raises(InvalidValue, match=checked_torch()):
        Stack(torch=version)


@pytest.mark.parametrize(("torch", "cuda"), [("2.13", "12.8"), ("2.13", "13"), ("2.14", "12.9"), ("2.14", "")])
def test_a_wheel_that_is_not_published_is_refused_with_those_that_are(torch: str, cuda: str) -> None:
    with pytest.raises(
        InvalidValue, match=rf"cuda = '{cuda}': expected one of 12\.6, .* which torch {torch} has wheels"
    ):
        Stack(torch=torch, cuda=cuda)


def test_the_recipe_names_the_wheel_only_where_one_was_asked_for() -> None:
    usual, _ = make_job(TINY, "lora")
    other, _ = make_job(TINY, "lora", cuda="12.6")
    assert common_lines(usual)[-1].startswith("torch 2.13, transformers ")
    assert common_lines(other)[-1].startswith("torch 2.13 for CUDA 12.6, transformers ")
    assert recipe_id(usual, None) == recipe_id(other, None)


# -- what it decides -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("torch", ["2.13", "2.14"])
@pytest.mark.parametrize("capability", [(9, 0), (10, 0), (10, 3)])
def test_cudnn_comes_first_on_hopper_and_blackwell_where_the_wheel_brings_a_new_one(
    capability: Capability, torch: str
) -> None:
    for cuda, cudnn in Stack(torch=torch).wheel.release.cudnn.items():
        assert chosen(capability, torch, cuda) == ("cudnn" if cudnn > (9, 15, 0) else "flash")
    assert chosen(capability, torch) == "cudnn"


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0)])
def test_cudnn_is_never_first_elsewhere(capability: Capability) -> None:
    assert chosen(capability, dtype="float16") == ("flash" if capability >= (8, 0) else "efficient")


def test_before_cuda_13_only_named_blackwells_prefer_cudnn() -> None:
    assert chosen((10, 1), cuda="12.9") == "flash"
    assert chosen((10, 1), cuda="13.0") == "cudnn"


@pytest.mark.parametrize(
    ("head_dim", "torch", "cuda", "expected"),
    [
        (128, "2.13", None, "cudnn"),
        (120, "2.13", None, "cudnn"),
        (124, "2.13", None, "flash"),
        (136, "2.13", None, "flash"),
        (256, "2.13", None, "flash"),
        (256, "2.14", None, "cudnn"),
        (192, "2.14", None, "flash"),
        (256, "2.14", "12.6", "flash"),
        (264, "2.14", None, "efficient"),
    ],
)
def test_widths_of_heads_that_cudnn_takes_forward_and_backward(
    head_dim: int, torch: str, cuda: str | None, expected: str
) -> None:
    assert chosen((9, 0), torch, cuda, head_dim=head_dim) == expected


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (12, 0), (12, 1)])
@pytest.mark.parametrize(
    ("head_dim", "kernel"), [(192, "flash"), (200, "efficient"), (224, "efficient"), (256, "flash")]
)
def test_flash_trains_no_heads_of_193_to_224_with_little_shared_memory(
    capability: Capability, head_dim: int, kernel: str
) -> None:
    assert chosen(capability, head_dim=head_dim) == kernel
    assert chosen((8, 0), head_dim=head_dim) == "flash"


def test_grouped_heads_reach_memory_efficient_attention_from_2_14_on() -> None:
    t4: dict[str, Any] = {"dtype": "float16", "grouped": True}
    assert chosen((7, 5), "2.13", **t4) == "math"
    assert chosen((7, 5), "2.14", **t4) == "efficient"
    assert chosen((8, 0), "2.14", grouped=True, dtype="float32") == "efficient"
    with pytest.raises(Unsupported, match="grouped key heads"):
        chosen((7, 5), "2.13", asked="efficient", **t4)


@pytest.mark.parametrize(
    ("capability", "dtype", "head_dim", "expected"),
    [
        ((7, 5), "float32", 6, "efficient"),
        ((8, 0), "float32", 6, "math"),
        ((8, 0), "float32", 12, "efficient"),
        ((7, 5), "float16", 12, "math"),
        ((6, 1), "float16", 12, "efficient"),
        ((7, 5), "bfloat16", 64, "math"),
    ],
)
def test_heads_that_memory_efficient_attention_can_align(
    capability: Capability, dtype: str, head_dim: int, expected: str
) -> None:
    assert chosen(capability, dtype=dtype, head_dim=head_dim) == expected


def test_a_kernel_is_asked_for_by_name() -> None:
    assert chosen((8, 0), asked="cudnn") == "cudnn"
    assert chosen((9, 0), cuda="12.6", asked="cudnn") == "cudnn"
    assert chosen((9, 0), asked="flash") == "flash"
    for capability, dtype in (((7, 5), "float16"), ((9, 0), "float32")):
        with pytest.raises(Unsupported, match="sdpa_kernel = 'cudnn' cannot run here"):
            chosen(capability, asked="cudnn", dtype=dtype)


# -- what is said ------------------------------------------------------------------------------------------------------


def test_a_result_says_what_nobody_has_measured() -> None:
    def warned(gpu: str, **settings: Any) -> str:
        return " ".join(estimate(TINY, "lora", gpu=gpu, seq_len=64, **settings).warnings)

    assert "cuDNN attends with torch 2.13 for CUDA 13.0 (cuDNN 9.20.0)" in warned("h100-sxm")
    assert "cuDNN" not in warned("h100-sxm", cuda="12.6") + warned("h100-sxm", sdpa_kernel="flash") + warned("l4")
    assert "no measured run has torch 2.14" in warned("l4", torch="2.14")
    assert "measured" not in warned("l4")


def test_intervals_of_an_unmeasured_release_are_wider() -> None:
    usual, newer = (estimate("llama-3.2-1b", "lora", torch=torch) for torch in ("2.13", "2.14"))
    assert "torch 2.14" in newer.unchecked
    assert newer.allocated_bytes == usual.allocated_bytes
    width = [e.interval("allocated").high - e.interval("allocated").low for e in (usual, newer)]
    assert width[1] > width[0]


def test_grouped_heads_on_a_t4_take_less_with_2_14() -> None:
    spec = to_spec(CONFIGS["llama"], "llama")
    assert spec.num_key_value_heads < spec.num_attention_heads
    settings: dict[str, Any] = {"gpu": "t4", "dtype": "float16", "autocast": "float16", "seq_len": 2048}
    math, efficient = (estimate(spec, "lora", torch=torch, **settings) for torch in ("2.13", "2.14"))
    assert (kernel(math.job), kernel(efficient.job)) == ("math", "efficient")
    assert efficient.reserved_bytes < math.reserved_bytes
    assert likeness(math.job, "Turing").regime != likeness(efficient.job, "Turing").regime
