"""A trace against the same job run for real on CPU tensors, allocation by allocation."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from itertools import accumulate
from typing import Any

import pytest
import torch
from configs import CONFIGS
from torch.profiler import ProfilerActivity, profile

from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.job import Job
from vramcalc.memory.estimate import make_job
from vramcalc.profiling.real.libraries import attach, build_model
from vramcalc.profiling.real.loop import Loop
from vramcalc.profiling.real.optimizers import build_optimizer
from vramcalc.profiling.trace import fake_device
from vramcalc.profiling.trace.recorder import Allocation, Recorder
from vramcalc.profiling.trace.trace import trace

pytestmark = pytest.mark.trace

CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("llama", "full", {}),
    ("llama", "lora", {"gradient_checkpointing": "non_reentrant"}),
    ("qwen2", "lora", {"gradient_checkpointing": "reentrant", "gradient_accumulation_steps": 2}),
    ("mistral", "full", {"optim": "adamw_torch"}),
    ("qwen3", "full", {"dtype": "bfloat16", "zero_grad": "start"}),
)


class Unwatched:
    """A marker that marks nothing."""

    def mark(self, phase: str) -> None:
        pass

    def label(self, tensor: torch.Tensor, label: str) -> None:
        pass


def job_of(family: str, method: str, settings: dict[str, Any]) -> Job:
    """A tiny job whose attention runs the same operators on a CPU and on a GPU."""
    common = {"seq_len": 100, "micro_batch_size": 2, "dtype": "float32", "attn_implementation": "eager"}
    return make_job(to_spec(CONFIGS[family], family), method, **{**common, **settings})[0]


@contextmanager
def real_loop(job: Job) -> Iterator[Loop]:
    """The job's loop over real tensors, the cycle collector off as in a trace."""
    model = attach(
        build_model(job.model, job.stack), job.method, job.training, job.stack, prepare_kbit=fake_device.prepare_kbit
    )
    loop = Loop(model, build_optimizer(model, job.training, job.stack), job.training, job.stack, Unwatched())
    gc.collect()
    gc.disable()
    try:
        yield loop
    finally:
        gc.enable()


def changes(allocations: list[Allocation], events: Iterable[int]) -> list[int]:
    """Bytes of births, and of deaths less than zero."""
    return [allocations[e].n_bytes if e >= 0 else -allocations[~e].n_bytes for e in events]


def with_totals(steps: list[int]) -> list[tuple[int, int]]:
    """Every birth with what is alive once it is born; deaths between two births come in any order."""
    return [(n, total) for n, total in zip(steps, accumulate(steps), strict=True) if n > 0]


def traced(job: Job, steps: int) -> list[int]:
    found = trace(job.model, job.method, job.training, job.stack, kernel_buffers=False, steps=steps)
    return changes(found.allocations, found.events[found.start :])


@pytest.mark.parametrize(
    ("family", "method", "settings"),
    # A CPU's grouped product has scratch of its own, which only torch's profiler sees.
    [*CASES, ("mixtral", "full", {"dtype": "bfloat16"})],
    ids=str,
)
def test_fake_tensors_live_and_die_as_real_ones_do(family: str, method: str, settings: dict[str, Any]) -> None:
    job = job_of(family, method, settings)
    recorder = Recorder(lambda *_: [])
    with real_loop(job) as loop, recorder:
        for parameter in loop.model.parameters():
            recorder.see(parameter, "parameter")
        start = len(recorder.events)
        loop.step(0)
        loop.step(1)
        ran = changes(recorder.allocations, recorder.events[start:])
    assert with_totals(ran) == with_totals(traced(job, 2))


@pytest.mark.parametrize(("family", "method", "settings"), CASES, ids=str)
def test_torchs_own_profiler_sees_what_a_trace_sees(family: str, method: str, settings: dict[str, Any]) -> None:
    """No recorder in the real run: the engine accumulates by itself, and every allocation is torch's word."""
    job = job_of(family, method, settings)
    with real_loop(job) as loop, profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        loop.step(0)
    seen = [e.nbytes() for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    # On a GPU the states of random generators, which checkpointing keeps, are host tensors.
    rng = torch.get_rng_state().nbytes
    ran = [n for n in seen if abs(n) > 2048 and abs(n) != rng]
    expected = [n for n in traced(job, 1) if abs(n) > 2048]
    births = iter(n for n in ran if n > 0)
    assert all(n in births for n in expected if n > 0), "every request of the trace, in its order"
    assert max(accumulate(without_scratch(ran, expected))) == pytest.approx(max(accumulate(expected)), rel=2e-3)


def without_scratch(seen: list[int], expected: list[int]) -> list[int]:
    """What a CPU kernel takes and gives back by itself is taken out."""
    kept: list[int] = []
    for tag, begin, end, _, _ in SequenceMatcher(None, seen, expected, autojunk=False).get_opcodes():
        if tag != "delete" or sum(seen[begin:end]):
            kept += seen[begin:end]
    return kept
