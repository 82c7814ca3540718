"""What kernels take for themselves, against the formulas of the sources, written out for sizes that tell them apart.

Each expected number is worked out by hand from the source that the function's docstring cites; the runs that were
measured constrain few of these, and a trace asks the same functions.
"""

from __future__ import annotations

from typing import Any

import pytest
from configs import CONFIGS

from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.stack import ModelSpec, Stack
from vramcalc.inputs.torch_releases import wheel_of
from vramcalc.memory.estimate import make_job
from vramcalc.shadow.engine import kernels
from vramcalc.shadow.engine.sizes import Symbols, evaluate
from vramcalc.shadow.engine.tape import ITEMSIZE
from vramcalc.shadow.families.common.attention_kernel import attention_kernel
from vramcalc.shadow.training.loop import Loop, Sizes
from vramcalc.units import KIB, MIB

BATCH, HEADS, KV_HEADS, SEQ = 2, 6, 3, 1000


def sizes(buffers: kernels.Buffers) -> list[int]:
    return [int(n) for n, _ in buffers]


# -- flash -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head_dim", "rounded"), [(32, 32), (40, 64), (64, 64), (96, 96), (128, 128), (136, 192), (200, 256), (256, 256)]
)
def test_flash_backward_sums_dq_in_float32_over_rounded_rows_and_heads(head_dim: int, rounded: int) -> None:
    """``mha_bwd``: rows to 128, heads to 32 and above 128 to 64."""
    found = sizes(kernels.flash_backward(BATCH, HEADS, HEADS, SEQ, head_dim, 2))
    assert found == [4 * BATCH * HEADS * 1024, 4 * BATCH * 1024 * HEADS * rounded]


def test_flash_backward_of_grouped_heads_has_dk_and_dv_per_query_head() -> None:
    """``mha_bwd``, ``dk_expanded``: neither rows nor heads are rounded."""
    found = sizes(kernels.flash_backward(BATCH, HEADS, KV_HEADS, SEQ, 128, 2))
    assert found[2:] == [2 * BATCH * SEQ * HEADS * 128] * 2


# -- memory-efficient ------------------------------------------------------------------------------------------------

TILES: tuple[tuple[tuple[int, int], str, int, int, int, bool], ...] = (
    # Capability, dtype, width of a head; rows and columns of a tile, dk and dv in registers.
    ((6, 1), "float16", 64, 64, 64, True),
    ((6, 1), "float16", 128, 64, 64, False),
    ((7, 0), "float16", 64, 64, 64, True),
    ((7, 5), "float16", 128, 128, 64, True),
    ((7, 5), "float16", 136, 128, 64, False),
    ((7, 5), "float32", 128, 64, 64, True),
    ((8, 0), "bfloat16", 64, 64, 64, True),
    ((8, 0), "bfloat16", 72, 128, 128, True),
    ((8, 0), "bfloat16", 128, 128, 128, True),
    ((8, 0), "bfloat16", 256, 128, 64, False),
    ((8, 0), "float32", 64, 64, 64, True),
    ((8, 0), "float32", 128, 128, 64, True),
    ((8, 6), "float16", 64, 64, 64, True),
    ((8, 6), "float16", 96, 128, 64, True),
    ((8, 9), "bfloat16", 128, 64, 64, False),
    ((8, 9), "bfloat16", 256, 128, 64, False),
    ((8, 9), "float32", 128, 64, 64, True),
    ((9, 0), "bfloat16", 128, 128, 128, True),
    ((12, 0), "bfloat16", 96, 64, 64, False),
    ((12, 0), "float32", 128, 64, 64, True),
)


@pytest.mark.parametrize(("capability", "dtype", "head_dim", "rows", "columns", "in_registers"), TILES)
def test_memory_efficient_backward_takes_a_workspace_of_tiles(
    capability: tuple[int, int], dtype: str, head_dim: int, rows: int, columns: int, in_registers: bool
) -> None:
    """``workspace_size``: a tile of dq has 4 floats of locks; dk and dv a tile for each part of the keys."""
    floats = -(-SEQ // rows) * -(-head_dim // columns) * (rows * columns + 4)
    if not in_registers:
        parts = min(-(-SEQ // columns), 200 // (BATCH * HEADS))
        assert parts == 16
        floats += 2 * parts * columns * (-(-head_dim // rows) * rows)
    found = sizes(kernels.efficient_backward(BATCH, HEADS, HEADS, SEQ, head_dim, dtype, capability))
    assert found == [4 * BATCH * HEADS * SEQ, 4 * BATCH * HEADS * floats]


@pytest.mark.parametrize(("batch", "heads", "seq", "parts"), [(1, 8, 100, 2), (8, 32, 1000, 1), (1, 32, 4096, 6)])
def test_keys_are_parted_once_for_every_200th_head_at_most(batch: int, heads: int, seq: int, parts: int) -> None:
    """``num_splits_key`` of a kernel whose dk and dv do not stay in registers."""
    (_, total) = sizes(kernels.efficient_backward(batch, heads, heads, seq, 128, "float16", (8, 9)))
    dq = -(-seq // 64) * 2 * (64 * 64 + 4)
    assert total == 4 * batch * heads * (dq + 2 * parts * 64 * 128)


def test_before_volta_float32_needs_delta_only() -> None:
    """``kEnableSplitKeys`` is off there, and float32 results are summed in place."""
    assert sizes(kernels.efficient_backward(BATCH, HEADS, HEADS, SEQ, 64, "float32", (6, 1))) == [
        4 * BATCH * HEADS * SEQ
    ]


def test_memory_efficient_backward_of_grouped_heads_has_dk_and_dv_per_query_head() -> None:
    """Two ``at::empty`` in the key's dtype and two ``sum_out``, in the library of torch 2.14.1."""
    plain, grouped = (
        sizes(kernels.efficient_backward(BATCH, HEADS, kv_heads, SEQ, 64, "float16", (7, 5)))
        for kv_heads in (HEADS, KV_HEADS)
    )
    assert grouped == [2 * BATCH * SEQ * HEADS * 64] * 2 + plain


@pytest.mark.parametrize(
    ("head_dim", "dtype", "expected"),
    [(128, "bfloat16", []), (136, "bfloat16", [4 * BATCH * SEQ * HEADS * 136]), (136, "float32", [])],
)
def test_wide_heads_are_summed_in_float32_in_the_forward_pass(head_dim: int, dtype: str, expected: list[int]) -> None:
    """``kNeedsOutputAccumulatorBuffer``: no more than 128 fit into one iteration over values."""
    assert sizes(kernels.efficient_forward(BATCH, HEADS, SEQ, head_dim, dtype)) == expected


def test_a_symbolic_batch_has_the_bytes_of_each_number() -> None:
    symbols = Symbols(batch=2, seq=1000)
    dims = symbols.dims
    found = kernels.efficient_backward(dims["batch"], HEADS, HEADS, dims["seq"], 128, "float16", (8, 9))
    for batch, seq in ((2, 1000), (3, 1920)):
        values: Any = {"batch": batch, "seq": seq}
        expected = sizes(kernels.efficient_backward(batch, HEADS, HEADS, seq, 128, "float16", (8, 9)))
        assert [evaluate(n, values) for n, _ in found] == expected


# -- cuDNN -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_cudnn_backward_asks_for_dq_and_a_sum_per_row_in_float32(head_dim: int) -> None:
    """``dQ_accum_size`` and ``softmax_sum_size``, in one request; heads are not rounded, key heads do not matter."""
    expected = BATCH * HEADS * SEQ * head_dim * 4 + BATCH * HEADS * SEQ * 4
    assert sizes(kernels.cudnn_backward(BATCH, HEADS, SEQ, head_dim)) == [expected]


@pytest.mark.parametrize("asked", ["cudnn", "flash", "efficient"])
def test_the_step_takes_what_the_kernel_needs(asked: str) -> None:
    spec = to_spec(CONFIGS["llama"], "llama")
    settings: dict[str, Any] = {"sdpa_kernel": asked, "repeats_kv": asked == "efficient", "seq_len": 200}
    job, _ = make_job(spec, "full", micro_batch_size=3, **settings)
    tape = _walked(job)
    heads, kv_heads, head_dim = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
    expected = {
        "cudnn": kernels.cudnn_backward(3, heads, 200, head_dim),
        "flash": kernels.flash_backward(3, heads, kv_heads, 200, head_dim, 2),
        "efficient": kernels.efficient_backward(3, heads, heads, 200, head_dim, "bfloat16", (8, 0)),
    }[asked]
    for n_bytes, what in expected:
        found = [b for b in tape.births if b.op == what]
        assert len(found) == spec.num_hidden_layers
        assert {int(b.shape[0]) * ITEMSIZE[b.dtype] for b in found} == {n_bytes}


def _walked(job: Any) -> Any:
    loop = Loop(job, Sizes.of(job), job.model.num_hidden_layers)
    loop.steps([job.training.seq_len])
    return loop.tape


# -- the math kernel, cuBLAS, elements ---------------------------------------------------------------------------------


def test_a_safe_softmax_has_a_second_result_and_two_masks() -> None:
    """``_safe_softmax``: the softmax in float32, ``self.eq(-inf)`` and its ``all`` over a row, beside ``where``."""
    scores, rows = BATCH * HEADS * SEQ * 77, BATCH * HEADS * SEQ
    assert sizes(kernels.safe_softmax(BATCH, HEADS, SEQ, 77)) == [4 * scores, scores, rows]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((7, 5), (2 * 4096 + 8 * 16) * KIB),
        ((8, 9), 8_519_680),
        ((9, 0), 32 * MIB),
        ((10, 0), 32 * MIB),
        ((12, 0), 33_554_432),
    ],
)
def test_cublas_takes_32_mib_from_hopper_on(capability: tuple[int, int], expected: int) -> None:
    """``parseChosenWorkspaceSize``: ``:4096:2:16:8`` before compute capability 9."""
    assert kernels.cublas_workspace_bytes(capability) == expected


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_an_element_has_the_bytes_that_torch_says(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    assert ITEMSIZE[dtype] == getattr(torch, dtype).itemsize


@pytest.mark.parametrize(("head_dim", "repeats"), [(128, False), (256, False), (258, True), (264, True)])
def test_heads_above_256_are_repeated_for_sdpa(head_dim: int, repeats: bool) -> None:
    """``use_gqa_in_sdpa``: no kernel takes groups of wider heads."""
    spec: ModelSpec = to_spec(CONFIGS["llama"], "llama").replace(head_dim=head_dim)
    assert spec.num_key_value_heads < spec.num_attention_heads
    found = attention_kernel(spec, Stack(), dtype="bfloat16", masked=False, compute_capability=(8, 0))
    assert found[1] is repeats


def test_a_softmaxs_gradient_is_multiplied_before_rows_are_summed() -> None:
    """``softmax_backward_cuda_out``: ``grad * output`` in float32."""
    assert sizes(kernels.softmax_backward(77)) == [4 * 77]


@pytest.mark.parametrize("tokens", [1, 3072])
def test_an_embedding_of_3072_tokens_and_fewer_has_a_kernel_of_its_own(tokens: int) -> None:
    """``embedding_dense_backward_cuda``: ``num_indices <= 3072 && !scale_grad_by_freq``."""
    assert kernels.embedding_backward(tokens, 1000, 64) == []


@pytest.mark.parametrize(("tokens", "vocab", "segments"), [(3073, 1000, 1000), (3073, 5000, 3073), (4095, 4095, 4095)])
def test_an_embedding_of_more_tokens_sorts_them(tokens: int, vocab: int, segments: int) -> None:
    """``embedding_backward_cuda_kernel``: partial segments of ``NROWS_PER_THREAD`` = 10 tokens."""
    partials = tokens // 10 + segments
    found = sizes(kernels.embedding_backward(tokens, vocab, 64))
    assert found == [8 * tokens] * 3 + [8 * segments] * 2 + [8 * partials, 4 * partials * 64]


@pytest.mark.parametrize("itemsize", [2, 4])
def test_a_four_bit_product_dequantises_the_weight(itemsize: int) -> None:
    """``gemm_4bit``: nested scales become float32, and are copied once more when the offset is added."""
    weight = 6400 * itemsize
    assert sizes(kernels.gemm_4bit(6400, 64, True, itemsize)) == [400, 400, weight]
    assert sizes(kernels.gemm_4bit(6400, 64, False, itemsize)) == [weight]


CHOSEN: tuple[tuple[str, tuple[int, int], int, bool, bool, str], ...] = (
    # Dtype, capability, width of a head, masked, grouped; the kernel.
    ("bfloat16", (8, 0), 256, False, False, "flash"),
    ("bfloat16", (8, 0), 257, False, False, "math"),
    ("bfloat16", (8, 0), 264, False, False, "efficient"),
    ("bfloat16", (8, 0), 192, False, True, "flash"),
    ("bfloat16", (8, 6), 192, False, False, "flash"),
    ("bfloat16", (8, 6), 200, False, False, "efficient"),
    ("bfloat16", (8, 9), 224, False, False, "efficient"),
    ("bfloat16", (12, 0), 200, False, False, "efficient"),
    ("bfloat16", (8, 6), 232, False, False, "flash"),
    ("bfloat16", (8, 0), 200, False, False, "flash"),
    ("bfloat16", (8, 0), 128, True, False, "efficient"),
    ("bfloat16", (8, 0), 128, True, True, "math"),
    ("bfloat16", (8, 0), 12, True, False, "math"),
    ("float32", (8, 0), 128, False, False, "efficient"),
    ("float32", (8, 0), 12, False, False, "efficient"),
    ("float32", (8, 0), 14, False, False, "math"),
    ("float32", (7, 5), 13, False, False, "efficient"),
    ("float16", (7, 5), 128, False, False, "efficient"),
    ("float16", (7, 0), 12, False, False, "math"),
    ("float16", (6, 1), 13, False, False, "efficient"),
    ("bfloat16", (7, 5), 128, False, False, "math"),
)


@pytest.mark.parametrize(("dtype", "capability", "head_dim", "masked", "grouped", "kernel"), CHOSEN)
def test_the_kernel_that_sdpa_takes(
    dtype: str, capability: tuple[int, int], head_dim: int, masked: bool, grouped: bool, kernel: str
) -> None:
    """``select_sdp_backend``: flash up to 256, in training not 193 to 224 where shared memory is little.

    ``minimum_gemm_alignment``: 8 halves from 7.0 on, 4 floats from 8.0 on, else one.
    """
    found = kernels.choose_sdpa_kernel(
        "auto", dtype=dtype, masked=masked, grouped=grouped, head_dim=head_dim, compute_capability=capability,
        wheel=wheel_of("2.13", None),
    )  # fmt: skip
    assert found == kernel
