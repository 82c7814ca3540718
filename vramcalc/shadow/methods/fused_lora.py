"""LoRA over four-bit layers as the fms_acceleration plugin runs it: fused by attention, the rest as PEFT has it."""

from __future__ import annotations

from vramcalc.shadow.engine.modules import Module
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.shadow.families.common.self_attention import Attention
from vramcalc.shadow.fused.fms_acceleration import Adapted, lora_products
from vramcalc.shadow.methods.lora import LoraLinear4bit
from vramcalc.shadow.quantization.bitsandbytes import Linear4bit


def install(net: CausalLM) -> None:
    """Fuse what the plugin fuses: q, k and v where all three have adapters, and o where it has one.

    References:
        fms_acceleration_foak models/utils.py, ``build_lora_fused_ops`` and ``trigger_fused_ops``.
    """
    for _, _, module in list(net.modules()):
        if isinstance(module, Attention):
            for names in (("q_proj", "k_proj", "v_proj"), ("o_proj",)):
                wrapped = [getattr(module, name) for name in names]
                if all(isinstance(w, LoraLinear4bit) for w in wrapped):
                    group = _Group(wrapped)
                    for index, name in enumerate(names):
                        setattr(module, name, FusedProjection(wrapped[index], group, index))


class _Group:
    """Projections that one function computes when the first of them is called; the others fetch their results."""

    def __init__(self, wrapped: list[LoraLinear4bit]) -> None:
        self.wrapped = wrapped
        self.results: dict[int, Tensor] = {}

    def result(self, x: Tensor, index: int) -> Tensor:
        """The result of one projection."""
        if not self.results:
            self.results = dict(enumerate(self._products(x)))
        return self.results.pop(index)

    def _products(self, x: Tensor) -> list[Tensor]:
        adapted = [
            Adapted(f"{w.name}.weight", w.base_layer.packed, w.lora_A.weight, w.lora_B.weight, w.dropout)
            for w in self.wrapped
            if isinstance(w.base_layer, Linear4bit)
        ]
        several = len(adapted) > 1
        name = "LoRA_QKV" if several else "LoRA_W"
        return lora_products(self.wrapped[0].engine, x, adapted, name, over_input=several)


class FusedProjection(Module):
    """A projection with its adapter, computed by its group."""

    def __init__(self, wrapped: LoraLinear4bit, group: _Group, index: int) -> None:
        super().__init__(wrapped.engine, wrapped.name)
        self.layer, self.wrapped = wrapped.layer, wrapped
        self._group, self._index = group, index

    def forward(self, *args: Tensor) -> Tensor:
        """``(batch, seq, d_in)`` to ``(batch, seq, d_out)``."""
        return self._group.result(args[0], self._index)
