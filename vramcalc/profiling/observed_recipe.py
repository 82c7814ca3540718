"""The recipe of a run that somebody else started, read off its model, its arguments and its batches.

What cannot be expressed as a recipe is refused, not rounded to the nearest one.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vramcalc.errors import Unsupported
from vramcalc.inputs.alloc_conf import ENVIRONMENT
from vramcalc.inputs.quantization import BitsAndBytes4bit
from vramcalc.inputs.stack import (
    AdaLoRA,
    DoRA,
    FullFineTuning,
    LoRA,
    Method,
    PrefixTuning,
    PromptTuning,
    PTuning,
    QLoRA,
    Stack,
    TrainingSpec,
)


@dataclass
class Batches:
    """What went through the model, seen by a hook on its forward pass.

    Attributes:
        lengths: the longest sequence of every optimizer step so far. [tokens]
        sizes: sequences of every forward pass.
        padded: whether a mask hid a token.
        unmasked: whether a batch came without ``attention_mask``.
        fused_head: whether TRL's fused head was asked for the loss.
    """

    lengths: list[int] = field(default_factory=list)
    sizes: Counter[int] = field(default_factory=Counter)
    padded: bool = False
    unmasked: bool = False
    fused_head: bool = False

    def begin_step(self) -> None:
        """An optimizer step begins."""
        self.lengths.append(0)

    def see(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook with keywords."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if not isinstance(ids, torch.Tensor) or ids.ndim != 2 or not self.lengths:
            return
        self.sizes[ids.shape[0]] += 1
        self.lengths[-1] = max(self.lengths[-1], ids.shape[1])
        mask = kwargs.get("attention_mask")
        self.unmasked = self.unmasked or mask is None
        if not self.padded and isinstance(mask, torch.Tensor):
            self.padded = not bool(mask.bool().all())
        self.fused_head = self.fused_head or bool(kwargs.get("fused_lm_head"))


def base_of(model: nn.Module) -> Any:
    """The model of transformers inside PEFT's wrapper."""
    inner: Any = getattr(model, "get_base_model", lambda: model)()
    return inner


def plain_config(model: nn.Module) -> dict[str, Any]:
    """The model's ``config.json``."""
    base = base_of(model)
    found: dict[str, Any] = base.config.to_dict()
    return {**found, "architectures": found.get("architectures") or [type(base).__name__]}


def method_of(model: nn.Module) -> Method:
    """Full fine-tuning, LoRA, DoRA, AdaLoRA, QLoRA, or what is learned before the tokens.

    Raises:
        Unsupported: another method of PEFT, several adapters, or some layers trained and others not.
    """
    configs = getattr(model, "peft_config", None)
    if configs is None:
        if not all(p.requires_grad for p in model.parameters()):
            raise Unsupported("some parameters are frozen without PEFT; that is no method vramcalc models")
        return FullFineTuning()
    if len(configs) != 1:
        raise Unsupported(f"{len(configs)} adapters on one model; one is modelled")
    (config,) = configs.values()
    storage = _storage(model)
    stored = BitsAndBytes4bit(**storage) if storage else None
    prompts = _PROMPTS.get(type(config).__name__)
    if prompts is not None:
        return _prompts(prompts, config, stored)
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in ("LORA", "ADALORA") or config.bias != "none":
        raise Unsupported(f"an adapter other than LoRA, DoRA or AdaLoRA without biases, {' or '.join(_PROMPTS)}")
    targets = config.target_modules
    settings: dict[str, Any] = {
        "lora_alpha": float(config.lora_alpha),
        "lora_dropout": float(config.lora_dropout),
        "target_modules": targets if isinstance(targets, str) else frozenset(targets),
        "modules_to_save": frozenset(config.modules_to_save or ()),
    }
    if kind == "ADALORA":
        return AdaLoRA(**settings, **_ranks(model, config), quantization=stored)
    settings["rank"] = config.r
    if config.use_dora:
        return DoRA(**settings, quantization=stored)
    return QLoRA(**settings, **storage) if storage else LoRA(**settings)


def _ranks(model: Any, config: Any) -> dict[str, Any]:
    """What an ``AdaLoraConfig`` says, and whether ``update_and_allocate`` has been called so far."""
    names = ("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step")
    called = bool(model.base_model.rankallocator.ipt) or config.rank_pattern is not None
    return {**{name: getattr(config, name) for name in names}, "update_and_allocate": called}


_PROMPTS: dict[str, type[PromptTuning | PTuning | PrefixTuning]] = {
    spec.config_class: spec for spec in (PromptTuning, PTuning, PrefixTuning)
}
"""Methods with virtual tokens by PEFT's configuration."""


def _prompts(
    spec: type[PromptTuning | PTuning | PrefixTuning], config: Any, storage: BitsAndBytes4bit | None
) -> Method:
    if config.modules_to_save:
        raise Unsupported(f"{spec.config_class} with modules_to_save; no copies are modelled beside virtual tokens")
    names = set(spec.model_fields) - {"kind", "quantization"}
    fields = {name: getattr(value := getattr(config, name), "value", value) for name in names}
    if fields.get("encoder_hidden_size") == config.token_dim or not fields.get("prefix_projection", True):
        fields["encoder_hidden_size"] = None
    return spec(**{n: v for n, v in fields.items() if n in names}, quantization=storage)


def _storage(model: nn.Module) -> dict[str, Any]:
    """How a base model in four bits is stored; nothing of one that is not."""
    layer = _quantised_layer(model)
    if layer is None:
        return {}
    return {
        "bnb_4bit_quant_type": layer.weight.quant_type,
        "bnb_4bit_use_double_quant": layer.weight.compress_statistics,
        "bnb_4bit_compute_dtype": _name(layer.compute_dtype),
    }


def training_of(model: nn.Module, args: Any, batches: Batches) -> TrainingSpec:
    """Batch, length, accumulation, checkpointing, optimizer.

    Args:
        model: that trains.
        args: ``TrainingArguments``.
        batches: seen so far.

    Raises:
        VramcalcError: settings that are not modelled.
    """
    lengths = [n for n in batches.lengths if n]
    if not lengths:
        raise Unsupported("no forward pass with input_ids of two dimensions was seen")
    optim: Any = str(getattr(args.optim, "value", args.optim))
    given: dict[str, Any] = {"seq_len": lengths[0]} if len(set(lengths)) == 1 else {"seq_lens": lengths}
    return TrainingSpec(
        **given,
        micro_batch_size=max(batches.sizes),
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=_checkpointing(model),
        optim=optim,
        max_grad_norm=float(args.max_grad_norm or 0.0),
        padded=batches.padded,
    )


def stack_of(model: nn.Module, args: Any, batches: Batches) -> Stack:
    """The rest of the recipe, as ``Trainer`` runs it.

    Raises:
        VramcalcError: settings that are not modelled.
    """
    if getattr(args, "use_liger_kernel", False):
        raise Unsupported("Trainer's use_liger_kernel replaces more than the loss, which is all that is modelled")
    if args.world_size > 1:
        raise Unsupported(f"{args.world_size} processes; one GPU is modelled")
    layer = _quantised_layer(model)
    embedding = base_of(model).get_input_embeddings().weight.dtype
    dtype = layer.weight.quant_state.dtype if layer is not None else _frozen_dtype(model) or embedding
    attention = base_of(model).config._attn_implementation
    if attention not in ("sdpa", "eager"):
        raise Unsupported(f"attention {attention!r}; sdpa and eager are modelled")
    cast = layer is not None and _cast_again(model, embedding)
    return Stack(
        name="transformers-trainer",
        dtype=_name(dtype),
        autocast="bfloat16" if args.bf16 else "float16" if args.fp16 else None,
        adapter_dtype=_adapter_dtype(model, dtype),
        prepare_model_for_kbit_training=layer is None or cast or embedding == torch.float32 != dtype,
        casts_embeddings_to_bf16=cast,
        attn_implementation=attention,
        passes_attention_mask=not batches.unmasked,
        loss="chunked" if batches.fused_head else "full",
        alloc_conf=next((os.environ[name] for name in ENVIRONMENT if os.environ.get(name)), None),
        empty_cache_steps=getattr(args, "torch_empty_cache_steps", None),
    )


def _cast_again(model: nn.Module, embedding: torch.dtype) -> bool:
    """Whether preparation left its mark on norms alone: TRL cast the embedding and the head to bfloat16 after it."""
    norms = {p.dtype for n, p in model.named_parameters() if "norm" in n and not p.requires_grad}
    return embedding == torch.bfloat16 and norms == {torch.float32}


def _quantised_layer(model: nn.Module) -> Any:
    """The first linear layer in four bits, None where there is none."""
    # PEFT's wrappers pass the weight of their base layer on as their own.
    return next((m for m in model.modules() if type(m._parameters.get("weight")).__name__ == "Params4bit"), None)


def _frozen_dtype(model: nn.Module) -> torch.dtype | None:
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            sizes[parameter.dtype] += parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype]) if sizes else None


def _adapter_dtype(model: nn.Module, weights: torch.dtype) -> Any:
    learned = {p.dtype for n, p in model.named_parameters() if n.startswith("prompt_encoder.")}
    if len(learned) == 1:
        return _name(*learned)
    adapters = {p.dtype for n, p in model.named_parameters() if ".lora_A." in n}
    if not adapters:
        return "float32"
    if len(adapters) > 1:
        raise Unsupported("adapters of several dtypes")
    (dtype,) = adapters
    return "float32" if dtype == torch.float32 else "weights" if dtype == weights else _name(dtype)


def _checkpointing(model: nn.Module) -> Any:
    """The flavour, as transformers gave it to the layers."""
    for module in model.modules():
        function = module.__dict__.get("_gradient_checkpointing_func")
        if function is not None and getattr(module, "gradient_checkpointing", False):
            reentrant = getattr(function, "keywords", {}).get("use_reentrant", True)
            return "reentrant" if reentrant else "non_reentrant"
    return "none"


def _name(dtype: torch.dtype) -> Any:
    """``"bfloat16"``; specs refuse those they do not know."""
    return str(dtype).removeprefix("torch.")
