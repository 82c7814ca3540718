"""Fake CUDA on any machine: the real libraries run on fake ``cpu`` tensors and take the paths they take on a GPU.

Fake tensors have shapes and lifetimes but no data, so a 70B model runs on a laptop. What decides memory and differs
between the CPU and CUDA is forced here: which attention kernel is chosen, what kernels allocate for themselves, which
branches libraries take on ``device.type == "cuda"``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from vramcalc.inputs.quantization import BitsAndBytes4bit
from vramcalc.inputs.stack import Stack
from vramcalc.profiling.real import fused_losses, releases
from vramcalc.profiling.trace import fake_autocast, fake_routing
from vramcalc.profiling.trace.fake_attention import DTYPE_NAMES, scaled_dot_product_attention
from vramcalc.shadow.engine import kernels


def hidden_buffers(compute_capability: tuple[int, int]) -> Callable[[str, Any, Any], list[tuple[int, str]]]:
    """What CUDA kernels allocate inside an operator, by operator name and arguments; see ``shadow.kernels``."""

    def flash(args: Any) -> Any:
        grad, query, key = args[0], args[1], args[2]
        batch, heads, seq, head_dim = query.shape
        found = kernels.flash_backward(batch, heads, key.shape[1], seq, head_dim, query.element_size(), key.shape[2])
        return found + _contiguous_copy(grad)

    def efficient_forward(query: torch.Tensor) -> Any:
        batch, heads, seq, head_dim = query.shape
        return kernels.efficient_forward(batch, heads, seq, head_dim, DTYPE_NAMES[query.dtype])

    def efficient(args: Any) -> Any:
        grad, query, key = args[0], args[1], args[2]
        batch, heads, seq, head_dim = query.shape
        found = kernels.efficient_backward(
            batch, heads, key.shape[1], seq, head_dim, DTYPE_NAMES[query.dtype], compute_capability, key.shape[2]
        )
        return found + _contiguous_copy(grad)

    def embedding(args: Any) -> Any:
        grad, indices, vocab = args[0], args[1], args[2]
        return kernels.embedding_backward(indices.numel(), vocab, grad.shape[-1])

    def gemm_4bit(args: Any, kwargs: Any) -> Any:
        a, shape, blocksize = args[0], args[2], args[4]
        nested = kwargs.get("absmax_8bit", args[7] if len(args) > 7 else None) is not None
        return kernels.gemm_4bit(shape[0] * shape[1], blocksize, nested, a.element_size())

    def of(op: str, args: Any, kwargs: Any) -> list[tuple[int, str]]:
        match op:
            case "_scaled_dot_product_flash_attention_backward":
                found = flash(args)
            case "_scaled_dot_product_efficient_attention_backward":
                found = efficient(args)
            case "_scaled_dot_product_efficient_attention":
                found = efficient_forward(args[0])
            case "_scaled_dot_product_cudnn_attention_backward":
                batch, heads, seq, head_dim = args[1].shape
                found = kernels.cudnn_backward(batch, heads, seq, head_dim)
            case "embedding_dense_backward":
                found = embedding(args)
            case "_safe_softmax":
                found = kernels.safe_softmax(*args[0].shape)
            case "_softmax_backward_data":
                found = kernels.softmax_backward(args[0].numel())
            case "gemm_4bit":
                found = gemm_4bit(args, kwargs)
            case _:
                return []
        return [(int(n), why) for n, why in found]

    return of


def _contiguous_copy(grad: torch.Tensor) -> list[tuple[int, str]]:
    if grad.transpose(1, 2).is_contiguous():
        return []
    return [(grad.numel() * grad.element_size(), "attention backward: contiguous grad_out")]


def take_literals(model: nn.Module) -> None:
    """Make buffers that a model is given as a number, which go to the device with it, tensors like any other.

    A fake tensor of a literal is not the device's, and holds its value, which cannot be copied with its module.
    """
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.dim() == 0:
                module._buffers[name] = torch.zeros((), dtype=buffer.dtype)


def quantize_linears(model: nn.Module, storage: BitsAndBytes4bit) -> None:
    """Replace linear layers, but for the head, by what transformers' bitsandbytes integration leaves behind.

    ``Params4bit`` cannot wrap a fake tensor, so a plain uint8 parameter carries the attributes that
    ``Linear4bit.forward`` reads; quantisation, forward and backward are bitsandbytes' own code.
    """
    import bitsandbytes as bnb
    import bitsandbytes.functional as bnb_functional

    dtype = getattr(torch, storage.bnb_4bit_compute_dtype)
    double_quant = storage.bnb_4bit_use_double_quant
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is not nn.Linear or name == "lm_head":
                continue
            packed, state = bnb_functional.quantize_4bit(
                child.weight.data,
                blocksize=64,
                compress_statistics=double_quant,
                quant_type=storage.bnb_4bit_quant_type,
            )
            parameter: Any = nn.Parameter(packed, requires_grad=False)
            made: Any = bnb.nn.Linear4bit.__new__(bnb.nn.Linear4bit)
            nn.Module.__init__(made)
            parameter.quant_state, parameter.bnb_quantized = state, True
            parameter.quant_type, parameter.blocksize = storage.bnb_4bit_quant_type, 64
            parameter.compress_statistics, parameter.quant_storage = double_quant, torch.uint8
            parameter.module = made
            made.in_features, made.out_features = child.in_features, child.out_features
            made.weight, made.bias = parameter, child.bias
            made.compute_dtype, made.compute_type_is_set = dtype, True
            made.quant_state, made.quant_storage = state, torch.uint8
            made.support_avx512bf16_for_cpu = made.enable_optimized_cpu = False
            setattr(parent, name, made)
    model.is_loaded_in_4bit = True  # type: ignore[assignment]
    # What the weights were before: flash-attn's inputs are lowered to it.
    config: Any = model.config
    config._is_quantized, config._pre_quantization_dtype = True, next(model.parameters()).dtype


def prepare_kbit(model: nn.Module) -> None:
    """The casts of PEFT's ``prepare_model_for_kbit_training``, ties kept; its class-name test cannot see a fake."""
    raised: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None or parameter.dtype not in (torch.bfloat16, torch.float16):
                continue
            if id(parameter) not in raised:
                raised[id(parameter)] = nn.Parameter(parameter.data.to(torch.float32), requires_grad=False)
            module._parameters[name] = raised[id(parameter)]


def _dropout(x: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> torch.Tensor:
    """CUDA's fused dropout; the CPU has another, whose mask is as wide as its input."""
    if not training or not p:
        return x
    y: torch.Tensor = torch.ops.aten.native_dropout(x, p, True)[0]
    return y


def _rand(real: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A single random number, by which LyCORIS's adapters decide whether they run, is one half; they do run."""

    def rand(*size: Any, **more: Any) -> torch.Tensor:
        return torch.tensor([0.5]) if size in ((1,), ((1,),)) and not more else real(*size, **more)

    return rand


def _softmax(x: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Any:
    """On CUDA, float16 scores become float32 inside the kernel."""
    if dtype == torch.float32 and x.dtype == torch.float16:
        return torch.ops.aten._softmax(x, dim, True)
    return torch.softmax(x, dim, dtype=dtype)  # type: ignore[arg-type]


def _apply(self: nn.Module, fn: Callable[[Any], Any], recurse: bool = True) -> nn.Module:
    """``Module._apply`` without torch's swap of tensors, which fake ones do not allow."""
    for module in self.modules() if recurse else [self]:
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                with torch.no_grad():
                    made = fn(parameter)
                if made is not parameter:
                    module._parameters[name] = nn.Parameter(made, parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = fn(buffer)
    return self


def _peft_replacements() -> list[tuple[Any, str, Any]]:
    """Four-bit weights are told by their layer's state: PEFT asks for ``Params4bit``, which no fake tensor is."""
    import bitsandbytes.functional as bnb_functional
    from peft.utils import integrations

    name, real = "dequantize_module_weight", integrations.dequantize_module_weight

    def dequantised(module: Any) -> Any:
        state = getattr(module, "quant_state", None)
        return real(module) if state is None else bnb_functional.dequantize_4bit(module.weight.data, state)

    peft = [module for where, module in list(sys.modules.items()) if where.startswith("peft.")]
    return [(module, name, dequantised) for module in peft if vars(module).get(name) is real]


def _bitsandbytes_replacements() -> list[tuple[Any, str, Any]]:
    """Paged states leave the device; update kernels, which allocate nothing, are not run."""
    import bitsandbytes.functional as bnb_functional
    import bitsandbytes.optim.optimizer as bnb

    def state_buffer(self: Any, p: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        paged = self.is_paged and p.numel() >= 1e5
        return torch.zeros_like(p, dtype=dtype, device="meta" if paged else p.device)

    def nothing(*_args: Any, **_kwargs: Any) -> None:
        return None

    return [
        # A code book that is kept for the whole process: a fake one would spoil every real model after the trace.
        (bnb_functional, "name2qmap", {}),
        (bnb.Optimizer8bit, "get_state_buffer", state_buffer),
        (bnb.Optimizer8bit, "prefetch_state", nothing),
        (bnb.Optimizer2State, "update_step", nothing),
        (bnb.Optimizer1State, "update_step", nothing),
        (bnb, "sync_gpu", nothing),
        # What the optimizers of bitsandbytes 0.46 wait with; nothing is allocated.
        (torch.cuda, "synchronize", nothing),
        (torch, "compile", lambda *_a, **_k: nothing),
    ]


@contextlib.contextmanager
def cuda_choices(stack: Stack, compute_capability: tuple[int, int], *, padded: bool) -> Iterator[None]:
    """Patch torch and transformers so that fake ``cpu`` tensors take the paths of a CUDA device; undone on exit."""
    from transformers import PreTrainedModel

    sdpa = scaled_dot_product_attention(stack.sdpa_kernel, compute_capability, stack.wheel)
    autocast_enabled = torch.is_autocast_enabled
    rng = torch.get_rng_state()
    replacements: list[tuple[Any, str, Any]] = [
        (nn.functional, "scaled_dot_product_attention", sdpa),
        (nn.Module, "_apply", _apply),
        (PreTrainedModel, "init_weights", lambda self: self.tie_weights()),
        *releases.questions(padded=padded),
        *releases.repeated_heads(always=stack.repeats_kv),
        *fake_routing.replacements(),
        (nn.functional, "dropout", _dropout),
        (nn.functional, "softmax", _softmax),
        (torch, "rand", _rand(torch.rand)),
        (nn.functional, "cross_entropy", fake_autocast.cross_entropy(nn.functional.cross_entropy)),
        # PEFT asks about CUDA's autocast, which is what is_autocast_enabled() without a device means.
        (torch, "is_autocast_enabled", lambda _device="cpu": autocast_enabled("cpu")),
        # The real one asks whether gradients overflowed and skips the step if so.
        (torch.amp.GradScaler, "_maybe_opt_step", lambda _s, optimizer, _o, *a, **k: optimizer.step(*a, **k)),
        # A copied module must stay in the same fake mode.
        (FakeTensorMode, "__deepcopy__", lambda self, _memo: self),
        # On a GPU this state is a host tensor; here it would be counted.
        (torch, "get_rng_state", lambda: rng),
    ]
    if stack.attn_implementation == "flash_attention_2":
        flash = scaled_dot_product_attention("flash", compute_capability, stack.wheel)
        replacements += releases.flash_attention(flash)
    replacements += (
        _peft_replacements() + _bitsandbytes_replacements() + fused_losses.replacements(stack, compute_capability)
    )
    with replaced(replacements), fake_autocast.powers_in_float32():
        yield


@contextlib.contextmanager
def default_optimizer_loops() -> Iterator[None]:
    """Let torch's optimizers and clipping choose ``foreach`` by themselves, as they do for CUDA parameters."""
    from torch.optim import optimizer
    from torch.utils import _foreach_utils

    types = [*optimizer._foreach_supported_types, FakeTensor]
    with replaced(
        [
            (optimizer, "_foreach_supported_types", types),
            (optimizer, "_get_foreach_kernels_supported_devices", lambda: ["cpu"]),
            (_foreach_utils, "_foreach_supported_types", types),
            (_foreach_utils, "_get_foreach_kernels_supported_devices", lambda: ["cpu"]),
        ]
    ):
        yield


@contextlib.contextmanager
def replaced(replacements: list[tuple[Any, str, Any]]) -> Iterator[None]:
    """Attributes replaced, and put back on exit."""
    missing = object()
    before = [(owner, name, getattr(owner, name, missing)) for owner, name, _ in replacements]
    try:
        for owner, name, value in replacements:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            if value is missing:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
