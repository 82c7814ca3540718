"""Where releases of transformers differ in what a trace has to know."""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily

from vramcalc.inputs.families import FAMILIES

Replacement = tuple[Any, str, Any]

_FLASH = "flash_attention_2"


def _module(name: str) -> Any | None:
    with contextlib.suppress(ModuleNotFoundError):
        return importlib.import_module(f"transformers.{name}")
    return None


def dtype_argument() -> str:
    """The name ``from_config`` gives to the weights' dtype: another one before 4.56."""
    major, minor = map(int, version("transformers").split(".")[:2])
    return "dtype" if (major, minor) >= (4, 56) else "torch_dtype"


def questions(*, padded: bool) -> list[Replacement]:
    """Questions about the values of a mask, which a fake tensor cannot answer; ``masking_utils`` came with 4.53."""
    if masking := _module("masking_utils"):
        functions = masking.ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
        return [
            (masking, "_ignore_causal_mask_sdpa", _answer(masking._ignore_causal_mask_sdpa, padded=padded)),
            *_packing(masking),
            *([(_Item(functions), _FLASH, lambda *_, **__: None)] if _FLASH in functions else []),
        ]
    found: list[Replacement] = [(torch.Tensor, "__contains__", lambda _self, _value: padded)]
    before = _module("modeling_attn_mask_utils")
    converter = before.AttentionMaskConverter if before else None
    if hasattr(converter, "_ignore_causal_mask_sdpa"):
        answer = _answer(converter._ignore_causal_mask_sdpa, padded=padded)  # type: ignore[union-attr]
        found.append((converter, "_ignore_causal_mask_sdpa", staticmethod(answer)))
    return found + _before_4_43(padded=padded)


def _before_4_43(*, padded: bool) -> list[Replacement]:
    """Questions that models asked by themselves up to 4.42: whether a mask is needed, and how far positions go."""
    found: list[Replacement] = []
    for name in FAMILIES:
        module, function = _module(f"models.{name}.modeling_{name}"), "_prepare_4d_causal_attention_mask_for_sdpa"
        if hasattr(module, function) and not padded:
            found.append((module, function, lambda *_, **__: None))
        if module and "_flash_supports_window_size" not in vars(module):
            found.append((module, "_flash_supports_window_size", True))
    largest = torch.Tensor.max

    def last_position(x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = largest(x, *args, **kwargs)
        if isinstance(result, FakeTensor) and x.dtype == torch.int64:
            with unset_fake_temporarily():
                # Positions end where the sequence does, which the caller takes the longer of.
                result.constant = torch.tensor(0)
        return result

    return [*found, (torch.Tensor, "max", last_position)]


def _packing(masking: Any) -> list[Replacement]:
    """Whether sequences are packed, read off the positions: releases before 5.0 do not ask, and take all for packed."""
    if int(version("transformers").split(".")[0]) < 5:
        return []
    find = masking.find_packed_sequence_indices

    def not_packed(position_ids: torch.Tensor) -> None:
        find(position_ids)

    return [(masking, "find_packed_sequence_indices", not_packed)]


class _Item:
    """Entries of a dictionary as attributes, so that they are replaced and put back like any other."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self.__dict__ = entries


def _answer(asked: Callable[..., Any], *, padded: bool) -> Callable[..., bool]:
    signature = inspect.signature(asked)

    def ignore(*args: Any, **kwargs: Any) -> bool:
        given = signature.bind(*args, **kwargs).arguments
        window = given.get("local_attention_size", given.get("sliding_window"))
        length = given["kv_length"] if "kv_length" in given else given["inputs_embeds"].shape[1]
        queries = given.get("q_length", given.get("query_length", length))
        # Tokens that find keys in a cache need a mask, unless there is a single one.
        return not padded and (window is None or length < window) and queries in (1, length)

    return ignore


def repeated_heads(*, always: bool) -> list[Replacement]:
    """Key and value heads copied before SDPA even where torch could group them, as every release before 4.53 did."""
    module = _module("integrations.sdpa_attention")
    if not always or not hasattr(module, "use_gqa_in_sdpa"):
        return []
    return [(module, "use_gqa_in_sdpa", lambda *_: False)]


def flash_attention(sdpa: Callable[..., torch.Tensor]) -> list[Replacement]:
    """The package ``flash_attn``, which needs a GPU to be installed: its kernel is the one torch carries a copy of.

    Args:
        sdpa: ``scaled_dot_product_attention`` with the flash kernel; heads come before positions there, and after
            them in the package.
    """

    def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_: Any, dropout: float = 0.0, **more: Any) -> Any:
        if q.dtype == torch.float32 and more.get("target_dtype"):
            q, k, v = (t.to(more["target_dtype"]) for t in (q, k, v))
        heads_first = (t.transpose(1, 2) for t in (q, k, v))
        return sdpa(*heads_first, dropout_p=dropout, is_causal=True).transpose(1, 2)

    def method(_self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    from transformers import PreTrainedModel

    checks = {
        "_check_and_enable_flash_attn_2": classmethod(_enabled),
        "_check_and_adjust_attn_implementation": lambda _self, asked, *_, **__: asked,
    }
    found: list[Replacement] = [(PreTrainedModel, n, f) for n, f in checks.items() if hasattr(PreTrainedModel, n)]
    if integration := _module("integrations.flash_attention"):
        found.append((integration, "_flash_attention_forward", forward))
    for name in FAMILIES:
        module = _module(f"models.{name}.modeling_{name}")
        classes = [v for k, v in vars(module).items() if k.endswith("FlashAttention2")] if module else []
        found += [(c, "_flash_attention_forward", method) for c in classes if "_flash_attention_forward" in vars(c)]
        if classes or hasattr(module, "_flash_attention_forward"):
            found.append((module, "_flash_attention_forward", forward))
    return found


def _enabled(_cls: type, config: Any, *_: Any, **__: Any) -> Any:
    config._attn_implementation = _FLASH
    return config
