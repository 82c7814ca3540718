"""P-tuning as PEFT runs it: prompt tuning whose embeddings go through three linear layers in every step.

References:
    PEFT 0.21 tuners/p_tuning/model.py, ``PromptEncoder``.
"""

from __future__ import annotations

from vramcalc.inputs.stack import PTuning, Stack
from vramcalc.shadow.engine import activations
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.shadow.methods.virtual_tokens import VirtualTokens

SPECS = (PTuning,)


def attach(net: CausalLM, method: PTuning, stack: Stack, _rank: Size | None) -> None:
    """Put an encoder of virtual tokens before the tokens."""
    net.prompt = encoder = PromptEncoder(net, method, stack)
    encoder.train()


class PromptEncoder(VirtualTokens):
    """``peft.PromptEncoder`` with its ``MLP``."""

    def __init__(self, net: CausalLM, method: PTuning, stack: Stack) -> None:
        width = net.spec.hidden_size
        super().__init__(net, method.num_virtual_tokens, width, stack)
        inner = method.encoder_hidden_size or width
        self.mlp_head = [
            self.linear("mlp_head.0", width, inner),
            self.linear("mlp_head.2", inner, inner),
            self.linear("mlp_head.4", inner, width),
        ]

    def forward(self, *args: Tensor) -> Tensor:
        """Virtual tokens to their embeddings."""
        e, x = self.engine, self.embedding(args[0])
        first, second, last = self.mlp_head
        x = activations.relu(e, first(x))
        x = activations.relu(e, second(x))
        return last(x)
