"""Qwen3 (dense): Llama with a norm on the queries and keys of every head.

Reads beside transformers' modeling_qwen3.py.
"""

from __future__ import annotations

from vramcalc.inputs.stack import ModelSpec
from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.modules import Factory, Module
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.families.common import decoder, self_attention
from vramcalc.shadow.families.common.context import Context


class Attention(self_attention.Attention):
    """``Qwen3Attention``."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> None:
        super().__init__(make, name, spec, context)
        self.q_norm = make.norm(f"{name}.q_norm", spec.head_dim)
        self.k_norm = make.norm(f"{name}.k_norm", spec.head_dim)

    def query(self, projected: Tensor) -> Tensor:
        """Normalised queries by head."""
        return self._normed(self.q_norm, projected, self.spec.num_attention_heads)

    def key(self, projected: Tensor) -> Tensor:
        """Normalised keys by head."""
        return self._normed(self.k_norm, projected, self.spec.num_key_value_heads)

    def _normed(self, norm: Module, x: Tensor, heads: int) -> Tensor:
        e, d = self.engine, self.spec.head_dim
        return ops.transpose_heads(e, norm(ops.view_heads(e, x, heads, d)))


class DecoderLayer(decoder.DecoderLayer):
    """``Qwen3DecoderLayer``."""

    attention_class = Attention


class CausalLM(decoder.CausalLM):
    """``Qwen3ForCausalLM``."""

    layer_class = DecoderLayer
