"""Weights stored in four bits by bitsandbytes, and the linear layer over them."""

from __future__ import annotations

from vramcalc.shadow.engine import kernels, ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients, Parameter
from vramcalc.shadow.engine.modules import Module
from vramcalc.shadow.engine.ops import in_kernel
from vramcalc.shadow.engine.tape import ITEMSIZE, Storage, Tape, Tensor

BLOCK = 64
"""Weights that share a scale (bitsandbytes' default ``blocksize``)."""
NESTED_BLOCK = 256
"""Scales that share a scale of their own under double quantization."""


class Packed4bit:
    """A weight as ``Params4bit`` and its ``QuantState`` hold it.

    Half a byte per weight; one float32 scale per 64 weights, or one byte per scale and a float32 per 256 of those
    under double quantization; the code books. NF4 and FP4 differ in the code book's values only. ``dtype`` is what the
    weight was before, and what dequantising for the backward pass gives.

    References:
        bitsandbytes 0.50 functional.py, ``quantize_4bit``. Dettmers et al., "QLoRA", NeurIPS 2023, arXiv:2305.14314.
    """

    def __init__(self, tape: Tape, name: str, d_out: int, d_in: int, *, dtype: str, double_quant: bool) -> None:
        self.d_out, self.d_in, self.dtype, self.nested = d_out, d_in, dtype, double_quant
        n, outer, tape.module = d_out * d_in, tape.module, name
        blocks = -(-n // BLOCK)

        def part(elements: tuple[int, ...], dtype: str, what: str) -> Storage:
            return Storage(tape, elements, dtype, what, "parameter")

        self.parts = [part(((n + 1) // 2, 1), "uint8", "packed 4-bit weight")]
        if double_quant:
            self.parts += [
                part((blocks,), "uint8", "scales"),
                part((-(-blocks // NESTED_BLOCK),), "float32", "scales of scales"),
                part((256,), "float32", "8-bit code book"),
                part((), "float32", "offset of scales"),
            ]
        else:
            self.parts.append(part((blocks,), "float32", "scales"))
        self.parts.append(part((16,), "float32", "4-bit code book"))
        tape.module = outer


class Linear4bit(Module):
    """``bitsandbytes.nn.Linear4bit``: cast in, multiply, cast out; backward dequantises again.

    References:
        bitsandbytes 0.50 nn/modules.py and autograd/_functions.py, ``MatMul4Bit``.
    """

    def __init__(
        self,
        engine: Engine,
        name: str,
        d_in: int,
        d_out: int,
        *,
        dtype: str,
        bias_dtype: str | None,
        compute_dtype: str,
        double_quant: bool,
    ) -> None:
        super().__init__(engine, name)
        self.d_in, self.d_out, self.compute_dtype = d_in, d_out, compute_dtype
        self.packed = Packed4bit(engine.tape, f"{name}.weight", d_out, d_in, dtype=dtype, double_quant=double_quant)
        self.bias = Parameter(engine.tape, f"{name}.bias", (d_out,), bias_dtype) if bias_dtype else None

    def forward(self, *args: Tensor) -> Tensor:
        """``(..., d_in)`` to ``(..., d_out)`` in the input's dtype."""
        e, x, dtype = self.engine, args[0], self.compute_dtype
        input_dtype = x.dtype
        x = ops.to(e, x, dtype)
        bias = self.bias
        if bias is not None and bias.tensor.dtype != dtype:
            # The first call converts the bias for good.
            shape = bias.tensor.shape
            bias.tensor = Tensor(Storage(e.tape, shape, dtype, "bias", "parameter"), shape, dtype)
        return ops.to(e, self._product(x), input_dtype)

    def dequantised(self) -> Tensor:
        """``bitsandbytes.functional.dequantize_4bit`` of the weight."""
        e, packed = self.engine, self.packed
        blocks = packed.d_out * packed.d_in // BLOCK
        scales = e.new((blocks,), "float32", "dequantised scales") if packed.nested else None
        w = e.new((packed.d_out, packed.d_in), packed.dtype, "dequantised weight")
        del scales
        return w

    def _product(self, x: Tensor) -> Tensor:
        e, dtype, packed = self.engine, self.compute_dtype, self.packed
        shape, n = x.shape, packed.d_out * packed.d_in
        owner = f"{self.name}.weight"
        blocks, nested, w_shape, stored = n // BLOCK, packed.nested, (packed.d_out, packed.d_in), packed.dtype

        def backward(_saved: list[Tensor], g: Tensor) -> Gradients:
            scales = e.new((blocks,), "float32", "dequantised scales") if nested else None
            w = e.new(w_shape, stored, "dequantised weight")
            del scales
            if stored != dtype:
                w = e.new(w_shape, dtype, "dequantised weight, cast")
            e.work.multiplied(owner, dtype, shape, w_shape[0], "input gradients")
            result = e.new(shape, dtype, "matmul backward")
            del w
            return [result]

        node = e.node("matmul_4bit", [x], (), backward)
        e.work.multiplied(owner, dtype, shape, packed.d_out)
        buffers = in_kernel(e, kernels.gemm_4bit(n, BLOCK, nested, ITEMSIZE[dtype]))
        y_shape = (*shape[:-1], packed.d_out)
        y = Tensor(Storage(e.tape, y_shape, dtype, "matmul_4bit"), y_shape, dtype, node)
        del buffers
        return y
