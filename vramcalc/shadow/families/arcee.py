"""Arcee: Llama with a feed-forward network that has no gate, and a squared ReLU.

Reads beside transformers' modeling_arcee.py.
"""

from __future__ import annotations

from vramcalc.inputs.stack import ModelSpec
from vramcalc.shadow.engine import activations
from vramcalc.shadow.engine.modules import Factory, Module
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.families.common import decoder
from vramcalc.shadow.families.common.context import Context


class MLP(Module):
    """``ArceeMLP``."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec) -> None:
        super().__init__(make.engine, name)
        h, i, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.up_proj = make.linear(f"{name}.up_proj", h, i, bias=bias)
        self.down_proj = make.linear(f"{name}.down_proj", i, h, bias=bias)

    def act_fn(self, x: Tensor) -> Tensor:
        """``relu2``; its variables die with it."""
        relu_applied = activations.relu(self.engine, x)
        squared = activations.square(self.engine, relu_applied)
        return squared

    def forward(self, *args: Tensor) -> Tensor:
        """Feed-forward."""
        x = args[0]
        return self.down_proj(self.act_fn(self.up_proj(x)))


class DecoderLayer(decoder.DecoderLayer):
    """``ArceeDecoderLayer``."""

    def feed_forward(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> Module:
        """Two projections."""
        return MLP(make, f"{name}.mlp", spec)


class CausalLM(decoder.CausalLM):
    """``ArceeForCausalLM``."""

    layer_class = DecoderLayer
