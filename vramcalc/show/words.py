"""A recipe and a result in words: what every rendering shares."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vramcalc.inputs.job import Job
from vramcalc.inputs.release_dates import UNKNOWN
from vramcalc.inputs.stack import Gpu, Stack, TrainingSpec
from vramcalc.inputs.targets import copy_dtype, usual_adapter_dtype
from vramcalc.interval import Interval
from vramcalc.memory.calibration.file import current
from vramcalc.memory.calibration.similarity import kernel
from vramcalc.units import GIB

if TYPE_CHECKING:
    from vramcalc.memory.estimate import Estimate

SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
CACHE = "allocator's cache"
"""What is reserved beyond the tensors of the peak."""
_LOSSES = {
    "full": "full logits",
    "cross_entropy": "cross entropy of the loop's own",
    "shifted_cross_entropy": "cross entropy of the loop's own, logits shifted",
    "chunked": "chunked loss (TRL)",
    "fused_linear": "fused linear loss (Liger)",
    "fused_cross_entropy": "fused cross entropy (Unsloth)",
}


def method_line(job: Job) -> str:
    """``"LoRA r=16 on all-linear"``."""
    return job.method.told()


def recipe_lines(job: Job) -> list[str]:
    """The recipe that a result assumes, in a few lines."""
    return [f"{job.stack.name}: {precision(job)}", f"{attention([(job, '')])}, {step_line(job)}", *common_lines(job)]


def shared_recipe_lines(jobs: Sequence[tuple[Job, str]]) -> list[str]:
    """One recipe over several methods and GPUs: what differs is said by method and by GPU.

    Args:
        jobs: each with the GPU it runs on.
    """
    by_method = {job.method.kind: job for job, _ in jobs}
    first = jobs[0][0]
    lines = [f"{kind}: {method_line(job)}; {precision(job)}" for kind, job in by_method.items()]
    return [*lines, f"{first.stack.name}: {step_line(first)}", attention(jobs), *common_lines(first)]


def precision(job: Job) -> str:
    """Dtypes of weights, of the forward pass and of adapters."""
    stack = job.stack
    parts = [f"{SHORT_DTYPES[stack.dtype]} weights"]
    storage = job.method.storage
    if storage is not None:
        parts.append(f"4-bit layers computing in {SHORT_DTYPES[storage.bnb_4bit_compute_dtype]}")
    if stack.autocast:
        parts.append(
            f"{SHORT_DTYPES[stack.autocast]} autocast" + (", loss scaling" if stack.autocast == "float16" else "")
        )
    else:
        parts.append("no autocast")
    adapters = job.method.adapters
    if adapters is not None:
        parts.append(f"{SHORT_DTYPES[usual_adapter_dtype(adapters, stack)]} adapters")
    elif not job.method.trains_base:
        parts.append(f"{SHORT_DTYPES[copy_dtype(stack, 'float32')]} prompt encoder")
    if storage is not None:
        parts.append(_preparation(stack))
    return ", ".join(parts)


def _preparation(stack: Stack) -> str:
    """What has become of weights that are not in four bits."""
    if stack.casts_embeddings_to_bf16:
        return "norms raised to fp32, embeddings in bf16"
    return "rest raised to fp32" if stack.prepare_model_for_kbit_training else "no k-bit preparation"


def attention(jobs: Sequence[tuple[Job, str]]) -> str:
    """The attention kernel, by GPU where it differs, and by method where it differs on one GPU."""
    on_gpu: dict[str, set[str]] = {}
    for job, gpu in jobs:
        on_gpu.setdefault(gpu, set()).add(kernel(job))
    by_kernel: dict[str, dict[str, None]] = {}
    for job, gpu in jobs:
        place = gpu if len(on_gpu[gpu]) == 1 else f"{gpu} ({job.method.kind})"
        by_kernel.setdefault(kernel(job), {})[place] = None
    for implementation in ("eager", "flash-attn 2"):
        if implementation in by_kernel:
            return f"{implementation} attention"
    if len(by_kernel) == 1:
        return f"SDPA {next(iter(by_kernel))} attention"
    return "SDPA attention: " + "; ".join(f"{name} on {', '.join(gpus)}" for name, gpus in by_kernel.items())


def step_line(job: Job) -> str:
    """``"full logits, no checkpointing, adamw_torch_fused"``."""
    checkpointing = {
        "none": "no checkpointing",
        "reentrant": "reentrant checkpointing",
        "non_reentrant": "non-reentrant checkpointing",
    }[job.training.gradient_checkpointing]
    kernels = "" if job.stack.fused_kernels == "none" else f"{job.stack.fused_kernels} kernels, "
    return f"{kernels}{_LOSSES[job.stack.loss]}, {checkpointing}, {_optimizer(job)}"


def _optimizer(job: Job) -> str:
    optim, facts, stack = job.training.optim, job.training.optimizer, job.stack
    rules = []
    if facts.library == "bitsandbytes" and facts.low_bit and stack.bnb_embeddings_32bit:
        rules.append("32-bit states of embeddings")
    if not stack.decay_groups:
        rules.append("one parameter group")
    return f"{optim} ({', '.join(rules)})" if rules else optim


def common_lines(job: Job) -> list[str]:
    """Batch, loop and versions."""
    stack, training = job.stack, job.training
    loop = [f"zero_grad at the {stack.zero_grad}" + ("" if stack.zero_grad_set_to_none else ", in place")]
    if stack.keeps_outputs != "no":
        loop.append(f"outputs kept until the {stack.keeps_outputs.replace('_', ' ')} ends")
    if stack.autocast and not stack.outputs_to_float32:
        loop.append("outputs left in 16 bits")
    if stack.repeats_kv:
        loop.append("keys and values repeated")
    if job.fills_cache:
        loop.append("KV cache on")
    if stack.expandable_segments:
        loop.append("expandable_segments")
    if stack.alloc_conf:
        loop.append(f"PYTORCH_ALLOC_CONF={stack.alloc_conf}")
    if stack.empty_cache_steps:
        loop.append(f"cache emptied every {stack.empty_cache_steps} steps")
    loop.append(f"clipping at {training.max_grad_norm:g}" if training.max_grad_norm else "no clipping")
    batch = f"micro batch {training.micro_batch_size} x {_tokens(training)}"
    batch += ", padded" if training.padded else ", unpadded"
    if not stack.passes_attention_mask:
        batch += ", no attention_mask"
    if training.gradient_accumulation_steps > 1:
        batch += f", {training.gradient_accumulation_steps} accumulation steps"
    return [
        f"{batch}; {', '.join(loop)}",
        f"torch {stack.torch}{_cuda(stack)}, transformers {_release(stack)}, peft {stack.peft}, "
        f"bitsandbytes {stack.bitsandbytes}",
    ]


def _cuda(stack: Stack) -> str:
    return f" for CUDA {stack.cuda}" if stack.cuda else ""


def _release(stack: Stack) -> str:
    """The release of transformers, and what is known of it where it is not."""
    version, _, when = stack.transformers.partition("@")
    if not when:
        return version
    return f"{version} (release not known)" if when == UNKNOWN else f"{version} (release not known, run of {when})"


def _tokens(training: TrainingSpec) -> str:
    """The length, or those of the steps as a range and a count."""
    lengths = training.seq_lens
    if lengths is None:
        return f"{training.seq_len:,} tokens"
    return f"{min(lengths):,} to {max(lengths):,} tokens over {len(lengths):,} steps"


def process_groups(estimate: Estimate) -> dict[str, int]:
    """Groups alive at the peak and what the allocator holds beyond them: together what nvidia-smi shows. [B]"""
    return {**estimate.groups, CACHE: estimate.reserved_bytes - estimate.allocated_bytes}


def room(gpu: Gpu) -> str:
    """What a GPU's usable bytes are: those free on a detected one, those of its kind otherwise."""
    return "usable" if gpu.free_bytes is None else "free now"


# -- intervals ---------------------------------------------------------------------------------------------------------


def ends(interval: Interval) -> tuple[float, float]:
    """Both bounds."""
    return interval.low, interval.high


def span(low: float, high: float) -> str:
    """Bounds in GiB, such as ``13.2 to 15.0``."""
    return f"{low / GIB:.2f} to {high / GIB:.2f}"


def interval_notes(e: Estimate) -> list[str]:
    """What widens the intervals of an estimate, and whose they are."""
    unchecked = e.unchecked
    notes = [f"intervals are wider, as no measured run has: {', '.join(unchecked)}"] if unchecked else []
    return [*notes, *calibration_notes()]


def calibration_notes() -> list[str]:
    """Which calibration is in force where it is not the shipped one, or why that is."""
    note = current().note
    return [note] if note else []
