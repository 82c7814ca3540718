"""Job properties that tables of accuracy are grouped by."""

from __future__ import annotations

from collections.abc import Callable

from vramcalc.inputs.job import Job


def attention(job: Job) -> str:
    """Implementation, or the kernel asked for behind SDPA."""
    kernel, asked = job.stack.sdpa_kernel, job.stack.attn_implementation
    return asked if asked != "sdpa" or kernel == "auto" else f"sdpa {kernel}"


def weights(job: Job) -> str:
    """Dtype of the weights, and of autocast."""
    return job.stack.dtype + (f" autocast {job.stack.autocast}" if job.stack.autocast else "")


def adapters(job: Job) -> str:
    """What adapters are stored in."""
    return "none" if job.method.trains_base else job.stack.adapter_dtype


def layers(job: Job) -> str:
    """A few, or as many as a released model has."""
    n = job.model.num_hidden_layers
    return "2 to 5" if n <= 5 else "16 to 64" if n <= 64 else "80"


AXES: dict[str, Callable[[Job], str]] = {
    "family": lambda job: job.model.model_type,
    "method": lambda job: job.method.kind,
    "checkpointing": lambda job: job.training.gradient_checkpointing,
    "attention": attention,
    "weights": weights,
    "adapters": adapters,
    "optimizer": lambda job: job.training.optim,
    "loss": lambda job: job.stack.loss,
    "layers": layers,
    "torch": lambda job: job.stack.torch,
    "transformers": lambda job: job.stack.transformers,
    "peft": lambda job: "none" if job.method.trains_base else job.stack.peft,
    "bitsandbytes": lambda job: job.stack.bitsandbytes,
}
REGIME = ("family", "method", "checkpointing")
"""Axes of the table; the others are counted one by one."""


def regime(job: Job) -> tuple[str, ...]:
    """Where a job belongs in the table."""
    return tuple(AXES[axis](job) for axis in REGIME)
