"""What is refused or warned of as no library runs it, held against the libraries; what runs is not refused."""

from __future__ import annotations

from itertools import product
from typing import Any
from unittest import mock

import pytest
from command import run
from small import TINY

from vramcalc import estimate, fit
from vramcalc.errors import Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import ModelSpec
from vramcalc.memory.estimate import make_job
from vramcalc.planning.fit import CannotRun, fit_or_why

SMALL = TINY.replace(
    num_hidden_layers=1, hidden_size=64, intermediate_size=96, vocab_size=64, head_dim=16, num_key_value_heads=4
)
EXPERTS = SMALL.replace(model_type="mixtral", num_local_experts=4, num_experts_per_tok=2)


def runs(job: Job) -> bool:
    """Whether a forward and a backward pass of the real libraries on the CPU come to an end."""
    import torch

    from vramcalc.profiling.real.build import build

    net = build(job.model, job.method, job.training, job.stack, "cpu")
    ids = torch.zeros(1, 8, dtype=torch.long)
    autocast = job.stack.autocast and getattr(torch, job.stack.autocast)
    enabled = torch.is_autocast_enabled
    try:
        with (
            # PEFT asks about CUDA's autocast, which is what the question without a device means.
            mock.patch.object(torch, "is_autocast_enabled", side_effect=lambda _device="cpu": enabled("cpu")),
            torch.autocast("cpu", dtype=autocast, enabled=autocast is not None),
        ):
            loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
    except RuntimeError as err:
        if not any(reason in str(err) for reason in ("dtype", "ScalarType", "multiple of 16 bytes")):
            raise
        return False
    return True


def refused(monkeypatch: pytest.MonkeyPatch, model: ModelSpec, method: str, **settings: Any) -> tuple[bool, Job]:
    """Whether a job is refused for its dtypes, and the job as it would be without that check."""
    with monkeypatch.context() as patched:
        patched.setattr("vramcalc.inputs.refusals._dtypes", lambda _model, _method, _stack: None)
        job, _ = make_job(model, method, seq_len=8, **settings)
    try:
        make_job(model, method, seq_len=8, **settings)
    except Unsupported:
        return True, job
    return False, job


@pytest.mark.parametrize("saved", ["embed_tokens", "lm_head", "norm", "q_proj"])
@pytest.mark.parametrize(
    ("adapters", "weights"), [*product(["float16", "bfloat16"], ["float16", "bfloat16", "float32"])]
)
def test_copies_of_another_dtype_are_warned_of_where_torch_does_not_multiply_them(
    saved: str, adapters: str, weights: str
) -> None:
    settings = {"dtype": weights, "adapter_dtype": adapters, "modules_to_save": [saved], "target_modules": ["v_proj"]}
    found = estimate(SMALL, "lora", seq_len=8, stack="pure-bf16-loop", **settings)  # type: ignore[arg-type]
    assert runs(found.job) is not any("cannot run as it is" in warning for warning in found.warnings)


@pytest.mark.parametrize("targets", [["v_proj"], ["q_proj"], ["q_proj", "k_proj"]], ids=str)
@pytest.mark.parametrize(("weights", "autocast"), [("bfloat16", "float16"), ("float16", "bfloat16"), ("float16",) * 2])
def test_four_bit_layers_of_one_type_are_refused_under_autocast_of_the_other(
    monkeypatch: pytest.MonkeyPatch, targets: list[str], weights: str, autocast: str
) -> None:
    settings = {"dtype": weights, "autocast": autocast, "target_modules": targets}
    no, job = refused(monkeypatch, SMALL, "qlora", prepare_model_for_kbit_training=False, **settings)
    assert no is (weights != autocast and targets != ["q_proj", "k_proj"])
    assert runs(job) is not no


@pytest.mark.parametrize("change", [{}, {"intermediate_size": 100}, {"intermediate_size": 97}], ids=str)
def test_experts_that_grouped_products_do_not_take_are_refused(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, int]
) -> None:
    no, job = refused(monkeypatch, EXPERTS.replace(**change), "full", stack="pure-bf16-loop")
    assert no is bool(change)
    assert runs(job) is not no
    assert estimate(EXPERTS.replace(**change), "full", transformers="4.57").allocated_bytes


def test_flash_attention_needs_compute_capability_8() -> None:
    with pytest.raises(Unsupported, match=r"flash_attention_2.*8\.0.*7\.5.*attn_implementation='sdpa'"):
        estimate(TINY, attn_implementation="flash_attention_2", gpu="t4")
    with pytest.raises(Unsupported, match=r"sdpa_kernel = 'flash' cannot run here.*7\.5.*Use sdpa_kernel='auto'"):
        estimate(TINY, sdpa_kernel="flash", gpu="t4")


@pytest.mark.parametrize("settings", [{"attn_implementation": "flash_attention_2"}, {"sdpa_kernel": "flash"}], ids=str)
def test_a_gpu_that_cannot_run_a_job_leaves_the_others_their_answers(settings: dict[str, Any]) -> None:
    gpus = [catalog.gpu(name) for name in ("t4", "l40s")]
    refused, answered = fit_or_why(TINY, gpus=gpus, methods=["lora"], **settings)
    assert isinstance(refused, CannotRun)
    assert refused.gpu == gpus[0]
    assert refused.to_dict()["status"] == "cannot run"
    assert not isinstance(answered, CannotRun)
    assert [v.gpu for v in fit(TINY, gpus=gpus, methods=["lora"], **settings)] == gpus[1:]
    with pytest.raises(Unsupported):
        fit(TINY, gpus=gpus[:1], methods=["lora"], **settings)


def test_the_command_says_which_gpu_cannot_run_it() -> None:
    asked = ("fit", "llama-3.2-1b", "--method", "lora", "--gpu", "t4", "--gpu", "l40s")
    asked = (*asked, "--attn-implementation", "flash_attention_2")
    shown = run(*asked)
    assert shown.status == 0
    assert "lora on t4 cannot run: attn_implementation='flash_attention_2' needs compute capability 8.0" in " ".join(
        shown.out.split()
    )
    rows = run(*asked, "--json").json
    assert [(row["gpu"], row["status"]) for row in rows] == [("t4", "cannot run"), ("l40s", "fits")]
