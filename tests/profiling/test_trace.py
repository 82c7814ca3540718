"""The shadow step against the real libraries, traced as the test runs: every request in its order, byte for byte."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from configs import CONFIGS

from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.job import Job
from vramcalc.memory.estimate import make_job
from vramcalc.profiling.trace.trace import Trace, trace
from vramcalc.shadow.training.loop import Loop, Sizes
from vramcalc.shadow.training.requests import with_workspace_at_product

pytestmark = pytest.mark.trace

_EAGER_CACHE = {"attn_implementation": "eager", "use_cache": True, "micro_batch_size": 2, "seq_len": 70}

CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(
        ("arcee", method, {"seq_len": 100, "autocast": autocast, "gradient_checkpointing": checkpointing})
        for method, autocast in (("full", None), ("lora", "bfloat16"), ("qlora", "bfloat16"))
        for checkpointing in ("none", "reentrant", "non_reentrant")
    ),
    *(
        ("gemma2", method, {"seq_len": 100, "autocast": autocast, "gradient_checkpointing": checkpointing})
        for method, autocast in (("full", None), ("lora", "bfloat16"), ("qlora", "bfloat16"))
        for checkpointing in ("none", "reentrant", "non_reentrant")
    ),
    ("gemma2", "full", {"seq_len": 40, "micro_batch_size": 2, "attn_implementation": "flash_attention_2"}),
    ("gemma2", "lora", {"seq_len": 70, "modules_to_save": {"embed_tokens"}, "padded": True, "micro_batch_size": 3}),
    ("gemma2", "lora", {"seq_len": 70, "target_modules": {"embed_tokens"}, "use_cache": True}),
    ("gemma2", "qlora", {"seq_len": 70, "passes_attention_mask": False, "autocast": "bfloat16"}),
    ("granite", "full", {"seq_len": 100, "micro_batch_size": 2}),
    ("granite", "lora", {"seq_len": 80, "autocast": "bfloat16", "gradient_checkpointing": "reentrant"}),
    ("granite", "qlora", {"seq_len": 50, "casts_embeddings_to_bf16": True, "autocast": "bfloat16"}),
    ("llama", "qlora", {"seq_len": 90, "casts_embeddings_to_bf16": True, "autocast": "bfloat16"}),
    ("llama", "full", {"seq_len": 100}),
    ("llama", "lora", {"micro_batch_size": 3, "seq_len": 64, "autocast": "bfloat16", "lora_dropout": 0.1}),
    ("llama", "qlora", {"seq_len": 100, "autocast": "bfloat16", "gradient_checkpointing": "non_reentrant"}),
    ("mistral", "full", {"seq_len": 60, "optim": "adamw_torch", "gradient_checkpointing": "reentrant"}),
    ("mistral", "lora", {"seq_len": 60, "padded": True, "micro_batch_size": 2, "attn_implementation": "eager"}),
    ("llama", "lora", {"seq_len": 90, "repeats_kv": True, "sdpa_kernel": "efficient", "micro_batch_size": 2}),
    ("llama", "lora", {"seq_len": 100, "sdpa_kernel": "cudnn", "micro_batch_size": 2}),
    ("mistral", "full", {"seq_len": 70, "sdpa_kernel": "cudnn", "padded": True}),
    ("mistral", "qlora", {"seq_len": 50, "bnb_4bit_use_double_quant": False, "gradient_accumulation_steps": 2}),
    ("qwen2", "full", {"seq_len": 70, "dtype": "float32", "autocast": "float16"}),
    ("qwen2", "lora", {"seq_len": 70, "sdpa_kernel": "math", "keeps_outputs": "next_forward", "use_cache": True}),
    ("qwen2", "qlora", {"seq_len": 70, "prepare_model_for_kbit_training": False, "optim": "adamw_bnb_8bit"}),
    # As many key heads as heads, fewer, and one: which products copy what the cache has laid out.
    ("mistral", "qlora", {**_EAGER_CACHE, "keeps_outputs": "next_forward"}),
    ("mistral", "full", {**_EAGER_CACHE, "attn_implementation": "sdpa", "sdpa_kernel": "math"}),
    ("qwen2", "lora", _EAGER_CACHE),
    ("qwen3", "full", _EAGER_CACHE),
    ("mixtral", "full", {"seq_len": 60, "micro_batch_size": 3, "gradient_checkpointing": "non_reentrant"}),
    ("mixtral", "lora", {"seq_len": 101, "target_modules": {"q_proj", "o_proj"}, "autocast": "bfloat16"}),
    (
        "mixtral",
        "qlora",
        {
            "seq_len": 77,
            "target_modules": {"v_proj"},
            "prepare_model_for_kbit_training": False,
            "gradient_checkpointing": "reentrant",
        },
    ),
    ("qwen3", "full", {"seq_len": 40, "optim": "adafactor", "micro_batch_size": 2}),
    ("qwen3", "lora", {"seq_len": 40, "modules_to_save": {"lm_head", "embed_tokens"}, "autocast": "bfloat16"}),
    ("qwen3", "qlora", {"seq_len": 40, "target_modules": {"q_proj", "v_proj"}, "zero_grad": "start"}),
    ("llama", "full", {"seq_len": 70, "passes_attention_mask": False, "attn_implementation": "eager"}),
    ("mistral", "lora", {"seq_len": 70, "passes_attention_mask": False, "micro_batch_size": 2}),
    ("llama", "lora", {"seq_len": 64, "zero_grad_set_to_none": False, "gradient_checkpointing": "reentrant"}),
    ("qwen2", "full", {"seq_len": 40, "zero_grad_set_to_none": False, "dtype": "float32", "autocast": "float16"}),
    ("llama", "full", {"seq_len": 90, "keeps_outputs": "backward", "micro_batch_size": 2, "use_cache": True}),
    ("qwen3", "qlora", {"seq_len": 90, "keeps_outputs": "backward", "autocast": "bfloat16"}),
    ("llama", "full", {"seq_len": 70, "loss": "cross_entropy"}),
    ("granite", "full", {"seq_len": 70, "loss": "shifted_cross_entropy", "micro_batch_size": 2}),
    ("qwen2", "lora", {"seq_len": 70, "loss": "cross_entropy", "autocast": "bfloat16", "micro_batch_size": 3}),
    (
        "qwen3",
        "qlora",
        {"seq_len": 70, "loss": "shifted_cross_entropy", "autocast": "bfloat16", "outputs_to_float32": False},
    ),
)


def shadow(job: Job) -> tuple[list[int], list[int], int]:
    """Events of two steps, bytes of each birth, and the event where training starts."""
    loop = Loop(job, Sizes.of(job), job.model.num_hidden_layers)
    loop.steps([job.training.seq_len] * 2)
    end = loop.tape.marks[-1][0]
    events = with_workspace_at_product(loop.tape.events[:end], lambda birth: loop.tape.births[birth].op, job.stack)
    start = next(i for i, phase, _ in loop.tape.marks if phase.startswith("step"))
    return events, [b.requested_bytes for b in loop.tape.births], start


def peak(events: list[int], sizes: list[int], start: int) -> int:
    """Highest sum of live storages, each rounded up to 512. [B]"""
    current = best = 0
    for index, event in enumerate(events):
        size = -(-sizes[event if event >= 0 else ~event] // 512) * 512
        current += size if event >= 0 else -size
        if index >= start:
            best = max(best, current)
    return best


def births(events: list[int], sizes: list[int]) -> list[int]:
    """Sizes in order of birth, small ones aside. [B]

    Scalars and indices of a few bytes are where the shadow takes liberties: they change no total.
    """
    return [sizes[e] for e in events if e >= 0 and sizes[e] > 2048]


def _named(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=sorted)


@pytest.mark.parametrize(("family", "method", "settings"), CASES, ids=_named)
def test_the_shadow_asks_for_what_the_libraries_ask_for(family: str, method: str, settings: dict[str, Any]) -> None:
    job, _ = make_job(to_spec(CONFIGS[family], family), method, **settings)
    found: Trace = trace(job.model, job.method, job.training, job.stack)
    sizes = [a.n_bytes for a in found.allocations]
    events, own, start = shadow(job)
    assert births(events[start:], own) == births(found.events[found.start :], sizes)
    assert peak(events, own, start) == pytest.approx(found.peak()[0], rel=2e-4)


def test_a_trace_leaves_torch_as_it_was() -> None:
    import torch

    names = [(torch.nn.functional, "scaled_dot_product_attention"), (torch.nn.Module, "_apply"), (torch, "compile")]
    before = [getattr(owner, name) for owner, name in names]
    job, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "lora", seq_len=8)
    trace(job.model, job.method, job.training, job.stack)
    assert [getattr(owner, name) for owner, name in names] == before


def test_a_real_model_quantises_after_a_trace() -> None:
    import bitsandbytes.functional as bnb
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    job, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "qlora", seq_len=8)
    trace(job.model, job.method, job.training, job.stack)
    _, state = bnb.quantize_4bit(torch.ones(4096), blocksize=64, compress_statistics=True, quant_type="nf4")
    assert not isinstance(state.state2.code, FakeTensor)


def test_a_trace_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    before = dict(os.environ)
    job, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "lora", seq_len=8)
    trace(job.model, job.method, job.training, job.stack)
    assert dict(os.environ) == before
