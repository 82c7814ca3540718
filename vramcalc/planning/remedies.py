"""Changes to a job that lower what it needs, each found by estimating again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vramcalc.errors import DoesNotFit, InvalidValue, Unsupported
from vramcalc.inputs.job import Job
from vramcalc.inputs.optimizers import OPTIMIZERS
from vramcalc.inputs.presets import PRESETS, stack_of
from vramcalc.inputs.stack import OWN_LOSSES, LoRA, Method, Stack, TrainingSpec
from vramcalc.memory.estimate import Estimate, estimate_job
from vramcalc.planning.largest import largest_value
from vramcalc.planning.verdict import Status, Verdict, verdict

Change = tuple[str, dict[str, Any]]
"""What is done, in words and as fields by name."""


@dataclass(frozen=True)
class Remedy:
    """A change to a job and what it brings.

    Attributes:
        change: in words.
        settings: fields that differ, by name.
        saves_bytes: process memory saved. [B]
        status: of the changed job.
        needed_bytes: of the changed job. [B]
    """

    change: str
    settings: dict[str, Any]
    saves_bytes: int
    status: Status
    needed_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def remedies(found: Verdict) -> Iterator[Remedy]:
    """Changes that save memory, the least intrusive first."""
    for change, settings in _changes(found):
        estimated = _estimated(found, settings)
        if estimated is None:
            continue
        changed = verdict(estimated)
        saves = found.needed_bytes - changed.needed_bytes
        if saves > 0:
            yield Remedy(change, settings, saves, changed.status, changed.needed_bytes)


def first_that_fits(found: Verdict) -> Remedy | None:
    """The least intrusive change after which the job fits, None when none is enough."""
    for change, settings in _changes(found):
        estimated = _estimated(found, settings)
        if estimated is None or estimated.allocated_bytes + estimated.context.n_bytes > found.usable_bytes:
            continue
        changed = verdict(estimated)
        if changed.status != "does not fit":
            saves = found.needed_bytes - changed.needed_bytes
            return Remedy(change, settings, saves, changed.status, changed.needed_bytes)
    return None


def _estimated(found: Verdict, settings: dict[str, Any]) -> Estimate | None:
    """The changed job's estimate, None where the change does not go with the rest."""
    try:
        return estimate_job(_changed(found.estimate.job, settings), found.gpu)
    except (InvalidValue, Unsupported):
        return None


def _changed(job: Job, settings: dict[str, Any]) -> Job:
    """A job with fields replaced by name."""
    method: Method = job.method
    if "quantization" in settings:
        method = method.over_four_bits()
    match settings.get("method"):
        case "lora":
            method = LoRA()
        case "qlora":
            method = method.over_four_bits()
    training = {n: v for n, v in settings.items() if n in TrainingSpec.model_fields}
    stack = {n: v for n, v in settings.items() if n in Stack.model_fields}
    return Job(job.model, method, job.training.replace(**training), job.stack.replace(**stack), job.compute_capability)


def _changes(found: Verdict) -> Iterator[Change]:
    """Changes to try: those that leave the result alone, those of the optimizer, the weights, the data, the method."""
    job = found.estimate.job
    listed = (*_harmless(job), *_batch(found), *_optimizers(job), *_weights(job))
    single = [change for change in listed if _estimated(found, change[1])]
    yield from single
    if len(single) > 1:
        yield _together(single)
    yield from _shorter(found)
    for method in _methods(job):
        yield method
        yield from (_together([method, c]) for c in single if "gradient_checkpointing" in c[1])
        if len(single) > 1:
            yield _together([method, *single])


def _together(changes: list[Change]) -> Change:
    """Several changes as one; of two that set the same field the later counts."""
    by_field = {name: change for change, given in changes for name in given}
    settings = {name: value for _, given in changes for name, value in given.items()}
    return ", ".join(change for change, _ in changes if change in by_field.values()), settings


def _harmless(job: Job) -> Iterator[Change]:
    """Changes after which the same numbers are computed."""
    training, stack = job.training, job.stack
    if not stack.allocator.expandable_segments:
        yield "expandable_segments", {"expandable_segments": True}
    optimizer = training.optimizer
    if optimizer.library == "torch" and optimizer.algorithm == "adamw" and not optimizer.one_kernel:
        yield "fused optimizer", {"optim": "adamw_torch_fused"}
    if stack.attn_implementation == "eager" and "sdpa" in job.model.family.attention:
        yield "SDPA attention", {"attn_implementation": "sdpa"}
    elif stack.attn_implementation == "eager":
        yield "flash-attn", {"attn_implementation": "flash_attention_2"}
    elif stack.sdpa_kernel == "math":
        yield "fused attention kernel", {"sdpa_kernel": "auto"}
    if stack.loss in ("full", *OWN_LOSSES):
        yield "fused linear loss", {"loss": "fused_linear"}
    if training.gradient_checkpointing == "none":
        yield "gradient checkpointing", {"gradient_checkpointing": "non_reentrant"}


def _batch(found: Verdict) -> Iterator[Change]:
    """The largest part of the micro batch that fits, and 1 where none does; accumulation makes up for it."""
    training = found.estimate.job.training
    whole = training.micro_batch_size
    parts = [n for n in range(whole - 1, 0, -1) if whole % n == 0]
    for part in parts:
        settings = {
            "micro_batch_size": part,
            "gradient_accumulation_steps": training.gradient_accumulation_steps * whole // part,
        }
        estimated = _estimated(found, settings)
        if part == 1 or (estimated is not None and verdict(estimated).status != "does not fit"):
            yield f"micro batch {part}, accumulation {settings['gradient_accumulation_steps']}", settings
            return


def _optimizers(job: Job) -> Iterator[Change]:
    """Those of bitsandbytes that do the same with less."""
    now = job.training.optimizer
    for name, other in OPTIMIZERS.items():
        alike = other.library == "bitsandbytes" and other.algorithm == now.algorithm
        if alike and other.state_bits == 8 and not now.paged and (other.paged or not now.low_bit):
            yield "paged 8-bit optimizer" if other.paged else "8-bit optimizer", {"optim": name}


def _weights(job: Job) -> Iterator[Change]:
    """What is frozen needs no float32, as far as the GPU has bfloat16."""
    if not job.method.trains_base and job.stack.dtype == "float32" and job.compute_capability >= (8, 0):
        yield "bf16 weights", {"dtype": "bfloat16"}


def _methods(job: Job) -> Iterator[Change]:
    """Methods that store less, with what the recipe changes for them."""
    if job.method.trains_base:
        yield "LoRA r=16", {"method": "lora"}
    if job.method.storage is None:
        over = job.method.over_four_bits()
        recipe = PRESETS.get(job.stack.name)
        usual = stack_of(job.stack.name, method="lora") if recipe else job.stack
        own = recipe.qlora if recipe else {}
        kept = {name: value for name, value in own.items() if getattr(job.stack, name) == getattr(usual, name)}
        if over.kind == job.method.kind:
            yield "NF4 base model", {"quantization": "nf4", **kept}
        else:
            yield "QLoRA NF4", {"method": over.kind, **kept}


def _shorter(found: Verdict) -> Iterator[Change]:
    """The longest sequence that fits, when the given one does not."""
    if found.status != "does not fit":
        return
    try:
        length = found.estimate.job.training.seq_len
        best = largest_value(found.estimate.job, found.gpu, "seq_len", length, climbs=False)
    except DoesNotFit:
        return
    yield f"sequences of {best:,} tokens", {"seq_len": best}
