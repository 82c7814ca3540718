"""Prompt tuning as PEFT runs it: learned embeddings before those of the tokens, and everything longer by them.

References:
    PEFT 0.21 tuners/prompt_tuning/model.py, ``PromptEmbedding``.
"""

from __future__ import annotations

from vramcalc.inputs.stack import PromptTuning, Stack
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.shadow.methods.virtual_tokens import VirtualTokens

SPECS = (PromptTuning,)


def attach(net: CausalLM, method: PromptTuning, stack: Stack, _rank: Size | None) -> None:
    """Put an embedding of virtual tokens before the tokens."""
    net.prompt = encoder = PromptEmbedding(net, method.num_virtual_tokens, net.spec.hidden_size, stack)
    encoder.train()


class PromptEmbedding(VirtualTokens):
    """``peft.PromptEmbedding``."""

    def forward(self, *args: Tensor) -> Tensor:
        """Virtual tokens to their embeddings."""
        return self.embedding(args[0])
