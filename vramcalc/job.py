"""One training job, spelled out; combinations that cannot run, or are not modelled, are refused when it is made."""

from __future__ import annotations

from dataclasses import dataclass

from vramcalc.errors import Unsupported
from vramcalc.methods.lora import adapts_whole_mlp, copy_dtype, is_saved, is_target, usual_adapter_dtype
from vramcalc.releases import EXPERTS_CHECKED, PEFT_RAISES_ADAPTERS, minor_release
from vramcalc.specs import (
    OWN_LOSSES,
    FullFineTuning,
    LoRA,
    Method,
    ModelSpec,
    QLoRA,
    Stack,
    TrainingSpec,
    kbit_prepared,
)

_EXPERTS = (
    *(f"block_sparse_moe.{name}" for name in ("gate", "experts.0.w1", "experts.0.w2", "experts.0.w3")),
    *(f"mlp.{name}" for name in ("gate", *(f"experts.{w}" for w in ("w1", "w2", "w3", "gate_up_proj", "down_proj")))),
)
"""Parts of a layer's mixture of experts by the names of any release: PEFT translates old ones."""

_SINCE = {"granite": (4, 45), "qwen2": (4, 37), "qwen3": (4, 51)}
"""First release of transformers with a family, where it is not the first that is modelled."""


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
        takes_logits = self.stack.loss in ("full", *OWN_LOSSES)
        if not takes_logits and isinstance(self.method, LoRA) and is_target(self.method, "lm_head"):
            raise Unsupported(
                f"loss={self.stack.loss!r} reads the head's weight and passes by an adapter on lm_head; "
                "take lm_head out of target_modules, put it into modules_to_save, or use loss='full'"
            )
        self._checked_release()
        if self.model.model_type == "granite":
            self._checked_granite()
        if (minor_release(self.stack.transformers) or (0, 0)) < (4, 43):
            self._checked_early()
        if self.model.num_local_experts is not None:
            self._checked_experts()
        if self.stack.fused_kernels != "none":
            self._checked_fused_kernels()
        if isinstance(self.method, QLoRA) and self.stack.casts_embeddings_to_bf16:
            self._checked_casts(self.method)
        if isinstance(self.method, LoRA):
            self._checked_peft(self.method)
        self._checked_dtypes()
        if self._unscales_float16():
            raise Unsupported(
                "autocast='float16' scales the loss, and torch's GradScaler refuses to unscale float16 gradients; "
                "let what trains be float32: dtype='float32' for full fine-tuning and modules_to_save, "
                "adapter_dtype='float32' for adapters"
            )

    def _checked_release(self) -> None:
        """Refuse what transformers' releases do differently in ways that no trace has been compared with."""
        release, version = self.stack.release, f"transformers={self.stack.transformers!r}"
        since = _SINCE.get(self.model.model_type, (0, 0))
        if (minor_release(self.stack.transformers) or (0, 0)) < since:
            raise Unsupported(
                f"{self.model.name}: {version} has no {self.model.model_type}; use {since[0]}.{since[1]} or later"
            )
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
        if self.training.padded and release.raises_logits:
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
    def windowed(self) -> bool:
        """Whether the longest sequence reaches the sliding window that masks are made for."""
        window = self.model.sliding_window
        unseen = self.stack.release.ignores_window and self.stack.attn_implementation == "sdpa"
        return window is not None and not unseen and self.training.seq_len >= window

    @property
    def masked(self) -> bool:
        """Whether SDPA is given a mask: for padding, for a window, or as if sequences were packed."""
        return self.training.padded or self.windowed or self.taken_for_packed

    @property
    def taken_for_packed(self) -> bool:
        """Whether sequences get a mask as if they were packed, for want of an ``attention_mask`` and a cache."""
        return self.stack.release.packs_unmasked and not self.stack.passes_attention_mask and not self.fills_cache

    def _checked_peft(self, method: LoRA) -> None:
        """Refuse float32 adapters beside 16-bit layers where PEFT has no ``autocast_adapter_dtype`` yet."""
        stack = self.stack
        raises = stack.adapter_dtype == "float32" and stack.dtype != "float32" and not isinstance(method, QLoRA)
        if raises and (minor_release(stack.peft) or (0, 0)) < PEFT_RAISES_ADAPTERS:
            raise Unsupported(
                f"peft={stack.peft!r} leaves adapters in the dtype of their layers, {stack.dtype}; use peft='0.12' or "
                "later, or adapter_dtype='weights'"
            )

    def _checked_early(self) -> None:
        """Refuse what releases before 4.43 do in a way that no trace has been compared with, or do not do."""
        model, release, version = self.model, self.stack.release, f"transformers={self.stack.transformers!r}"
        sdpa = self.stack.attn_implementation == "sdpa"
        if not self.stack.passes_attention_mask:
            raise Unsupported(f"{version} with passes_attention_mask=False has not been checked; use 4.43 or later")
        if sdpa and model.model_type in release.always_masks | release.without_sdpa:
            does = "always gives SDPA a mask" if model.model_type in release.always_masks else "has no SDPA"
            raise Unsupported(
                f"{model.name}: {version} {does} in {model.model_type}, which has not been checked; use another "
                "release, or attn_implementation='flash_attention_2'"
            )
        if self.stack.attn_implementation == "eager" and model.model_type in release.causal_buffer:
            raise Unsupported(
                f"{model.name}: {version} gives eager attention a mask of every position there could be, "
                f"{model.max_position_embeddings:,} squared; use another release, or "
                "attn_implementation='flash_attention_2'"
            )
        if model.head_dim * model.num_attention_heads != model.hidden_size or model.mlp_bias:
            raise Unsupported(
                f"{model.name}: {version} builds heads of hidden_size / num_attention_heads and an MLP without bias; "
                "use 4.43 or later"
            )

    def _checked_dtypes(self) -> None:
        """Refuse tensors of two dtypes where torch multiplies or joins only those of one."""
        stack, method = self.stack, self.method
        if (
            isinstance(method, QLoRA)
            and stack.autocast is not None
            and {stack.dtype, stack.autocast} == {"bfloat16", "float16"}
            and not stack.prepare_model_for_kbit_training
            and not _adapts_rotated(method, self.model.num_hidden_layers)
        ):
            raise Unsupported(
                f"autocast={stack.autocast!r} over four-bit layers loaded with dtype={stack.dtype!r}: queries and keys "
                "without an adapter keep that dtype, and torch.cat of rotary positions stops under autocast of the "
                f"other 16-bit type; let dtype be {stack.autocast!r}, set prepare_model_for_kbit_training=True, or "
                "put q_proj and k_proj into target_modules"
            )
        experts = self.model.num_local_experts is not None and stack.release.fuses_experts
        if experts and (self.model.intermediate_size % 8 or self.model.hidden_size % 8):
            raise Unsupported(
                f"{self.model.name}: transformers={stack.transformers!r} multiplies experts by torch's grouped_mm, "
                "whose rows must be multiples of 16 bytes: an intermediate_size and a hidden_size that 8 divides; "
                "use transformers='4.57', where experts are linear layers"
            )

    def _checked_granite(self) -> None:
        """Refuse losses that would have to divide the logits themselves."""
        name, stack = self.model.name, self.stack
        if stack.loss not in ("full", "fused_cross_entropy", *OWN_LOSSES):
            raise Unsupported(
                f"{name}: loss={stack.loss!r} makes logits by itself, and granite's are scaled; use loss='full'"
            )

    def _checked_casts(self, method: QLoRA) -> None:
        """Refuse what trains by a name that the cast looks for, and a forward pass over two dtypes."""
        setting = "casts_embeddings_to_bf16=True"
        if self.stack.autocast != "bfloat16":
            raise Unsupported(f"{setting} goes with autocast='bfloat16': the head is given float32")
        if any(is_target(method, n) or is_saved(method, n) for n in ("lm_head", "model.embed_tokens")):
            raise Unsupported(
                f"{setting} with an adapter on the embedding or the head, or a copy of either, has not been checked; "
                "leave it out of target_modules and modules_to_save"
            )

    def _checked_experts(self) -> None:
        """Refuse what has not been compared with a trace of a mixture of experts."""
        model, stack, method = self.model, self.stack, self.method
        if stack.loss not in ("full", "fused_cross_entropy", *OWN_LOSSES):
            raise Unsupported(
                f"{model.name}: loss={stack.loss!r} with a mixture of experts has not been checked; use loss='full'"
            )
        names = [f"model.layers.{i}.{m}" for i in range(model.num_hidden_layers) for m in _EXPERTS]
        if isinstance(method, LoRA) and any(is_saved(method, name) for name in names):
            raise Unsupported(
                f"{model.name}: modules_to_save with a router or experts has not been checked; leave them out"
            )
        if not stack.release.fuses_experts:
            return
        version = f"{model.name}: transformers={stack.transformers!r}"
        if minor_release(stack.transformers) not in EXPERTS_CHECKED:
            known = " and ".join(f"{major}.{minor}" for major, minor in EXPERTS_CHECKED)
            raise Unsupported(
                f"{version} sorts tokens by expert in a way that has not been checked; use {known}, or 4.57 or earlier"
            )
        if stack.dtype != "bfloat16" or kbit_prepared(method, stack):
            raise Unsupported(
                f"{version} keeps all experts in one tensor, which bitsandbytes leaves in 16 bits; checked in bfloat16 "
                "only: set dtype='bfloat16' and, for QLoRA, prepare_model_for_kbit_training=False, which would raise "
                "the experts to float32; or use transformers='4.57', where experts are linear layers"
            )
        if isinstance(method, LoRA) and (
            isinstance(method.target_modules, str) or any(is_target(method, name) for name in names)
        ):
            raise Unsupported(
                f"{version} has no linear layers in its router and experts, and what PEFT makes of a pattern or of "
                "their names is not modelled; use target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'], or "
                "transformers='4.57'"
            )

    def _checked_fused_kernels(self) -> None:
        """Refuse what the plugin does not run, and what has not been compared with it."""
        stack, method, setting = self.stack, self.method, f"fused_kernels={self.stack.fused_kernels!r}"
        if self.model.model_type not in ("granite", "llama", "mistral", "mixtral"):
            raise Unsupported(
                f"{setting} patches granite, llama, mistral and mixtral here, not {self.model.model_type}"
            )
        if stack.loss in ("chunked", *OWN_LOSSES):
            raise Unsupported(f"{setting} goes with loss='fused_cross_entropy', 'fused_linear' or 'full'")
        if (stack.autocast or stack.dtype) != stack.dtype or stack.dtype == "float32":
            raise Unsupported(
                f"{setting} was compared in 16 bits only: let dtype be 16 bits wide, and autocast the same"
            )
        if not isinstance(method, LoRA):
            return
        if method.modules_to_save:
            raise Unsupported(f"{setting} with modules_to_save has not been compared; leave one of them out")
        if not isinstance(method, QLoRA):
            return
        if adapts_whole_mlp(method, self.model.num_hidden_layers):
            raise Unsupported(
                f"{setting} with adapters on gate_proj, up_proj and down_proj over four-bit layers stops: the plugin's "
                "backward pass multiplies tensors of different widths; leave one of them out of target_modules"
            )
        if stack.autocast is None or stack.prepare_model_for_kbit_training or not method.bnb_4bit_use_double_quant:
            raise Unsupported(
                f"{setting} over four-bit layers needs autocast, prepare_model_for_kbit_training=False and "
                "bnb_4bit_use_double_quant=True: its products are written over 16-bit inputs, and it unpacks nested "
                "scales only"
            )
        if method.bnb_4bit_compute_dtype != stack.autocast:
            raise Unsupported(f"{setting} computes in the dtype of autocast; let bnb_4bit_compute_dtype be the same")

    def _unscales_float16(self) -> bool:
        """Whether the scaler meets a float16 gradient; a fused optimizer without clipping unscales by itself."""
        if self.stack.autocast != "float16":
            return False
        if self.training.optim == "adamw_torch_fused" and not self.training.max_grad_norm:
            return False
        if isinstance(self.method, FullFineTuning):
            return self.stack.dtype == "float16"
        found = {usual_adapter_dtype(self.method, self.stack)}
        if self.method.modules_to_save:
            found.add(copy_dtype(self.stack, "float32" if kbit_prepared(self.method, self.stack) else self.stack.dtype))
        return "float16" in found

    @property
    def mixes_dtypes(self) -> bool:
        """Whether trained copies meet weights of another dtype in a product, without autocast to make them one."""
        method, stack = self.method, self.stack
        if not isinstance(method, LoRA) or not method.modules_to_save or stack.autocast is not None:
            return False
        weights = "float32" if kbit_prepared(method, stack) else stack.dtype
        if copy_dtype(stack, weights) == weights:
            return False
        # What a norm or an embedding makes of 16 bits is raised to float32 by float32 weights.
        return weights != "float32" or _saves_linear(method, self.model.num_hidden_layers)

    @property
    def fills_cache(self) -> bool:
        """Whether the forward pass builds a KV cache: checkpointing and TRL's fused head switch it off."""
        wanted = self.stack.use_cache and self.stack.release.caches
        return wanted and self.training.gradient_checkpointing == "none" and self.stack.loss != "chunked"


def _adapts_rotated(method: LoRA, n_layers: int) -> bool:
    """Whether every layer's queries and keys have an adapter, whose sum with them is float32 under autocast."""
    names = [f"model.layers.{i}.self_attn.{p}" for i in range(n_layers) for p in ("q_proj", "k_proj")]
    return all(is_target(method, name) for name in names)


def _saves_linear(method: LoRA, n_layers: int) -> bool:
    """Whether a copy is multiplied with hidden states: a norm or an embedding is not."""
    inner = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    names = ["lm_head", *(f"model.layers.{i}.{name}" for i in range(n_layers) for name in inner)]
    return any(is_saved(method, name) for name in names)
