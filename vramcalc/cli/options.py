"""Command-line options made from the fields of the specs, so that every field of a recipe has one."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable
from functools import cache
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from vramcalc.errors import InvalidValue
from vramcalc.inputs.alloc_conf import ENVIRONMENT
from vramcalc.inputs.base import Spec
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.inputs.stack import Stack, TrainingSpec
from vramcalc.inputs.torch_releases import checked_torch

_ALSO = {"optim": "--optimizer"}
_HIDDEN = {"kind", "name"}
_HELP = {
    "rank": "Rank of LoRA adapters.",
    "lora_alpha": "LoRA's alpha; does not change memory.",
    "lora_dropout": "Dropout before LoRA's A.",
    "init_r": "AdaLoRA's rank before any is cut.",
    "target_r": "AdaLoRA's average rank in the end; does not change memory.",
    "tinit": "Steps before AdaLoRA cuts ranks; does not change memory.",
    "tfinal": "Steps after AdaLoRA has cut ranks; does not change memory.",
    "deltaT": "Steps from one cut of AdaLoRA to the next; does not change memory.",
    "beta1": "Smoothing of AdaLoRA's importance; does not change memory.",
    "beta2": "Smoothing of its uncertainty; does not change memory.",
    "orth_reg_weight": "Weight of AdaLoRA's regularization; does not change memory.",
    "total_step": "Steps of AdaLoRA's whole run; does not change memory.",
    "update_and_allocate": "The loop calls AdaLoRA's update_and_allocate after each step.",
    "target_modules": "all-linear, module names with commas, or a regular expression on whole names.",
    "modules_to_save": "Modules copied and trained in full, with commas.",
    "bnb_4bit_quant_type": "Four-bit code of QLoRA.",
    "bnb_4bit_use_double_quant": "Double quantization of QLoRA's scales.",
    "bnb_4bit_compute_dtype": "Dtype of QLoRA's products.",
    "quantization": "How the base model is stored under any method with adapters. One of: none, nf4, fp4.",
    "num_virtual_tokens": "Learned tokens before each sequence; --seq-len does not count them.",
    "encoder_reparameterization_type": "Network of p-tuning.",
    "encoder_hidden_size": "Width of the network of p-tuning, or of prefix tuning with a projection.",
    "prefix_projection": "Prefixes come out of a small network.",
    "micro_batch_size": "Sequences per forward pass.",
    "seq_len": "Tokens per sequence.",
    "gradient_accumulation_steps": "Micro-steps per optimizer step.",
    "gradient_checkpointing": "Checkpointing of every decoder layer.",
    "optim": "Optimizer, as transformers names it.",
    "max_grad_norm": "Gradient clipping, 0 for none.",
    "padded": "The batch holds padding.",
    "seq_lens": "Tokens of each optimizer step of a run that begins, with commas; of exactly those.",
    "torch": f"Version modelled: {checked_torch()}.",
    "cuda": "CUDA of torch's wheel, such as 12.6: it decides whether cuDNN attends on Hopper and Blackwell.",
    "transformers": "Version modelled; 'unknown', or the date of a run as YYYY-MM-DD.",
    "peft": "Version modelled.",
    "bitsandbytes": "Version modelled.",
    "dtype": "Dtype the weights are loaded in.",
    "autocast": "Mixed precision of the forward pass.",
    "adapter_dtype": "Dtype of adapters.",
    "prepare_model_for_kbit_training": "Raise what QLoRA leaves in 16 bits to float32.",
    "casts_embeddings_to_bf16": "Then cast QLoRA's embedding and head to bfloat16, as TRL did.",
    "attn_implementation": "Attention of the model.",
    "sdpa_kernel": "Kernel behind SDPA.",
    "passes_attention_mask": "The model is handed an attention_mask.",
    "repeats_kv": "Key and value heads are copied before SDPA.",
    "loss": "How the loss is computed.",
    "fused_kernels": "Kernels in place of the model's own.",
    "use_cache": "A KV cache is filled while training.",
    "keeps_outputs": "The loop holds on to the model's outputs.",
    "outputs_to_float32": "Outputs are converted to float32 under autocast.",
    "zero_grad": "When gradients are dropped.",
    "zero_grad_set_to_none": "Gradients are dropped, not filled with zeros.",
    "bnb_embeddings_32bit": "Embeddings keep 32-bit states under 8-bit optimizers.",
    "decay_groups": "Two parameter groups, as Trainer makes them.",
    "expandable_segments": "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
    "alloc_conf": "Value of PYTORCH_ALLOC_CONF, such as max_split_size_mb:128.",
    "empty_cache_steps": "torch.cuda.empty_cache() after every so many steps, or none.",
}


_SPECS: tuple[type[Spec], ...] = (TrainingSpec, *METHOD_CLASSES.values(), Stack)
_FIELDS = {name: field for spec in _SPECS for name, field in spec.model_fields.items() if name not in _HIDDEN}


@cache
def spec_options() -> tuple[inspect.Parameter, ...]:
    """One keyword parameter for every field of the method, the training and the recipe; None means not given."""
    return tuple(_parameter(name, field) for name, field in _FIELDS.items())


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    kind, choices = _kind(field), _choices(field)
    spelled = [*([_ALSO[name]] if name in _ALSO else []), flag_of(name)]
    if kind is bool:
        spelled = [f"{flag}/--no-{flag[2:]}" for flag in spelled]
    option = typer.Option(
        *spelled,
        help=_HELP[name] + (f" One of: {', '.join(choices)}." if choices else ""),
        metavar=None if kind is bool else f"<{kind.__name__}>",
        show_default=False,
    )
    # Numbers are parsed by settings_of, whose errors name what was given.
    annotation = Annotated[(bool if kind is bool else str) | None, option]  # type: ignore[valid-type]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def flag_of(name: str) -> str:
    """``micro_batch_size`` as an option: ``--micro-batch-size``."""
    return f"--{name.replace('_', '-')}"


def _kind(field: FieldInfo) -> type:
    """The type an option is parsed as."""
    members = _members(field.annotation)
    return next((t for t in (bool, int, float) if t in members), str)


def _choices(field: FieldInfo) -> list[str]:
    """Words that may be given, none where any may."""
    members = _members(field.annotation)
    words = [m for m in members if isinstance(m, str)]
    return ["none", *words] if words and NoneType in members else words


def _members(annotation: Any) -> list[Any]:
    """The types and literal values an annotation is made of."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [m for a in get_args(annotation) for m in _members(a)] or [annotation]


def settings_of(options: dict[str, Any]) -> dict[str, Any]:
    """Options that were given, as settings of :func:`vramcalc.estimate`.

    Raises:
        InvalidValue: a word where a number has to be.
    """
    return {name: _parsed(name, value) for name, value in options.items() if value is not None}


def noted_settings_of(options: dict[str, Any]) -> dict[str, Any]:
    """The same; where the shell has settings for torch's allocator that were not given, a note says so on stderr."""
    found = [name for name in ENVIRONMENT if os.environ.get(name)]
    if found and options.get("alloc_conf") is None:
        note = f"note: {' and '.join(found)} of this shell not taken into account; give --alloc-conf to follow"
        typer.echo(note, err=True)
    return settings_of(options)


def _parsed(name: str, value: Any) -> Any:
    field = _FIELDS[name]
    if value == "none" and NoneType in _members(field.annotation):
        return None
    match name, _kind(field).__name__:
        case "target_modules", _:
            return _targets(value)
        case "modules_to_save", _:
            return _names(value)
        case "seq_lens", _:
            return [whole_number(flag_of(name), part.strip()) for part in value.split(",")]
        case _, "int":
            return whole_number(flag_of(name), value)
        case _, "float":
            return number(flag_of(name), value)
    return value


def whole_number(flag: str, text: str) -> int:
    """The value of an option that takes a whole number.

    Raises:
        InvalidValue: it is none.
    """
    try:
        return int(_plain(text))
    except ValueError:
        raise InvalidValue(flag, text, "a whole number") from None


def number(flag: str, text: str) -> float:
    """The value of an option that takes a number.

    Raises:
        InvalidValue: it is none.
    """
    try:
        return float(_plain(text))
    except ValueError:
        raise InvalidValue(flag, text, "a number") from None


def _plain(text: str) -> str:
    """A number as every tool reads it: Python alone takes ``1_000``, and digits of other scripts.

    Raises:
        ValueError: it is not.
    """
    if "_" in text or not text.isascii():
        raise ValueError
    return text


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _targets(text: str) -> str | list[str]:
    """Names with commas, or a regular expression as PEFT reads a string."""
    if text.lower() == "all-linear":
        return text
    return _names(text) if re.fullmatch(r"[\w.,\s-]+", text) else text


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes ``**options`` an option for every field."""
    signature = inspect.signature(command)
    own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    parameters = [*own, *spec_options()]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command
