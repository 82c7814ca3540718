"""``scaled_dot_product_attention`` with the kernel that CUDA would choose."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from vramcalc.inputs.torch_releases import Wheel
from vramcalc.shadow.engine import kernels

DTYPE_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def scaled_dot_product_attention(
    requested: str, compute_capability: tuple[int, int], wheel: Wheel
) -> Callable[..., torch.Tensor]:
    """A stand-in for torch's function that calls the operator CUDA would choose.

    References:
        pytorch aten/src/ATen/native/transformers/attention.cpp, ``scaled_dot_product_attention``,
        ``convert_boolean_attn_mask`` and ``pad_bias``.
    """
    aten = torch.ops.aten

    def sdpa(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            # Autocast's wrapper evaluates its arguments from right to left.
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(dtype)
            value, key, query = value.to(dtype), key.to(dtype), query.to(dtype)
        head_dim = query.shape[-1]
        kernel = kernels.choose_sdpa_kernel(
            requested,
            dtype=DTYPE_NAMES[query.dtype],
            masked=attn_mask is not None,
            grouped=enable_gqa and key.shape[1] != query.shape[1],
            head_dim=head_dim,
            compute_capability=compute_capability,
            wheel=wheel,
        )
        if kernel == "math":
            # Autocast acts on the arguments of the composite, not inside it.
            with torch.autocast("cpu", enabled=False):
                return _math_attention(query, key, value, attn_mask, is_causal, scale)
        scale = scale if scale is not None else head_dim**-0.5
        if kernel == "flash":
            pad = -head_dim % 8
            if pad:
                query, key, value = (nn.functional.pad(t, (0, pad)) for t in (query, key, value))
            out: torch.Tensor = aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, False, scale=scale
            )[0]
            return out[..., :head_dim] if pad else out
        bias = _additive_bias(attn_mask, query, key) if attn_mask is not None else None
        with_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        if kernel == "cudnn":
            out = aten._scaled_dot_product_cudnn_attention(
                query, key, value, bias, with_grad, dropout_p, is_causal, False, scale=scale
            )[0]
        else:
            out = aten._scaled_dot_product_efficient_attention(
                query, key, value, bias, with_grad, dropout_p, is_causal, scale=scale
            )[0]
        return out

    return sdpa


def _math_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """``_scaled_dot_product_attention_math`` line by line.

    torch's own composite adds the mask out of place when it sees a fake tensor; on a GPU it adds in place.
    """
    dtype, root = query.dtype, (scale if scale is not None else query.shape[-1] ** -0.5) ** 0.5
    query_acc, key, value = query.float(), key.float(), value.float()
    query = query_acc * root
    if is_causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        infinite = torch.full([], float("-inf"), dtype=query.dtype, device=query.device)
        mask = torch.where(mask, torch.zeros([], dtype=query.dtype, device=query.device), infinite)
        del infinite
    groups = query.shape[1] // key.shape[1]
    key_expanded = key.repeat_interleave(groups, 1) if groups > 1 else key
    value_expanded = value.repeat_interleave(groups, 1) if groups > 1 else value
    attn = torch.matmul(query, key_expanded.transpose(-2, -1) * root)
    if mask is not None:
        attn = attn.add_(mask)
    attn = torch.ops.aten._safe_softmax(attn, -1)
    weights = attn.to(dtype)
    out = torch.matmul(attn, value_expanded).to(dtype)
    del weights
    return out


def _additive_bias(mask: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    if mask.dtype == torch.bool:
        zero = torch.zeros([], dtype=query.dtype, device=query.device)
        mask = torch.where(mask, zero, torch.full([], float("-inf"), dtype=query.dtype, device=query.device))
    if mask.shape[-1] % 8:
        length = mask.shape[-1]
        mask = nn.functional.pad(mask, (0, -length % 8))[..., :length]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
