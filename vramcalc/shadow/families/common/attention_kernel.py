"""Which kernel attends, and whether heads are copied for it."""

from __future__ import annotations

from vramcalc.inputs.stack import ModelSpec, Stack
from vramcalc.shadow.engine.kernels import choose_sdpa_kernel


def attention_kernel(
    spec: ModelSpec, stack: Stack, *, dtype: str, masked: bool, compute_capability: tuple[int, int]
) -> tuple[str, bool]:
    """The kernel that attends, and whether key and value heads are copied for it.

    Args:
        spec: the model.
        stack: the implementation, and what the release of transformers does.
        dtype: of queries, keys and values, after autocast.
        masked: SDPA would be given a mask.
        compute_capability: of the GPU.

    Returns:
        ``eager``, or the kernel of flash-attn or behind SDPA; whether heads are copied before it.

    References:
        transformers integrations/sdpa_attention.py, ``use_gqa_in_sdpa``.
    """
    release, grouped = stack.release, spec.num_attention_heads != spec.num_key_value_heads
    match stack.attn_implementation:
        case "eager":
            return "eager", grouped
        case "flash_attention_2":
            return "flash", grouped and spec.family.has("repeats_before_flash", release)
    repeats = grouped and (masked or stack.repeats_kv or release.repeats_heads or spec.head_dim > 256)
    kernel = choose_sdpa_kernel(
        stack.sdpa_kernel,
        dtype=dtype,
        masked=masked,
        grouped=grouped and not repeats,
        head_dim=spec.head_dim,
        compute_capability=compute_capability,
        wheel=stack.wheel,
    )
    return kernel, repeats
