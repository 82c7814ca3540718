"""LoRA over four-bit layers as one function, line by line beside the plugin's ``fast_lora.py`` and ``utils.py``."""

from __future__ import annotations

import pytest
from played import engine, given, parameter, played

from vramcalc.shadow.engine.tape import Shape
from vramcalc.shadow.fused import fms_acceleration
from vramcalc.shadow.quantization.bitsandbytes import Packed4bit

WEIGHT = "+4096 dequantised weight, +128 dequantised scales, -128 dequantised scales"
A, B = "+256 cast adapter", "+512 cast adapter"


@pytest.mark.parametrize("over_input", [True, False])
def test_an_adapter_in_float32_is_cast_wherever_it_is_used(over_input: bool) -> None:
    """``matmul_lora`` of 10 tokens, 32 to 64, rank 4; each cast lives for the product that it is made for."""
    e = engine()
    packed = Packed4bit(e.tape, "w", 64, 32, dtype="bfloat16", double_quant=True)
    a, b = parameter(e, (4, 32), "float32"), parameter(e, (64, 4), "float32")
    x = given(e, (2, 5, 32))
    adapted = [fms_acceleration.Adapted("q_proj.weight", packed, a, b, drops=True)]
    found, (y,) = played(e, lambda: fms_acceleration.lora_products(e, x, adapted, "LoRA_W", over_input=over_input))
    assert ", ".join(found) == (
        f"{WEIGHT}, +1280 matmul_lora, -4096 dequantised weight, +640 dropout, +320 dropout mask, -320 dropout mask, "
        f"{A}, +80 lora_A product, -256 cast adapter, {B}, +512 scaled lora_B, -512 cast adapter, "
        "+1280 lora_B product, -80 lora_A product, -512 scaled lora_B, -1280 lora_B product"
    )
    gradient = given(e, y.shape, y.dtype, grad=False)
    total = "" if over_input else "+640 dX, "
    back = ", ".join(played(e, lambda: e.backward(y.node, gradient))[0])
    assert back.startswith(
        f"{B}, +80 dY @ B, -512 cast adapter, +256 d_A, -80 dY @ B, {A}, +80 A @ X, -256 cast adapter, +512 d_B, "
        f"-80 A @ X, {WEIGHT}, {total}-4096 dequantised weight, +320 input after dropout != 0, {B}, +80 dY @ B, "
        f"-512 cast adapter, {A}, +256 scaled lora_A, -256 cast adapter, +640 dX through an adapter, -80 dY @ B, "
        "-256 scaled lora_A, +640 dX through an adapter, where it passed, -640 dX through an adapter, "
        "-320 input after dropout != 0, -640 dX through an adapter, where it passed"
    )


ROTATED = ["+640 fast_rope_embedding backward"]


@pytest.mark.parametrize(
    ("shape", "head_major", "lines"),
    [
        ((2, 4, 5, 8), True, ROTATED),
        ((2, 4, 5, 8), False, []),
        ((1, 8, 5, 8), True, ROTATED),
        ((2, 2, 10, 8), True, ROTATED),
        ((2, 10, 2, 8), True, ROTATED),
        ((8, 1, 5, 8), True, []),
        ((8, 5, 1, 8), True, []),
    ],
    ids=str,
)
def test_fused_rotary_positions_copy_a_gradient_that_lies_head_by_head(
    shape: Shape, head_major: bool, lines: list[str]
) -> None:
    """With one head, or one token, both layouts are one."""
    e = engine()
    x, cos, sin = given(e, shape), given(e, (5, 8), grad=False), given(e, (5, 8), grad=False)
    found, y = played(e, lambda: fms_acceleration.rotary(e, x, cos, sin, head_major_grad=head_major))
    assert found == []
    gradient = given(e, y.shape, y.dtype, grad=False)
    assert played(e, lambda: e.backward(y.node, gradient))[0] == lines
