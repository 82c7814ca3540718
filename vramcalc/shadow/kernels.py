"""Memory that CUDA kernels and libraries take inside one operator, which no tensor of the program names.

Each function restates what the C++ or CUDA source asks the caching allocator for, as ``(bytes, what)`` pairs; the
buffers live until the operator returns. Bytes may be symbolic.
"""

from __future__ import annotations

from vramcalc.errors import Unsupported
from vramcalc.shadow.dims import Size, ceil_to, minimum
from vramcalc.units import KIB, MIB

Buffers = list[tuple[Size, str]]


def cublas_workspace_bytes(compute_capability: tuple[int, int]) -> int:
    """Workspace that torch gives to each cuBLAS handle and stream.

    ``CUBLAS_WORKSPACE_CONFIG``'s default: 2 buffers of 4096 KiB and 8 of 16 KiB, 32 MiB from Hopper on.

    References:
        pytorch aten/src/ATen/cuda/CublasHandlePool.cpp, ``parseChosenWorkspaceSize``.
    """
    return 32 * MIB if compute_capability[0] >= 9 else (2 * 4096 + 8 * 16) * KIB


def flash_backward(batch: Size, heads: int, kv_heads: int, seq: Size, head_dim: int, itemsize: int) -> Buffers:
    """FlashAttention-2 backward as torch ships it.

    References:
        pytorch aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp, ``mha_bwd``.
    """
    rounded_dim = ceil_to(head_dim, 32 if head_dim <= 128 else 64)
    rounded_seq = ceil_to(seq, 128)
    buffers: Buffers = [
        (4 * batch * heads * rounded_seq, "flash backward: softmax_d"),
        (4 * batch * rounded_seq * heads * rounded_dim, "flash backward: dq in float32"),
    ]
    if kv_heads != heads:
        expanded = itemsize * batch * seq * heads * head_dim
        buffers += [(expanded, "flash backward: dk per query head"), (expanded, "flash backward: dv per query head")]
    return buffers


def efficient_backward(
    batch: Size, heads: int, seq: Size, head_dim: int, compute_capability: tuple[int, int]
) -> Buffers:
    """Memory-efficient attention's backward: fp32 accumulators that do not fit in registers.

    References:
        pytorch aten/src/ATen/native/transformers/cuda/attention_backward.cu and
        mem_eff_attention/kernel_backward.h, ``workspace_size``.
    """
    accumulator = 4 * batch * heads * ceil_to(seq, 64) * ceil_to(head_dim, 64)
    buffers: Buffers = [
        (4 * batch * heads * seq, "efficient backward: delta"),
        (accumulator, "efficient backward: dq in float32"),
    ]
    if compute_capability in ((8, 6), (8, 9)) and head_dim > 64:
        # 100 KB of shared memory allow 64 x 64 tiles only, whose outputs do not stay in registers.
        buffers += [
            (accumulator, "efficient backward: dk in float32"),
            (accumulator, "efficient backward: dv in float32"),
        ]
    return buffers


def embedding_backward(tokens: Size, vocab: int, width: Size) -> Buffers:
    """Sorting path of the embedding's weight gradient, taken above 3,072 tokens.

    References:
        pytorch aten/src/ATen/native/cuda/Embedding.cu, ``embedding_dense_backward_cuda``, and
        EmbeddingBackwardKernel.cu, ``embedding_backward_cuda_kernel``.
    """
    if tokens <= 3072:
        return []
    segments = minimum(tokens, vocab)
    partials = tokens // 10 + segments
    return [
        (8 * tokens, "embedding backward: sorted indices"),
        (8 * tokens, "embedding backward: original indices"),
        (8 * tokens, "embedding backward: segment offsets"),
        (8 * segments, "embedding backward: partials per segment"),
        (8 * segments, "embedding backward: partial offsets"),
        (8 * partials, "embedding backward: partial segment offsets"),
        (4 * partials * width, "embedding backward: partial sums in float32"),
    ]


def safe_softmax(batch: Size, heads: int, rows: Size, columns: Size) -> Buffers:
    """``_safe_softmax`` of float32 scores: the plain softmax and a mask of infinities before the selected result.

    References:
        pytorch aten/src/ATen/native/transformers/attention.cpp, ``_safe_softmax``.
    """
    scores = batch * heads * rows * columns
    return [
        (4 * scores, "safe softmax: unmasked result"),
        (scores, "safe softmax: which scores are -inf"),
        (batch * heads * rows, "safe softmax: which rows are masked"),
    ]


def softmax_backward(scores: Size) -> Buffers:
    """The gradient of a softmax in float32: its product with the result, before rows are summed.

    References:
        pytorch aten/src/ATen/native/cuda/SoftMax.cu, ``softmax_backward_cuda_out``.
    """
    return [(4 * scores, "softmax backward: gradient times result")]


def choose_sdpa_kernel(
    requested: str,
    *,
    dtype: str,
    masked: bool,
    grouped: bool,
    head_dim: int,
    compute_capability: tuple[int, int],
) -> str:
    """Kernel behind ``torch.nn.functional.scaled_dot_product_attention`` on CUDA.

    Args:
        requested: ``auto``, or the one kernel that ``torch.nn.attention.sdpa_kernel`` allows.
        dtype: of query, key and value.
        masked: an explicit mask is passed.
        grouped: ``enable_gqa=True``: fewer key heads than query heads, not repeated.
        head_dim: width of a head.
        compute_capability: of the GPU.

    Returns:
        ``cudnn``, ``flash``, ``efficient`` or ``math``.

    Raises:
        Unsupported: the requested kernel cannot take these inputs; torch raises "No available kernel" there.

    References:
        pytorch aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (2.13), ``select_sdp_backend``. cuDNN comes first
        on compute capability 9.0 and 10.0 with cuDNN 9.15 or newer, as in torch's CUDA 13 builds.
    """
    half = dtype != "float32"
    usable = {
        "cudnn": compute_capability in ((9, 0), (10, 0)) and half and head_dim <= 128 and head_dim % 8 == 0,
        "flash": compute_capability >= (8, 0) and half and not masked and head_dim <= 256,
        "efficient": (compute_capability >= (8, 0) or dtype != "bfloat16")
        and not grouped
        and head_dim % (8 if half else 4) == 0,
        "math": True,
    }
    if requested == "auto":
        return next(kernel for kernel, ok in usable.items() if ok)
    if not usable[requested]:
        raise Unsupported(
            f"sdpa_kernel = {requested!r} cannot run here: {dtype} {'with' if masked else 'without'} a mask, "
            f"{'grouped' if grouped else 'equal'} key heads, head_dim {head_dim}, compute capability "
            f"{compute_capability[0]}.{compute_capability[1]}; torch would raise 'No available kernel'. "
            "Use sdpa_kernel='auto'"
        )
    return requested


def gemm_4bit(n_weights: int, block: int, nested: bool, itemsize: int) -> Buffers:
    """Bitsandbytes' four-bit product in the forward pass: the weight dequantised in full.

    Its fused kernel for few rows needs no copy, but the backward pass always dequantises, so the larger case stands
    for both.

    References:
        bitsandbytes 0.50 backends/cuda/ops.py, ``gemm_4bit``.
    """
    buffers: Buffers = []
    if nested:
        scales = 4 * (n_weights // block)
        buffers += [(scales, "4-bit product: scales"), (scales, "4-bit product: scales with offset")]
    return [*buffers, (n_weights * itemsize, "4-bit product: dequantised weight")]
