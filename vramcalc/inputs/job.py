"""One training job, spelled out; combinations that cannot run, or are not modelled, are refused when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from vramcalc.errors import Unsupported
from vramcalc.inputs.refusals import refuse
from vramcalc.inputs.refused_prompts import refuse_prompts
from vramcalc.inputs.releases import PADDING_CHECKED, minor_release
from vramcalc.inputs.stack import (
    OWN_LOSSES,
    LoRA,
    Method,
    ModelSpec,
    Stack,
    TrainingSpec,
    kbit_prepared,
)
from vramcalc.inputs.targets import copy_dtype, is_saved, is_target, usual_adapter_dtype


@dataclass(frozen=True)
class Job:
    """Everything that decides the allocations of a training step.

    Raises:
        Unsupported: settings that do not go together.
    """

    model: ModelSpec
    method: Method
    training: TrainingSpec
    stack: Stack
    compute_capability: tuple[int, int] = (8, 0)

    def __post_init__(self) -> None:
        adapters = self.method.adapters
        takes_logits = self.stack.loss in ("full", *OWN_LOSSES)
        if not takes_logits and adapters and is_target(adapters, "lm_head"):
            raise Unsupported(
                f"loss={self.stack.loss!r} reads the head's weight and passes by an adapter on lm_head; "
                "take lm_head out of target_modules, put it into modules_to_save, or use loss='full'"
            )
        self._checked_release()
        refuse(self.model, self.method, self.stack)
        refuse_prompts(self.model, self.method, self.training, self.stack)
        if self._unscales_float16():
            raise Unsupported(
                "autocast='float16' scales the loss, and torch's GradScaler refuses to unscale float16 gradients; "
                "let what trains be float32: dtype='float32' for full fine-tuning and modules_to_save, "
                "adapter_dtype='float32' for adapters"
            )

    def _checked_release(self) -> None:
        """Refuse what transformers' releases do differently in ways that no trace has been compared with."""
        release, version = self.stack.release, f"transformers={self.stack.transformers!r}"
        since = self.model.family.since
        if (minor_release(self.stack.transformers) or (0, 0)) < since:
            does = self.model.family.earlier or f"has no {self.model.model_type}"
            raise Unsupported(f"{self.model.name}: {version} {does}; use {since[0]}.{since[1]} or later")
        if self.training.padded and self.stack.attn_implementation == "flash_attention_2":
            raise Unsupported(
                "padded=True with attn_implementation='flash_attention_2' cuts the padding out, and memory then "
                "depends on every length; give the micro_batch_size and seq_len of what is left, with padded=False"
            )
        if (
            self.stack.attn_implementation == "flash_attention_2"
            and (self.stack.autocast or self.stack.dtype) == "float32"
        ):
            raise Unsupported(
                "attn_implementation='flash_attention_2' takes 16-bit tensors only; set autocast='bfloat16', "
                "or dtype='bfloat16'"
            )
        if not self.stack.passes_attention_mask:
            self._checked_unmasked(version)
        if self.stack.attn_implementation == "flash_attention_2" and self.compute_capability < (8, 0):
            capability = ".".join(map(str, self.compute_capability))
            raise Unsupported(
                "attn_implementation='flash_attention_2' needs compute capability 8.0 (Ampere) or later, and this GPU "
                f"has {capability}; use attn_implementation='sdpa'"
            )
        if not release.additive_mask:
            return
        if self.training.padded and release.since < PADDING_CHECKED:
            raise Unsupported(f"{version} with padded=True has not been checked; use 4.48 or later, or padded=False")
        if self.stack.attn_implementation == "eager" and self.training.gradient_checkpointing != "none":
            raise Unsupported(
                f"{version} with eager attention and gradient checkpointing has not been checked; use 4.53 or later, "
                "attn_implementation='sdpa' or gradient_checkpointing='none'"
            )

    def _checked_unmasked(self, version: str) -> None:
        """Refuse padding that nothing marks, and a mask whose rows no kernel takes as they lie."""
        if self.training.padded:
            raise Unsupported(
                "padded=True with passes_attention_mask=False: only an attention_mask says where the padding is; "
                "leave one of them out"
            )
        if self.stack.release.additive_mask and self.stack.attn_implementation == "sdpa" and self.windowed:
            raise Unsupported(
                f"{version} with passes_attention_mask=False and sequences of at least sliding_window="
                f"{self.model.sliding_window:,} tokens has not been checked; use 4.53 or later, or shorter sequences"
            )

    @property
    def longest(self) -> int:
        """Positions of the longest sequence: its tokens, and the virtual ones before them. [tokens]"""
        return self.training.seq_len + self.method.num_virtual_tokens

    @property
    def windowed(self) -> bool:
        """Whether the longest sequence reaches the sliding window that masks are made for."""
        window = self.model.sliding_window
        unseen = self.stack.release.ignores_window and self.stack.attn_implementation == "sdpa"
        return window is not None and not unseen and self.longest >= window

    @property
    def masked(self) -> bool:
        """Whether SDPA is given a mask: for padding, for a window, as if sequences were packed, or for keys before."""
        finds_keys = self.method.virtual_keys_only and self.training.seq_len > 1
        return self.training.padded or self.windowed or self.taken_for_packed or finds_keys

    @property
    def taken_for_packed(self) -> bool:
        """Whether sequences get a mask as if they were packed, for want of an ``attention_mask`` and a cache."""
        return self.stack.release.packs_unmasked and not self.stack.passes_attention_mask and not self.fills_cache

    def _unscales_float16(self) -> bool:
        """Whether the scaler meets a float16 gradient; a fused optimizer without clipping unscales by itself."""
        if self.stack.autocast != "float16":
            return False
        if self.training.optimizer.one_kernel and not self.training.max_grad_norm:
            return False
        adapters = self.method.adapters
        if self.method.trains_base:
            return self.stack.dtype == "float16"
        if adapters is None:
            return copy_dtype(self.stack, "float32") == "float16"
        found = {usual_adapter_dtype(adapters, self.stack)}
        if adapters.modules_to_save:
            found.add(copy_dtype(self.stack, "float32" if kbit_prepared(self.method, self.stack) else self.stack.dtype))
        return "float16" in found

    @property
    def mixes_dtypes(self) -> bool:
        """Whether trained copies meet weights of another dtype in a product, without autocast to make them one."""
        method, stack = self.method.adapters, self.stack
        if method is None or not method.modules_to_save or stack.autocast is not None:
            return False
        weights = "float32" if kbit_prepared(method, stack) else stack.dtype
        if copy_dtype(stack, weights) == weights:
            return False
        # What a norm or an embedding makes of 16 bits is raised to float32 by float32 weights, of most norms.
        kept = self.model.family.norms_keep_dtype and is_saved(method, "model.embed_tokens")
        return weights != "float32" or kept or _saves_linear(method, self.model.num_hidden_layers)

    @property
    def fills_cache(self) -> bool:
        """Whether the forward pass builds a KV cache: checkpointing and TRL's fused head switch it off."""
        wanted = self.stack.use_cache and self.stack.release.caches
        return wanted and self.training.gradient_checkpointing == "none" and self.stack.loss != "chunked"


def _saves_linear(method: LoRA, n_layers: int) -> bool:
    """Whether a copy is multiplied with hidden states: a norm or an embedding is not."""
    inner = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    names = ["lm_head", *(f"model.layers.{i}.{name}" for i in range(n_layers) for name in inner)]
    return any(is_saved(method, name) for name in names)
