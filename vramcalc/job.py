"""One training job, spelled out; combinations that cannot run, or are not modelled, are refused when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from vramcalc.errors import Unsupported
from vramcalc.methods.lora import copy_dtype, is_target, usual_adapter_dtype
from vramcalc.specs import FullFineTuning, LoRA, Method, ModelSpec, QLoRA, Stack, TrainingSpec


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
        if self.stack.loss != "full" and isinstance(self.method, LoRA) and is_target(self.method, "lm_head"):
            raise Unsupported(
                f"loss={self.stack.loss!r} reads the head's weight and passes by an adapter on lm_head; "
                "take lm_head out of target_modules, put it into modules_to_save, or use loss='full'"
            )
        self._checked_release()
        if self._unscales_float16():
            raise Unsupported(
                "autocast='float16' scales the loss, and torch's GradScaler refuses to unscale float16 gradients; "
                "let what trains be float32: dtype='float32' for full fine-tuning and modules_to_save, "
                "adapter_dtype='float32' for adapters"
            )

    def _checked_release(self) -> None:
        """Refuse what transformers' releases do differently in ways that no trace has been compared with."""
        release, version = self.stack.release, f"transformers={self.stack.transformers!r}"
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
        if not release.additive_mask:
            return
        if self.training.padded and release.raises_logits:
            raise Unsupported(f"{version} with padded=True has not been checked; use 4.48 or later, or padded=False")
        if self.stack.attn_implementation == "eager" and self.training.gradient_checkpointing != "none":
            raise Unsupported(
                f"{version} with eager attention and gradient checkpointing has not been checked; use 4.53 or later, "
                "attn_implementation='sdpa' or gradient_checkpointing='none'"
            )

    def _unscales_float16(self) -> bool:
        """Whether the scaler meets a float16 gradient; a fused optimizer without clipping unscales by itself."""
        if self.stack.autocast != "float16":
            return False
        if self.training.optim == "adamw_torch_fused" and not self.training.max_grad_norm:
            return False
        if isinstance(self.method, FullFineTuning):
            return self.stack.dtype == "float16"
        prepared = isinstance(self.method, QLoRA) and self.stack.prepare_model_for_kbit_training
        found = {usual_adapter_dtype(self.method, self.stack)}
        if self.method.modules_to_save:
            found.add(copy_dtype(self.stack, "float32" if prepared else self.stack.dtype))
        return "float16" in found

    @property
    def fills_cache(self) -> bool:
        """Whether the forward pass builds a KV cache: checkpointing and TRL's fused head switch it off."""
        wanted = self.stack.use_cache and self.stack.release.caches
        return wanted and self.training.gradient_checkpointing == "none" and self.stack.loss != "chunked"
