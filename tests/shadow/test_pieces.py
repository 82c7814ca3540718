"""Small pieces of a step, line by line beside torch and bitsandbytes.

References:
    bitsandbytes 0.50 functional.py, autograd/_functions.py; pytorch torch/amp/grad_scaler.py,
    torch/nn/utils/clip_grad.py; transformers models/llama/modeling_llama.py.
"""

from __future__ import annotations

import pytest
from played import engine, given, parameter, played

from vramcalc.shadow.engine import norms
from vramcalc.shadow.engine import scaling_and_clipping as gradients
from vramcalc.shadow.engine.tape import ITEMSIZE, promote
from vramcalc.shadow.families.common import experts
from vramcalc.shadow.quantization.bitsandbytes import Linear4bit, Packed4bit


def test_an_element_has_its_bytes() -> None:
    for n_bytes, names in ((1, "uint8 bool"), (2, "bfloat16 float16"), (4, "float32 int32"), (8, "float64 int64")):
        assert {ITEMSIZE[name] for name in names.split()} == {n_bytes}
    assert promote("bfloat16", "bfloat16") == "bfloat16"
    assert promote("bfloat16", "float32") == promote("bfloat16", "float16") == "float32"


@pytest.mark.parametrize(
    ("nested", "scales"),
    [
        (True, "+513 scales, +12 scales of scales, +1024 8-bit code book, +4 offset of scales"),
        (False, "+2052 scales"),
    ],
)
def test_a_weight_in_four_bits(nested: bool, scales: str) -> None:
    """``quantize_4bit``: two codes a byte, a scale per 64, of which 256 share one; 32,769 fill no last block."""
    e = engine()
    found, _ = played(e, lambda: Packed4bit(e.tape, "w", 32_769, 1, dtype="bfloat16", double_quant=nested))
    assert ", ".join(found) == f"+16385 packed 4-bit weight, {scales}, +64 4-bit code book"


def test_a_four_bit_layer_dequantises_in_both_passes() -> None:
    """``MatMul4Bit``: by way of the scales; read in 16 bits and computed in float32, the weight is cast again."""
    e = engine()
    layer = Linear4bit(e, "w", 128, 64, dtype="bfloat16", bias_dtype=None, compute_dtype="float32", double_quant=True)
    x = given(e, (2, 3, 128))
    found, y = played(e, lambda: layer(x))
    assert ", ".join(found) == (
        "+3072 to, +512 4-bit product: scales, +512 4-bit product: scales with offset, "
        "+32768 4-bit product: dequantised weight, +1536 matmul_4bit, -32768 4-bit product: dequantised weight, "
        "-512 4-bit product: scales with offset, -512 4-bit product: scales, +768 to, -1536 matmul_4bit, -3072 to"
    )
    back = played(e, lambda: e.backward(y.node, given(e, y.shape, y.dtype, grad=False)))[0]
    assert ", ".join(back) == (
        "+1536 to backward, +512 dequantised scales, +16384 dequantised weight, -512 dequantised scales, "
        "+32768 dequantised weight, cast, -16384 dequantised weight, +3072 matmul backward, "
        "-32768 dequantised weight, cast, -1536 to backward, +1536 to backward, -3072 matmul backward"
    )


def test_a_loss_is_scaled_by_tensors_that_stay() -> None:
    """``_lazy_init_scale_growth_tracker``, ``_unscale_grads_``: the inverse is worked out in float64; ``step``."""
    e = engine("float16")
    scaler, loss = gradients.GradScaler(e), given(e, (), "float32")
    assert played(e, lambda: scaler.scale(loss))[0][:3] == ["+4 loss scale", "+4 growth tracker", "+4 mul"]
    found, _ = played(e, scaler.unscale)
    assert ", ".join(found) == (
        "+8 to, +8 reciprocal, -8 to, +4 to, -8 reciprocal, +4 found_inf, +4 to, +4 to, -4 to, -4 to, -4 found_inf"
    )
    assert played(e, lambda: scaler.step(lambda: e.new((1,), "int64", "step"), fused=True))[0] == [
        "+4 add", "+8 step", "-8 step", "-4 add"
    ]  # fmt: skip
    assert played(e, lambda: scaler.step(lambda: None, fused=False))[0] == []
    assert played(e, scaler.update)[0] == ["-4 to"]


@pytest.mark.parametrize(
    ("dtypes", "norms", "n"),
    [
        (("bfloat16", "bfloat16"), "+2 gradient norm, +2 gradient norm, +4 stack", 2),
        (("bfloat16", "float32"), "+4 gradient norm, +2 gradient norm, +8 stack", 4),
    ],
    ids=["alike", "mixed"],
)
def test_gradients_are_clipped_by_scalars(dtypes: tuple[str, str], norms: str, n: int) -> None:
    """``clip_grad_norm_``: a norm each, those of one dtype together, stacked; coefficients one after the other."""
    e = engine()
    weights = [parameter(e, (4, 5), dtypes[0]), parameter(e, (3,), dtypes[1])]
    found, _ = played(e, lambda: gradients.clip_grad_norm(e, weights, 2))
    asked = norms.split(", ")
    assert ", ".join(found) == ", ".join(
        (
            *asked, f"+{n} total norm", asked[2].replace("+", "-"), *(norm.replace("+", "-") for norm in asked[:2]),
            f"+{n} add, +{n} reciprocal, +{n} mul, -{n} add, -{n} reciprocal, +{n} clamp, -{n} mul, -{n} total norm",
            f"-{n} clamp",
        )
    )  # fmt: skip


def test_a_norm_is_worked_out_in_float32() -> None:
    """``LlamaRMSNorm.forward``: variables die where the source overwrites them."""
    e = engine()
    x, weight = given(e, (2, 3, 8)), parameter(e, (8,))
    found, y = played(e, lambda: norms.rms_norm(e, x, weight))
    back = played(e, lambda: e.backward(y.node, given(e, y.shape, y.dtype, grad=False)))[0]
    assert ", ".join(found) == (
        "+192 to, +192 pow, +24 mean, -192 pow, +24 add, +24 rsqrt, -24 add, +192 mul, +96 to, +96 mul, -192 mul, "
        "-24 mean"
    )
    assert ", ".join(back) == (
        "+96 mul backward, +96 mul backward, +16 sum, -96 mul backward, -96 to, +192 to backward, -96 mul backward, "
        "+192 mul backward, +192 mul backward, +24 sum, -192 mul backward, -192 to backward, +24 pow, +24 mul, "
        "+24 rsqrt backward, -24 mul, -24 pow, -24 sum, -24 rsqrt, +192 mean backward, -24 rsqrt backward, "
        "+192 pow, +192 mul, +192 pow backward, -192 mul, -192 pow, -192 mean backward, -192 to, "
        "-192 pow backward, +96 to backward, -192 mul backward"
    )


def test_weights_of_experts_are_divided_by_their_sum_in_place() -> None:
    """``x /= x.sum(...)``; ``div_tensor_other_grad``: ``-grad * ((self / other) / other)``, summed to the divisor."""
    e = engine()
    x = given(e, (3, 2), "float32")
    found, y = played(e, lambda: experts.normalise(e, x))
    assert ", ".join(found) == "+12 sum, +24 clone"
    gradient = given(e, y.shape, y.dtype, grad=False)
    back = played(e, lambda: e.backward(y.node, gradient))[0]
    assert ", ".join(back).startswith(
        "+24 div backward, +24 neg, +24 div, +24 div, -24 div, +24 mul, -24 div, -24 neg, +12 sum, -24 mul"
    )


@pytest.mark.parametrize(
    ("dtype", "forward", "back"),
    [
        (
            "bfloat16",
            "+24 to, +24 softmax, -24 to",
            "+24 softmax backward: gradient times result, +24 softmax backward",
        ),
        ("float16", "+24 softmax", "+24 softmax backward: gradient times result, +12 softmax backward"),
        ("float32", "+24 softmax", "+24 softmax backward: gradient times result, +24 softmax backward"),
    ],
)
def test_a_router_converts_16_bit_floats_of_its_own_kind_inside_the_kernel(dtype: str, forward: str, back: str) -> None:
    """``softmax(..., dtype=torch.float)``: half to float is a conversion of the kernel's, bfloat16 is cast before."""
    e = engine()
    scores = given(e, (3, 2), dtype)
    found, y = played(e, lambda: experts.softmax(e, scores))
    assert ", ".join(found) == forward
    assert ", ".join(played(e, lambda: e.backward(y.node, given(e, (3, 2), "float32", grad=False)))[0]).startswith(back)
