"""One training job as transformers, PEFT and bitsandbytes run it, built from the same specs that an estimate takes.

Nothing here knows whether the tensors are real.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vramcalc.inputs.stack import Method, ModelSpec, Stack, TrainingSpec, kbit_prepared
from vramcalc.profiling.real.releases import dtype_argument


def torch_dtype(name: str) -> torch.dtype:
    """``"bfloat16"`` -> ``torch.bfloat16``."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def hf_config(model: ModelSpec, *, layers: int | None = None) -> Any:
    """The transformers configuration of a model spec, optionally with fewer layers."""
    from transformers import AutoConfig

    fields: dict[str, Any] = {
        n: getattr(model, n)
        for n in (
            "hidden_size",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
            "tie_word_embeddings",
        )
    }
    fields |= {key: getattr(model, key) for key in model.family.biases}
    fields |= model.family.told(dict(model))
    return AutoConfig.for_model(model.model_type, num_hidden_layers=layers or model.num_hidden_layers, **fields)


def build_model(model: ModelSpec, stack: Stack, *, layers: int | None = None) -> nn.Module:
    """The causal language model in the recipe's weights dtype, attention and cache setting."""
    from transformers import AutoModelForCausalLM

    config = hf_config(model, layers=layers)
    config.use_cache = stack.use_cache
    dtype = torch_dtype(stack.dtype)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        built: nn.Module = AutoModelForCausalLM.from_config(
            config, attn_implementation=stack.attn_implementation, **{dtype_argument(): dtype}
        )
    finally:
        torch.set_default_dtype(before)
    for module in built.modules():
        for name, buffer in list(module._buffers.items()):
            if buffer is not None and "inv_freq" in name:
                # from_pretrained leaves the non-persistent rotary buffers in float32.
                module._buffers[name] = buffer.float()
    return built


def peft_config(method: Any) -> Any:
    """PEFT's configuration of a method spec that leaves the base model frozen."""
    import peft

    return getattr(peft, method.config_class)(**method.peft_fields, task_type="CAUSAL_LM")


def attach(
    model: nn.Module,
    method: Method,
    training: TrainingSpec,
    stack: Stack,
    *,
    prepare_kbit: Callable[[nn.Module], None],
    adapt: Callable[[nn.Module], nn.Module] | None = None,
) -> nn.Module:
    """Freeze, prepare, wrap with adapters and switch checkpointing on, in the order trainers do it.

    Args:
        model: the loaded model, quantised already for QLoRA.
        method: what trains.
        training: whether and how to checkpoint.
        stack: adapter dtype and k-bit preparation.
        prepare_kbit: raises what is left in 16 bits to float32.
        adapt: wraps the model instead of ``get_peft_model`` with a LoRA configuration.

    Returns:
        The model to call.
    """
    checkpointing = training.gradient_checkpointing
    if method.trains_base and adapt is None:
        for parameter in model.parameters():
            parameter.requires_grad_(True)
    else:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        if kbit_prepared(method, stack):
            prepare_kbit(model)
        model = adapt(model) if adapt is not None else _get_peft_model(model, method, stack)
        if method.storage is not None and stack.casts_embeddings_to_bf16:
            _cast_embeddings_to_bf16(model)
    if checkpointing != "none":
        model.gradient_checkpointing_enable(  # type: ignore[operator]
            gradient_checkpointing_kwargs={"use_reentrant": checkpointing == "reentrant"}
        )
        if not method.trains_base:
            model.enable_input_require_grads()  # type: ignore[operator]
    model.train()
    return model


def after_step(model: Any, method: Method) -> Callable[[], None]:
    """What PEFT wants called after each step of the optimizer: AdaLoRA's ``update_and_allocate``, else nothing."""
    adapters = method.adapters
    at = None if adapters is None else adapters.allocates_at
    return lambda: None if at is None else model.base_model.update_and_allocate(at)


def _cast_embeddings_to_bf16(model: nn.Module) -> None:
    """TRL's ``peft_module_casting_to_bf16`` of embedding and head, ties kept; norms are in float32 already."""
    cast: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and ("lm_head" in name or "embed_tokens" in name):
            if id(weight) not in cast:
                cast[id(weight)] = nn.Parameter(weight.data.to(torch.bfloat16), requires_grad=False)
            module._parameters["weight"] = cast[id(weight)]


def _get_peft_model(model: nn.Module, method: Method, stack: Stack) -> nn.Module:
    from peft import get_peft_model

    # Before 0.12, PEFT left adapters in their layers' dtype.
    raised = {"autocast_adapter_dtype": stack.adapter_dtype == "float32"}
    known = inspect.signature(get_peft_model).parameters.keys() & raised.keys()
    wrapped: nn.Module = get_peft_model(model, peft_config(method), **{name: raised[name] for name in known})
    if stack.adapter_dtype not in ("float32", "weights"):
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch_dtype(stack.adapter_dtype))
    return wrapped
