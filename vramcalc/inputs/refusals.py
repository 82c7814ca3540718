"""Combinations of model, method and recipe that no library runs, or that nobody has compared with a trace."""

from __future__ import annotations

from collections.abc import Callable

from vramcalc.errors import Unsupported
from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.releases import EXPERTS_CHECKED, PEFT_ADALORA, PEFT_DORA, PEFT_RAISES_ADAPTERS, minor_release
from vramcalc.inputs.stack import OWN_LOSSES, AdaLoRA, DoRA, LoRA, Method, ModelSpec, Stack, kbit_prepared
from vramcalc.inputs.targets import adapts_whole_mlp, copy_dtype, is_saved, is_target

_EXPERTS = (
    *(f"block_sparse_moe.{name}" for name in ("gate", "experts.0.w1", "experts.0.w2", "experts.0.w3")),
    *(f"mlp.{name}" for name in ("gate", *(f"experts.{w}" for w in ("w1", "w2", "w3", "gate_up_proj", "down_proj")))),
)
"""Parts of a layer's mixture of experts by the names of any release: PEFT translates old ones."""


def refuse(model: ModelSpec, method: Method, stack: Stack) -> None:
    """Refuse what goes wrong, or is not known, whatever is trained with it.

    Raises:
        Unsupported: settings that do not go together.
    """
    _family(model, stack)
    if (minor_release(stack.transformers) or (0, 0)) < (4, 43):
        _early(model, stack)
    if model.num_local_experts is not None:
        _experts(model, method, stack)
    if stack.fused_kernels != "none":
        _fused_kernels(model, method, stack)
    adapters = method.adapters
    if adapters is not None:
        _peft(adapters, stack)
        if method.storage is not None and stack.casts_embeddings_to_bf16:
            _casts(adapters, stack)
        own = _OF_METHODS.get(type(adapters))
        if own is not None:
            own(adapters, stack)
    _dtypes(model, method, stack)


def _peft(method: LoRA, stack: Stack) -> None:
    """Refuse float32 adapters beside 16-bit layers where PEFT has no ``autocast_adapter_dtype`` yet."""
    raises = stack.adapter_dtype == "float32" and stack.dtype != "float32" and method.storage is None
    if raises and (minor_release(stack.peft) or (0, 0)) < PEFT_RAISES_ADAPTERS:
        raise Unsupported(
            f"peft={stack.peft!r} leaves adapters in the dtype of their layers, {stack.dtype}; use peft='0.12' or "
            "later, or adapter_dtype='weights'"
        )


def _dora(method: LoRA, stack: Stack) -> None:
    """Refuse releases whose DoRA makes other tensors, and what has not been compared with a trace."""
    if (minor_release(stack.peft) or (0, 0)) < PEFT_DORA:
        raise Unsupported(
            f"peft={stack.peft!r} computes DoRA in a way that has not been checked; use peft="
            f"'{PEFT_DORA[0]}.{PEFT_DORA[1]}' or later"
        )
    if stack.fused_kernels != "none":
        raise Unsupported(f"fused_kernels={stack.fused_kernels!r} with DoRA has not been compared; leave one out")
    if is_target(method, "model.embed_tokens"):
        raise Unsupported("DoRA on the embedding has not been checked; leave embed_tokens out of target_modules")


def _adalora(method: LoRA, stack: Stack) -> None:
    """Refuse releases that nobody traced, what PEFT has no adapter for, and what has not been compared."""
    if (minor_release(stack.peft) or (0, 0)) < PEFT_ADALORA:
        raise Unsupported(
            f"peft={stack.peft!r}: AdaLoRA of that release has not been checked; use peft="
            f"'{PEFT_ADALORA[0]}.{PEFT_ADALORA[1]}' or later"
        )
    if stack.fused_kernels != "none":
        raise Unsupported(f"fused_kernels={stack.fused_kernels!r} with AdaLoRA has not been compared; leave one out")
    if is_target(method, "model.embed_tokens"):
        raise Unsupported("PEFT has no AdaLoRA for embeddings; leave embed_tokens out of target_modules")


_OF_METHODS: dict[type[LoRA], Callable[[LoRA, Stack], None]] = {DoRA: _dora, AdaLoRA: _adalora}
"""What is refused of one method, by its class."""


def _early(model: ModelSpec, stack: Stack) -> None:
    """Refuse what releases before 4.43 do in a way that no trace has been compared with, or do not do."""
    release, version = stack.release, f"transformers={stack.transformers!r}"
    sdpa = stack.attn_implementation == "sdpa"
    if not stack.passes_attention_mask:
        raise Unsupported(f"{version} with passes_attention_mask=False has not been checked; use 4.43 or later")
    always, without = (model.family.has(trait, release) for trait in ("always_masks", "without_sdpa"))
    if sdpa and (always or without):
        does = "always gives SDPA a mask" if always else "has no SDPA"
        raise Unsupported(
            f"{model.name}: {version} {does} in {model.model_type}, which has not been checked; use another "
            "release, or attn_implementation='flash_attention_2'"
        )
    if stack.attn_implementation == "eager" and model.family.has("causal_buffer", release):
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


def _family(model: ModelSpec, stack: Stack) -> None:
    """Refuse attention that a family does not have, and losses that would have to treat the logits as it does."""
    family = model.family
    if stack.attn_implementation not in family.attention:
        known = " or ".join(map(repr, family.attention))
        raise Unsupported(
            f"{model.name}: transformers has no attn_implementation={stack.attn_implementation!r} for "
            f"{model.model_type}; use {known}"
        )
    if family.logits and stack.loss not in ("full", "fused_cross_entropy", *OWN_LOSSES):
        raise Unsupported(
            f"{model.name}: loss={stack.loss!r} makes logits by itself, and {model.model_type}'s are {family.logits}; "
            "use loss='full'"
        )
    if not family.liger and stack.loss == "fused_linear":
        raise Unsupported(
            f"{model.name}: liger-kernel 0.8 has no loss='fused_linear' for {model.model_type} and leaves it as it is; "
            "use loss='full' or 'chunked'"
        )


def _casts(method: LoRA, stack: Stack) -> None:
    """Refuse what trains by a name that the cast looks for, and a forward pass over two dtypes."""
    setting = "casts_embeddings_to_bf16=True"
    if stack.autocast != "bfloat16":
        raise Unsupported(f"{setting} goes with autocast='bfloat16': the head is given float32")
    if any(is_target(method, n) or is_saved(method, n) for n in ("lm_head", "model.embed_tokens")):
        raise Unsupported(
            f"{setting} with an adapter on the embedding or the head, or a copy of either, has not been checked; "
            "leave it out of target_modules and modules_to_save"
        )


def _experts(model: ModelSpec, method: Method, stack: Stack) -> None:
    """Refuse what has not been compared with a trace of a mixture of experts."""
    if stack.loss not in ("full", "fused_cross_entropy", *OWN_LOSSES):
        raise Unsupported(
            f"{model.name}: loss={stack.loss!r} with a mixture of experts has not been checked; use loss='full'"
        )
    names = [f"model.layers.{i}.{m}" for i in range(model.num_hidden_layers) for m in _EXPERTS]
    adapters = method.adapters
    if adapters is not None and any(is_saved(adapters, name) for name in names):
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
    if adapters is not None and (
        isinstance(adapters.target_modules, str) or any(is_target(adapters, name) for name in names)
    ):
        raise Unsupported(
            f"{version} has no linear layers in its router and experts, and what PEFT makes of a pattern or of "
            "their names is not modelled; use target_modules=['q_proj', 'k_proj', 'v_proj', 'o_proj'], or "
            "transformers='4.57'"
        )


def _fused_kernels(model: ModelSpec, method: Method, stack: Stack) -> None:
    """Refuse what the plugin does not run, and what has not been compared with it."""
    setting = f"fused_kernels={stack.fused_kernels!r}"
    if stack.fused_kernels not in model.family.fused_kernels:
        *patched, last = (name for name, family in FAMILIES.items() if stack.fused_kernels in family.fused_kernels)
        raise Unsupported(f"{setting} patches {', '.join(patched)} and {last} here, not {model.model_type}")
    if stack.loss in ("chunked", *OWN_LOSSES):
        raise Unsupported(f"{setting} goes with loss='fused_cross_entropy', 'fused_linear' or 'full'")
    if (stack.autocast or stack.dtype) != stack.dtype or stack.dtype == "float32":
        raise Unsupported(f"{setting} was compared in 16 bits only: let dtype be 16 bits wide, and autocast the same")
    adapters = method.adapters
    if adapters is None:
        return
    if adapters.modules_to_save:
        raise Unsupported(f"{setting} with modules_to_save has not been compared; leave one of them out")
    storage = method.storage
    if storage is None:
        return
    if adapts_whole_mlp(adapters, model.num_hidden_layers):
        raise Unsupported(
            f"{setting} with adapters on gate_proj, up_proj and down_proj over four-bit layers stops: the plugin's "
            "backward pass multiplies tensors of different widths; leave one of them out of target_modules"
        )
    if stack.autocast is None or stack.prepare_model_for_kbit_training or not storage.bnb_4bit_use_double_quant:
        raise Unsupported(
            f"{setting} over four-bit layers needs autocast, prepare_model_for_kbit_training=False and "
            "bnb_4bit_use_double_quant=True: its products are written over 16-bit inputs, and it unpacks nested "
            "scales only"
        )
    if storage.bnb_4bit_compute_dtype != stack.autocast:
        raise Unsupported(f"{setting} computes in the dtype of autocast; let bnb_4bit_compute_dtype be the same")


def _dtypes(model: ModelSpec, method: Method, stack: Stack) -> None:
    """Refuse tensors of two dtypes where torch multiplies or joins only those of one."""
    adapters = method.adapters
    if (
        method.storage is not None
        and stack.autocast is not None
        and {_unadapted_dtype(model, adapters, stack), stack.autocast} == {"bfloat16", "float16"}
        and not _adapts_rotated(adapters, model.num_hidden_layers)
    ):
        raise Unsupported(
            f"autocast={stack.autocast!r} over four-bit layers loaded with dtype={stack.dtype!r}: queries and keys "
            "without an adapter keep that dtype, and torch.cat of rotary positions stops under autocast of the "
            f"other 16-bit type; let dtype be {stack.autocast!r}, set prepare_model_for_kbit_training=True, or "
            "put q_proj and k_proj into target_modules"
        )
    experts = model.num_local_experts is not None and stack.release.fuses_experts
    if experts and (model.intermediate_size % 8 or model.hidden_size % 8):
        raise Unsupported(
            f"{model.name}: transformers={stack.transformers!r} multiplies experts by torch's grouped_mm, "
            "whose rows must be multiples of 16 bytes: an intermediate_size and a hidden_size that 8 divides; "
            "use transformers='4.57', where experts are linear layers"
        )


def _unadapted_dtype(model: ModelSpec, method: LoRA | None, stack: Stack) -> str:
    """Dtype that four-bit layers give back: that of what the norm before them gives them."""
    weights = "float32" if stack.prepare_model_for_kbit_training else stack.dtype
    copied = method is not None and model.family.norms_keep_dtype and is_saved(method, "model.embed_tokens")
    return copy_dtype(stack, weights) if copied else weights


def _adapts_rotated(method: LoRA | None, n_layers: int) -> bool:
    """Whether every layer's queries and keys have an adapter, whose sum with them is float32 under autocast."""
    names = [f"model.layers.{i}.self_attn.{p}" for i in range(n_layers) for p in ("q_proj", "k_proj")]
    return method is not None and all(is_target(method, name) for name in names)
