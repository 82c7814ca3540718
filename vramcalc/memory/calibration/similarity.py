"""Which measured runs a job resembles, and which of its settings no measured run has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vramcalc.inputs.base import Usual
from vramcalc.inputs.job import Job
from vramcalc.inputs.quantization import BitsAndBytes4bit
from vramcalc.inputs.stack import Gpu, Method, QLoRA, kbit_prepared
from vramcalc.shadow.families.common.attention_kernel import attention_kernel

_VERSIONS = frozenset({"torch", "cuda", "transformers", "peft", "bitsandbytes"})
_MEASURED_TORCH = "2.13"
"""Release that measured runs are predicted with, whatever theirs was; its rules are those of the releases before it."""
_ELSEWHERE = _VERSIONS | {
    *("name", "attn_implementation", "sdpa_kernel", "alloc_conf", "expandable_segments", "empty_cache_steps"),
    *("bnb_embeddings_32bit", "decay_groups", "outputs_to_float32"),
}
"""Fields of a recipe that are told in other words, or that move too little to matter to an interval."""
_USUAL = {"passes_attention_mask": True, "zero_grad_set_to_none": True}
"""Fields that nothing is said of where they are as in most loops: calibrations made without them hold on."""
SIZES = {
    "params": "{:,} parameters", "seq_len": "sequences of {:,} tokens", "tokens": "micro batches of {:,} tokens"
}  # fmt: skip
"""Sizes that a measured run may have too little of, in words."""


@dataclass(frozen=True)
class Likeness:
    """What decides which measured runs a job is like.

    Attributes:
        regime: method, and whether attention is ``eager`` or ``fused``.
        traits: settings by name; a value that no measured run has is beyond what was checked.
        sizes: as in :data:`SIZES`; one above that of every measured run is beyond what was checked.
    """

    regime: tuple[str, str]
    traits: Mapping[str, str]
    sizes: Mapping[str, int]

    @property
    def family(self) -> tuple[str, ...]:
        """What tells families of recipes apart: method, loss, kernels and release."""
        told = (self.traits.get(name, "") for name in ("loss", "fused_kernels", "transformers"))
        return (self.regime[0], *told)


def kernel(job: Job) -> str:
    """The attention kernel that runs: ``eager``, ``flash-attn 2``, or the one behind SDPA."""
    dtype = job.stack.autocast or ("float32" if kbit_prepared(job.method, job.stack) else job.stack.dtype)
    found, _ = attention_kernel(
        job.model, job.stack, dtype=dtype, masked=job.masked, compute_capability=job.compute_capability
    )
    return "flash-attn 2" if job.stack.attn_implementation == "flash_attention_2" else found


def likeness(job: Job, architecture: str | None) -> Likeness:
    """See :class:`Likeness`; a GPU generation that is not named is like any."""
    training, stack, attention = job.training, job.stack, kernel(job)
    plain = {name: value for name, value in _told(stack.model_dump()).items() if name not in _ELSEWHERE}
    if job.method.trains_base:
        del plain["adapter_dtype"]
    if job.method.storage is None:
        del plain["prepare_model_for_kbit_training"]
    since = stack.release.since
    traits = {
        **({"GPU generation": architecture} if architecture else {}),
        "method": _name(job.method),
        **of_method(job.method),
        "model_type": job.model.model_type,
        "attention": attention,
        "optim": training.optim,
        "gradient_checkpointing": training.gradient_checkpointing,
        "padded": str(training.padded),
        "several lengths": str(training.seq_lens is not None),
        "allocator settings": str(bool(stack.alloc_conf or stack.expandable_segments)),
        "emptied cache": str(stack.empty_cache_steps is not None),
        **({"torch": stack.torch} if stack.torch != _MEASURED_TORCH else {}),
        "transformers": f"{since[0]}.{since[1]} or later",
        **{name: str(value) for name, value in plain.items()},
    }
    sizes = {
        "params": job.model.params_total,
        "seq_len": job.longest,
        "tokens": job.longest * training.micro_batch_size,
    }
    return Likeness((job.method.kind, "eager" if attention in ("eager", "math") else "fused"), traits, sizes)


def _name(method: Method) -> str:
    """What trains; LoRA over four bits goes by the code of its bits."""
    return method.bnb_4bit_quant_type if type(method) is QLoRA else method.kind


def of_method(method: Method) -> dict[str, str]:
    """Fields of a method that tell jobs apart: all but those whose value is declared usual."""
    told: dict[str, str] = {}
    for name, field in type(method).model_fields.items():
        value = getattr(method, name)
        marks = [mark for mark in field.metadata if isinstance(mark, Usual)]
        if name != "kind" and not any(mark.holds(value) for mark in marks):
            told[name] = _in_words(value)
    return told


def _in_words(value: object) -> str:
    match value:
        case frozenset():
            return ", ".join(sorted(value))
        case BitsAndBytes4bit():
            return value.bnb_4bit_quant_type
    return str(value)


def recipe_id(job: Job, gpu: Gpu | None) -> str:
    """Digest of what makes two runs repetitions of one recipe; releases of libraries do not tell them apart."""
    told = {
        "model": job.model.model_dump(mode="json"),
        "method": job.method.model_dump(mode="json"),
        "training": job.training.model_dump(mode="json"),
        "stack": {n: v for n, v in _told(job.stack.model_dump(mode="json")).items() if n not in (*_VERSIONS, "name")},
        "gpu": gpu.name if gpu else None,
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]


def _told(stack: dict[str, Any]) -> dict[str, Any]:
    """Fields of a recipe without those that are as usual."""
    return {name: value for name, value in stack.items() if name not in _USUAL or value != _USUAL[name]}
