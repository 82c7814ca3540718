"""Qwen2 and Qwen2.5: Llama with a bias on queries, keys and values.

Reads beside transformers' modeling_qwen2.py.
"""

from __future__ import annotations

from vramcalc.inputs.stack import ModelSpec
from vramcalc.shadow.families.common import decoder, self_attention


class Attention(self_attention.Attention):
    """``Qwen2Attention``."""

    def biases(self, spec: ModelSpec) -> tuple[bool, bool]:
        """Always on q, k and v, never on o."""
        return True, False


class DecoderLayer(decoder.DecoderLayer):
    """``Qwen2DecoderLayer``."""

    attention_class = Attention


class CausalLM(decoder.CausalLM):
    """``Qwen2ForCausalLM``."""

    layer_class = DecoderLayer
