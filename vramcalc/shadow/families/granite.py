"""Granite: Llama's modules, with the embedding, every branch and the logits multiplied by a number each.

Reads beside transformers' modeling_granite.py, which came with 4.45. What attention is scaled by stays in its kernel.
"""

from __future__ import annotations

from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.families.common import decoder


class DecoderLayer(decoder.DecoderLayer):
    """``GraniteDecoderLayer``."""

    def join(self, residual: Tensor, branch: Tensor) -> Tensor:
        """The branch times ``residual_multiplier``, on top of the residual."""
        return ops.add(self.engine, residual, ops.mul_scalar(self.engine, branch))


class CausalLM(decoder.CausalLM):
    """``GraniteForCausalLM``."""

    layer_class = DecoderLayer

    def embedded(self, inputs_embeds: Tensor) -> Tensor:
        """Times ``embedding_multiplier``."""
        return ops.mul_scalar(self.engine, inputs_embeds)

    def logits(self, hidden: Tensor) -> Tensor:
        """The head's product, divided by ``logits_scaling``."""
        return ops.mul_scalar(self.engine, self.lm_head(hidden))
