"""Models with random weights, made on the device they run on.

Nothing is downloaded, and nothing larger than one weight is ever there in more than its final form: a model in four
bits is laid out without memory, then each weight is made, quantised and dropped, one after the other.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vramcalc.inputs.quantization import BitsAndBytes4bit
from vramcalc.inputs.stack import Method, ModelSpec, Stack, TrainingSpec
from vramcalc.profiling.real import fused_losses
from vramcalc.profiling.real.libraries import attach, build_model, torch_dtype

_STD = 0.02
"""Spread of random weights, ``initializer_range`` of the supported configurations."""


def build(model: ModelSpec, method: Method, training: TrainingSpec, stack: Stack, device: str) -> nn.Module:
    """The model of a job, ready to train: weights, losses, adapters and checkpointing as its recipe says.

    Args:
        model: what to build.
        method: what trains.
        training: checkpointing.
        stack: the recipe.
        device: ``cuda`` or ``cpu``.

    Raises:
        ImportError: a library of the recipe is not installed.
    """
    if method.storage is not None:
        built = quantised_model(model, method.storage, stack, device)
    else:
        with torch.device(device):
            built = build_model(model, stack)
    fused_losses.install(built, stack)
    # PEFT makes adapters where their layers are.
    return attach(built, method, training, stack, prepare_kbit=_prepare_kbit)


def _prepare_kbit(model: nn.Module) -> None:
    from peft import prepare_model_for_kbit_training

    # Checkpointing is switched on by ``attach``, for every method alike.
    prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def quantised_model(model: ModelSpec, storage: BitsAndBytes4bit, stack: Stack, device: str) -> nn.Module:
    """A model whose linear layers, but for the head, bitsandbytes has quantised one by one.

    References:
        transformers 5.23 integrations/bitsandbytes.py, ``replace_with_bnb_linear`` and ``Bnb4bitQuantize.convert``.
    """
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=storage.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=storage.bnb_4bit_use_double_quant,
        bnb_4bit_compute_dtype=torch_dtype(storage.bnb_4bit_compute_dtype),
    )
    with torch.device("meta"):
        built = build_model(model, stack)
    built = replace_with_bnb_linear(built, modules_to_not_convert=["lm_head"], quantization_config=config)
    dtype = torch_dtype(stack.dtype)
    made: dict[int, nn.Parameter] = {}
    for module in list(built.modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            if id(parameter) not in made:
                made[id(parameter)] = _materialised(parameter, name, dtype, device)
            module._parameters[name] = made[id(parameter)]
    _make_buffers(built, dtype, device)
    built.tie_weights()
    built.is_loaded_in_4bit = True  # what PEFT asks for
    left = [name for name, tensor in (*built.named_parameters(), *built.named_buffers()) if tensor.is_meta]
    assert not left, f"without memory: {', '.join(left)}"
    quantised: nn.Module = built
    return quantised


def _materialised(parameter: Any, name: str, dtype: torch.dtype, device: str) -> Any:
    """A parameter with random values; one for four bits is quantised at once."""
    import bitsandbytes as bnb

    value = torch.empty(parameter.shape, dtype=dtype, device=device)
    if value.ndim > 1:
        nn.init.normal_(value, std=_STD)
    else:
        nn.init.constant_(value, 0.0 if name == "bias" else 1.0)
    if not isinstance(parameter, bnb.nn.Params4bit):
        return nn.Parameter(value, requires_grad=False)
    return bnb.nn.Params4bit(value, requires_grad=False, **parameter.__dict__).to(device)


def _make_buffers(model: nn.Module, dtype: torch.dtype, device: str) -> None:
    """Rotary embeddings compute their buffers when they are made; an embedding's scale is a number that it keeps."""
    for parent in list(model.modules()):
        if "embed_scale" in parent._buffers:
            scale = torch.tensor(parent.scalar_embed_scale, dtype=dtype, device=device)
            parent.register_buffer("embed_scale", scale, persistent=False)
        for name, child in list(parent.named_children()):
            if "inv_freq" in child._buffers:
                with torch.device(device):
                    setattr(parent, name, type(child)(child.config))


@contextlib.contextmanager
def attention_of(stack: Stack) -> Iterator[None]:
    """The attention kernels that a recipe asks for, for forward and backward passes inside."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from transformers.integrations import sdpa_attention

    kernels = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    chosen = contextlib.nullcontext() if stack.sdpa_kernel == "auto" else sdpa_kernel(kernels[stack.sdpa_kernel])
    asks_for_groups = sdpa_attention.use_gqa_in_sdpa
    with chosen:
        if stack.repeats_kv:
            sdpa_attention.use_gqa_in_sdpa = lambda *_: False
        try:
            yield
        finally:
            sdpa_attention.use_gqa_in_sdpa = asks_for_groups


@contextlib.contextmanager
def seen_backend() -> Iterator[list[str]]:
    """The kernel that torch chooses for the first attention inside; empty where there is none, as with eager.

    References:
        torch 2.13 aten/src/ATen/native/transformers/attention.cpp, ``_fused_sdp_choice_*``.
    """
    from torch.nn.attention import SDPBackend

    found: list[str] = []
    real = nn.functional.scaled_dot_product_attention
    names = {backend.value: name for name, backend in SDPBackend.__members__.items()}

    def watched(*args: Any, **kwargs: Any) -> torch.Tensor:
        if not found:
            found.append(names.get(int(torch._fused_sdp_choice(*args, **kwargs)), "unknown").lower())
        return real(*args, **kwargs)

    nn.functional.scaled_dot_product_attention = watched
    try:
        yield found
    finally:
        nn.functional.scaled_dot_product_attention = real
