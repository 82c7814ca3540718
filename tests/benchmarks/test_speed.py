"""Speed, two or more things per group in one run: ``pytest -n 0 tests/benchmarks --benchmark-only``.

The printed ratios are the result; seconds depend on the machine.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vramcalc import estimate_grid
from vramcalc.memory.estimate import make_job
from vramcalc.memory.walks import Walks
from vramcalc.shadow.training.loop import Loop, Sizes

Benchmark = Callable[..., Any]
JOB, _ = make_job("llama-3.1-8b", "lora", gradient_checkpointing="non_reentrant")


@pytest.mark.benchmark(group="one estimate, 32 layers")
def test_allocated(benchmark: Benchmark) -> None:
    assert benchmark(lambda: Walks(JOB).ranked[0].n_bytes) > 0


@pytest.mark.benchmark(group="one estimate, 32 layers")
def test_allocated_and_reserved(benchmark: Benchmark) -> None:
    from vramcalc.inputs.alloc_conf import AllocatorSettings

    assert benchmark(lambda: Walks(JOB).replay(AllocatorSettings()).peak_reserved_bytes) > 0


@pytest.mark.benchmark(group="one estimate, 32 layers")
def test_every_layer_walked(benchmark: Benchmark) -> None:
    def walk() -> int:
        loop = Loop(JOB, Sizes.of(JOB), JOB.model.num_hidden_layers)
        loop.steady_step()
        return len(loop.tape.events)

    assert benchmark(walk) > 0


@pytest.mark.benchmark(group="many estimates")
@pytest.mark.parametrize("n", [100, 1_000_000])
def test_grid(benchmark: Benchmark, n: int) -> None:
    seq_len = np.linspace(256, 8192, n).astype(int)
    batch = np.arange(n) % 32 + 1
    benchmark.extra_info["configurations"] = n  # type: ignore[attr-defined]
    grid = benchmark(lambda: estimate_grid("llama-3.1-8b", "lora", micro_batch_size=batch, seq_len=seq_len))
    assert len(grid.allocated_bytes) == n


@pytest.mark.benchmark(group="many estimates")
def test_a_hundred_one_by_one(benchmark: Benchmark) -> None:
    jobs = [make_job("llama-3.1-8b", "lora", micro_batch_size=n)[0] for n in range(1, 101)]
    assert benchmark(lambda: [Walks(job).ranked[0].n_bytes for job in jobs])


PLANNED = ("--examples", "10000", "--tokens-per-example", "512")


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


@pytest.mark.benchmark(group="start-up")
@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "pass"),
        ("-c", "import vramcalc"),
        ("-c", "import pydantic, typer"),
        ("-m", "vramcalc", "--version"),
        ("-m", "vramcalc", "estimate", "llama-3.1-8b"),
        ("-m", "vramcalc", "plan", "llama-3.1-8b", "--gpu", "a100-sxm-80", *PLANNED),
    ],
    ids=lambda a: " ".join(a[:4]),
)
def test_a_new_process(benchmark: Benchmark, arguments: tuple[str, ...]) -> None:
    benchmark(_run, *arguments)
