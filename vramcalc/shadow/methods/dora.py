"""DoRA as PEFT computes it: LoRA's update, and a magnitude per output over the norm of the updated weight.

The norm needs the whole updated weight: in every forward pass each adapted layer makes its product of LoRA's matrices,
by sending an identity matrix through them, and a copy of the base weight in the input's dtype.

References:
    PEFT 0.21 tuners/lora/dora.py and variants.py, ``DoraLinearLayer`` and ``DoraLinearVariant``.
    Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024, sec. 4.3. arXiv:2402.09353
"""

from __future__ import annotations

from vramcalc.inputs.releases import minor_release
from vramcalc.inputs.stack import DoRA, LoRA, Stack
from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.modules import Linear, Module, TiedHead
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Tensor, promote
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.shadow.methods.lora import LoraLinear, attach_adapters
from vramcalc.shadow.quantization.bitsandbytes import Linear4bit

SPECS = (DoRA,)
_SPLIT_OFF = (0, 19)
"""First release of PEFT that makes LoRA's product in a function of its own, which drops the identity when it ends."""


def attach(net: CausalLM, method: DoRA, stack: Stack, rank: Size | None) -> None:
    """Wrap targets with adapters."""
    attach_adapters(net, method, stack, rank, wrap)


def wrap(module: Module, method: LoRA, rank: Size, stack: Stack) -> Module | None:
    """DoRA's adapter around a module."""
    match module:
        case Linear() | TiedHead():
            return DoraLinear(module, module.d_in, module.d_out, method, rank, stack)
        case Linear4bit():
            return DoraLinear4bit(module, module.d_in, module.d_out, method, rank, stack)
    return None


class DoraLinear(LoraLinear):
    """``peft.tuners.lora.layer.Linear`` with ``DoraLinearVariant``."""

    def __init__(
        self, base: Linear | TiedHead | Linear4bit, d_in: Size, d_out: Size, method: LoRA, rank: Size, stack: Stack
    ) -> None:
        super().__init__(base, d_in, d_out, method, rank, stack)
        self.d_in, self.keeps_identity = d_in, (minor_release(stack.peft) or (0, 0)) < _SPLIT_OFF
        stored = base.packed.dtype if isinstance(base, Linear4bit) else base.weight.tensor.dtype
        joint = promote(stored, self.lora_A.weight.tensor.dtype)
        self.magnitude = Parameter(
            base.engine.tape,
            f"{base.name}.lora_magnitude_vector.weight",
            (d_out,),
            joint if stack.adapter_dtype == "weights" else stack.adapter_dtype,
        )
        self.magnitude.train()

    def forward(self, *args: Tensor) -> Tensor:
        """The base layer's result plus what magnitude and direction change, in the result's dtype."""
        e, x = self.engine, args[0]
        result = self.base_layer(x)
        result_dtype = result.dtype
        x = ops.to(e, x, self.lora_A.weight.tensor.dtype)
        result = self.variant(x, result)
        return ops.to(e, result, result_dtype)

    def variant(self, x: Tensor, result: Tensor) -> Tensor:
        """``DoraLinearVariant.forward``: behind dropout the base layer is computed once more."""
        e, base_result = self.engine, None if self.dropout else result
        if self.dropout:
            x = ops.dropout(e, x)
        return ops.add(e, result, self.change(x, base_result))

    def change(self, x: Tensor, base_result: Tensor | None) -> Tensor:
        """``DoraLinearLayer.forward``."""
        e = self.engine
        if self.keeps_identity:
            x_eye = e.new((self.d_in, self.d_in), x.dtype, "eye")
            lora_weight = self.lora_B(self.lora_A(x_eye))
        else:
            lora_weight = ops.to(e, self.product(), x.dtype)
        weight = ops.to(e, self.dequantised(), x.dtype)
        weight_norm = self.weight_norm(weight, lora_weight)
        ratio = ops.div(e, self.magnitude.tensor, weight_norm)
        mag_norm_scale = ops.reshape(e, ratio, (1, *ratio.shape))
        del ratio
        lora_result = self.lora_B(self.lora_A(x))
        if base_result is None:
            base_result = ops.linear(e, x, weight)
        elif (bias := getattr(self.base_layer, "bias", None)) is not None:
            base_result = ops.add_constant(e, base_result, "sub", bias.tensor.dtype)
        return ops.add(
            e,
            ops.mul_columns(e, ops.add_constant(e, mag_norm_scale, "sub"), base_result),
            ops.mul_scalar(e, ops.mul_columns(e, mag_norm_scale, lora_result)),
        )

    def product(self) -> Tensor:
        """``get_lora_weight``: an identity matrix through both adapters."""
        x_eye = self.engine.new((self.d_in, self.d_in), self.lora_A.weight.tensor.dtype, "eye")
        return self.lora_B(self.lora_A(x_eye))

    def dequantised(self) -> Tensor:
        """``dequantize_module_weight``."""
        base = self.base_layer
        return base.dequantised() if isinstance(base, Linear4bit) else base.weight.tensor

    def weight_norm(self, weight: Tensor, lora_weight: Tensor) -> Tensor:
        """``get_weight_norm`` of the updated weight, without a gradient."""
        e, shape = self.engine, weight.shape
        scaled = e.new(shape, lora_weight.dtype, "mul")
        weight = e.new(shape, promote(weight.dtype, lora_weight.dtype), "add")
        del scaled
        return e.new(shape[:1], weight.dtype, "linalg_vector_norm")


class DoraLinear4bit(DoraLinear):
    """``peft.tuners.lora.bnb.Linear4bit`` with ``DoraLinearVariant``."""

    def forward(self, *args: Tensor) -> Tensor:
        """The base layer's result plus what magnitude and direction change."""
        e, x = self.engine, args[0]
        result = self.base_layer(x)
        result = ops.clone(e, result)
        if e.autocast is not None:
            return self.variant(x, result)
        expected = result.dtype
        x = ops.to(e, x, self.lora_A.weight.tensor.dtype)
        result = self.variant(x, result)
        return ops.to(e, result, expected)
