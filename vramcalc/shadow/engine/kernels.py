"""Memory that CUDA kernels and libraries take inside one operator, which no tensor of the program names.

Each function restates what the C++ or CUDA source asks the caching allocator for, as ``(bytes, what)`` pairs; the
buffers live until the operator returns. Bytes may be symbolic.
"""

from __future__ import annotations

from vramcalc.errors import Unsupported
from vramcalc.inputs.torch_releases import Wheel
from vramcalc.shadow.engine.sizes import Size, ceil_to, minimum
from vramcalc.shadow.engine.tape import ITEMSIZE
from vramcalc.units import KIB, MIB

Buffers = list[tuple[Size, str]]


def cublas_workspace_bytes(compute_capability: tuple[int, int]) -> int:
    """Workspace that torch gives to each cuBLAS handle and stream.

    ``CUBLAS_WORKSPACE_CONFIG``'s default: 2 buffers of 4096 KiB and 8 of 16 KiB, 32 MiB from Hopper on.

    References:
        pytorch aten/src/ATen/cuda/CublasHandlePool.cpp, ``parseChosenWorkspaceSize``.
    """
    return 32 * MIB if compute_capability[0] >= 9 else (2 * 4096 + 8 * 16) * KIB


def flash_backward(
    batch: Size, heads: int, kv_heads: int, seq: Size, head_dim: int, itemsize: int, keys: Size | None = None
) -> Buffers:
    """FlashAttention-2 backward as torch ships it; ``keys`` are as many as queries when left out.

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
        expanded = itemsize * batch * (seq if keys is None else keys) * heads * head_dim
        buffers += [(expanded, "flash backward: dk per query head"), (expanded, "flash backward: dv per query head")]
    return buffers


def efficient_forward(batch: Size, heads: int, seq: Size, head_dim: int, dtype: str) -> Buffers:
    """Memory-efficient attention: heads above 128 do not stay in registers, and 16-bit results are summed in float32.

    References:
        pytorch aten/src/ATen/native/transformers/cuda/attention.cu, ``output_accum``; mem_eff_attention/
        kernel_forward.h, ``kNeedsOutputAccumulatorBuffer``: kernels take 128 keys at a time.
    """
    if head_dim <= 128 or dtype == "float32":
        return []
    return [(4 * batch * seq * heads * head_dim, "efficient: result in float32")]


def _small_shared_memory(compute_capability: tuple[int, int]) -> bool:
    """GPUs of 8.0 or later that give a block 99 KiB of shared memory, not 163 or 227.

    References:
        CUDA C++ Programming Guide, "Technical Specifications per Compute Capability".
    """
    return compute_capability in ((8, 6), (8, 9)) or compute_capability[0] == 12


def _efficient_tile(head_dim: int, dtype: str, compute_capability: tuple[int, int]) -> tuple[int, int, bool]:
    """Rows and columns of a tile of memory-efficient attention's backward, and whether dk and dv stay in registers.

    The first kernel that is wide enough and whose shared memory fits: 130 to 151 KiB for 128 x 128, 118 for 128 x 64 in
    float32, 90 for 128 x 64 with heads of 96, 60 and less for the others.

    References:
        pytorch aten/src/ATen/native/transformers/cuda/mem_eff_attention/kernels/cutlassB.h,
        ``dispatch_cutlassB_*``, and kernel_backward.h, ``kOutputInRF``; shared memory as in torch 2.14.1's library.
    """
    small = _small_shared_memory(compute_capability)
    if dtype == "float32":
        wide = compute_capability >= (8, 0) and head_dim > 64 and not small
        return (128 if wide else 64), 64, True
    if head_dim <= 64:
        return 64, 64, True
    if compute_capability < (7, 0):
        return 64, 64, False
    if head_dim > 128:
        return 128, 64, False
    if compute_capability < (8, 0) or (head_dim <= 96 and compute_capability in ((8, 6), (8, 9))):
        return 128, 64, True
    return (64, 64, False) if small else (128, 128, True)


def efficient_backward(
    batch: Size,
    heads: int,
    kv_heads: int,
    seq: Size,
    head_dim: int,
    dtype: str,
    compute_capability: tuple[int, int],
    keys: Size | None = None,
) -> Buffers:
    """Memory-efficient attention's backward: delta, and one workspace of float32 sums.

    Every tile of dq has its sums and 16 bytes of locks. Where dk and dv do not stay in registers, each part of the keys
    that is worked on at a time has a tile of each, and there are at most ``200 // (batch * heads)`` parts of a head.
    Grouped heads (torch 2.14) have dk and dv per query head, which are then summed. In float32 torch works delta out
    by itself, before the workspace is there; that takes about as much and is not counted twice. ``keys`` are as many as
    queries when left out.

    References:
        pytorch aten/src/ATen/native/transformers/cuda/attention_backward.cu, ``_efficient_attention_backward``
        (``num_splits_key``; groups: two ``at::empty`` and ``sum_out`` in 2.14.1's library), and
        mem_eff_attention/kernel_backward.h, ``workspace_size``, ``GradQTempStorage``.
    """
    keys = seq if keys is None else keys
    buffers: Buffers = []
    if kv_heads != heads:
        expanded = ITEMSIZE[dtype] * batch * keys * heads * head_dim
        buffers += [(expanded, f"efficient backward: {g} per query head") for g in ("dk", "dv")]
    buffers.append((4 * batch * heads * seq, "efficient backward: delta"))
    if dtype == "float32" and compute_capability < (7, 0):
        return buffers
    rows, columns, in_registers = _efficient_tile(head_dim, dtype, compute_capability)
    per_head = ceil_to(seq, rows) // rows * (ceil_to(head_dim, columns) // columns * (rows * columns + 4))
    if not in_registers:
        parts = minimum(ceil_to(keys, columns) // columns, 200 // (batch * heads))
        per_head = per_head + 2 * (parts if parts > 1 else 1) * columns * ceil_to(head_dim, rows)
    buffers.append((4 * batch * heads * per_head, "efficient backward: dq, dk and dv in float32"))
    return buffers


def cudnn_backward(batch: Size, heads: int, seq: Size, head_dim: int) -> Buffers:
    """Backward of cuDNN attention: torch asks for the workspace of the graph, dq and row sums in float32.

    Read, not measured. What cuDNN's own kernels need beyond that is not published and taken to be nothing. The dP
    tensor of up to 256 MiB is of cuDNN before 9.0, which torch does not take.

    References:
        pytorch aten/src/ATen/native/cudnn/MHA.cpp, ``run_cudnn_SDP_bprop``; cudnn-frontend 1.12 to 1.23,
        include/cudnn_frontend/node/scaled_dot_product_flash_attention.h, ``CompositeSDPABackwardNode``:
        ``dQ_accum_size``, ``softmax_sum_size``, ``get_fe_workspace_size_node``.
    """
    return [(4 * batch * heads * seq * (head_dim + 1), "cuDNN backward: dq and row sums in float32")]


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
    wheel: Wheel,
) -> str:
    """Kernel behind ``torch.nn.functional.scaled_dot_product_attention`` on CUDA, in training.

    Args:
        requested: ``auto``, or the one kernel that ``torch.nn.attention.sdpa_kernel`` allows.
        dtype: of query, key and value.
        masked: an explicit mask is passed.
        grouped: ``enable_gqa=True``: fewer key heads than query heads, not repeated.
        head_dim: width of a head.
        compute_capability: of the GPU.
        wheel: release of torch, and the CUDA it is built for.

    Returns:
        ``cudnn``, ``flash``, ``efficient`` or ``math``.

    Raises:
        Unsupported: the requested kernel cannot take these inputs; torch raises "No available kernel" there.

    References:
        pytorch aten/src/ATen/native/transformers/cuda/sdp_utils.cpp (2.13, 2.14), ``select_sdp_backend``,
        ``minimum_gemm_alignment``, ``check_requires_grad_and_head_dim_gt192_constraints_on_sm86_89_or_120``.
    """
    half, ampere = dtype != "float32", compute_capability >= (8, 0)
    fits_flash = head_dim <= 256 and not (192 < head_dim <= 224 and _small_shared_memory(compute_capability))
    alignment = (8 if compute_capability >= (7, 0) else 1) if half else (4 if ampere else 1)
    groups = not grouped or wheel.release.groups_efficient
    usable = {
        "cudnn": ampere and half and wheel.cudnn_takes(head_dim, compute_capability),
        "flash": ampere and half and not masked and fits_flash,
        "efficient": (ampere or dtype != "bfloat16") and groups and head_dim % alignment == 0,
        "math": True,
    }
    if requested == "auto":
        first = "cudnn" if wheel.prefers_cudnn(compute_capability) else "flash"
        return first if usable[first] else next(k for k in ("flash", "efficient", "math") if usable[k])
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
