"""Warnings that travel with a result: settings that work but surprise, and parts that nobody has checked on a GPU."""

from __future__ import annotations

from collections.abc import Iterator

from vramcalc.inputs.alloc_conf import read
from vramcalc.inputs.job import Job
from vramcalc.inputs.release_dates import UNKNOWN, candidates, not_modelled, unknown_since
from vramcalc.inputs.stack import Gpu
from vramcalc.inputs.torch_releases import TORCH_RELEASES
from vramcalc.memory.calibration.similarity import kernel
from vramcalc.memory.unexplained import unexplained_bytes
from vramcalc.units import gib


def warnings_for(job: Job, gpu: Gpu | None) -> Iterator[str]:
    """Warnings on a job, and on the GPU it is to run on."""
    yield from _on_release(job)
    yield from _on_sizes(job)
    yield from _on_config(job)
    yield from _on_lengths(job)
    yield from _on_experts(job)
    yield from _on_loop(job)
    yield from _on_dtypes(job, gpu)
    yield from _on_alloc_conf(job)
    yield from _on_reserved(job)
    yield from _unchecked(job)


def _on_release(job: Job) -> Iterator[str]:
    when = unknown_since(job.stack.transformers)
    if when is None:
        return
    modelled, found = job.stack.transformers.partition("@")[0], candidates(when)
    dated = "" if when == UNKNOWN else f" that a run of {when} may have used"
    yield (
        f"unchecked: the release of transformers is not known; numbers are those of {modelled}, intervals and chances "
        f"span {found[-1]} to {found[0]}{dated}"
    )
    if missing := not_modelled(when):
        yield f"unchecked: transformers {', '.join(missing)}{dated} is not modelled"


def _on_sizes(job: Job) -> Iterator[str]:
    model, training = job.model, job.training
    if job.longest > model.max_position_embeddings:
        virtual = job.method.num_virtual_tokens
        before = f" with {virtual:,} virtual tokens before it" if virtual else ""
        yield (
            f"seq_len {training.seq_len:,}{before} is above the model's max_position_embeddings "
            f"({model.max_position_embeddings:,})"
        )
    adapters = job.method.adapters
    if adapters is not None:
        narrowest = min(model.hidden_size, model.num_key_value_heads * model.head_dim)
        if adapters.rank > narrowest:
            yield (
                f"rank {adapters.rank:,} is above the width of the narrowest layer ({narrowest:,}); "
                "such an adapter has more parameters than the layer"
            )


def _on_config(job: Job) -> Iterator[str]:
    asked, used = job.model.attn_implementation, job.stack.attn_implementation
    if asked is None or asked == used == "sdpa":
        return
    if asked == used:
        yield f"attention is {asked}, as the model's config.json asks for; attn_implementation overrides it"
    else:
        yield f"attention is {used} as set, not the {asked} of the model's config.json"


def _on_lengths(job: Job) -> Iterator[str]:
    first, *later = job.training.seq_lens or (0,)
    if first > max(later, default=0):
        yield (
            f"seq_lens: the longest step ({first:,} tokens) is the first, which finds no optimizer states yet; a run "
            "that meets that length again needs more: list it again, or give seq_len"
        )


def _on_experts(job: Job) -> Iterator[str]:
    experts, per_token = job.model.num_local_experts, job.model.num_experts_per_tok
    if experts is None or per_token is None or job.stack.release.fuses_experts:
        return
    tokens = job.training.micro_batch_size * job.training.seq_len
    yield (
        f"a perfectly balanced router is assumed: {-(-tokens * per_token // experts):,} of {tokens:,} tokens for each "
        f"of {experts} experts; peaks among the experts are higher where one of them gets more"
    )


def _on_loop(job: Job) -> Iterator[str]:
    adapters = job.method.adapters
    if adapters is not None and adapters.assumed:
        yield adapters.assumed


def _on_dtypes(job: Job, gpu: Gpu | None) -> Iterator[str]:
    stack = job.stack
    if job.mixes_dtypes:
        yield (
            f"cannot run as it is: adapter_dtype={stack.adapter_dtype!r} casts the copies of modules_to_save, and "
            "torch multiplies them with nothing of another dtype; set autocast, or adapter_dtype='weights'"
        )
    uses_bf16 = "bfloat16" in (stack.dtype, stack.autocast)
    if uses_bf16 and job.compute_capability < (8, 0):
        name = gpu.gpu_id if gpu else "compute capability " + ".".join(map(str, job.compute_capability))
        yield f"{name} has no bfloat16 arithmetic; use float16 weights and autocast with loss scaling"


def _on_alloc_conf(job: Job) -> Iterator[str]:
    if job.stack.alloc_conf:
        yield from read(job.stack.alloc_conf).notes


def _on_reserved(job: Job) -> Iterator[str]:
    if found := unexplained_bytes(job):
        yield (
            f"reserved memory includes {gib(found)}, a float32 copy of the logits: runs with Unsloth's cross entropy "
            "reserved it beyond every request that is known; the cause is not"
        )


def _unchecked(job: Job) -> Iterator[str]:
    wheel = job.stack.wheel
    if kernel(job) == "cudnn":
        yield (
            f"unchecked on a GPU: cuDNN attends with torch {job.stack.torch} for CUDA {wheel.cuda} (cuDNN "
            f"{'.'.join(map(str, wheel.cudnn))}); its workspace is read in cudnn-frontend's source, not measured"
        )
    if wheel.release is not TORCH_RELEASES[0]:
        yield (
            f"unchecked on a GPU: no measured run has torch {job.stack.torch}; traces were compared, and which kernel "
            "attends was read in its library"
        )
    if job.training.optimizer.library == "torchao":
        yield "unchecked on a GPU: torchao's compiled optimizer step is taken to allocate nothing"
    if job.training.optimizer.paged:
        yield "paged optimizer states lie in managed memory and move to the host when the GPU is full"
