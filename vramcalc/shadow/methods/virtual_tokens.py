"""What PEFT's model does around the model of transformers where prompts are learned: it makes what that is called with.

References:
    PEFT 0.21 peft_model.py, ``PeftModelForCausalLM.forward`` and ``PeftModel.get_prompt``.
"""

from __future__ import annotations

from collections.abc import Callable

from vramcalc.inputs.stack import Stack
from vramcalc.inputs.targets import copy_dtype
from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients
from vramcalc.shadow.engine.modules import Embedding, Linear
from vramcalc.shadow.engine.ops import Saved
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Shape, Tensor
from vramcalc.shadow.families.common.context import Prompt, Prompted
from vramcalc.shadow.families.common.decoder import CausalLM

NAME = "prompt_encoder.default"


class Encoder(Prompt):
    """A module that gives what is learned: in float32, however the base model is stored."""

    def __init__(self, net: CausalLM, num_virtual_tokens: int, width: Size, stack: Stack) -> None:
        super().__init__(net.engine, NAME)
        self.num_virtual_tokens, self.dtype = num_virtual_tokens, copy_dtype(stack, "float32")
        self.passes_mask = stack.passes_attention_mask
        self.embedding = Embedding(net.engine, f"{NAME}.embedding", num_virtual_tokens, int(width), self.dtype)

    def linear(self, name: str, d_in: Size, d_out: Size) -> Linear:
        """A layer of the encoder, with a bias."""
        return Linear(self.engine, f"{NAME}.{name}", d_in, d_out, self.dtype, bias=True)

    def train(self) -> None:
        """Require a gradient of everything learned."""
        for parameter in self.parameters():
            parameter.train()

    def tokens(self, batch: Size) -> Tensor:
        """``prompt_tokens``, which are brought to the device in every forward pass."""
        return self.engine.new((batch, self.num_virtual_tokens), "int64", "prompt tokens")

    def longer_mask(self, ids: Tensor) -> list[Tensor]:
        """Ones before the attention mask, in float32 as ``torch.ones`` makes them, and the joined mask."""
        if not self.passes_mask:
            return []
        e, (batch, seq) = self.engine, ids.shape
        ones = e.new((batch, self.num_virtual_tokens), "float32", "prefix attention mask")
        return [ones, e.new((batch, self.num_virtual_tokens + seq), "float32", "attention mask")]


class VirtualTokens(Encoder):
    """Embeddings of virtual tokens, joined with those of the batch: prompt tuning and p-tuning."""

    def before(self, batch: list[Tensor], embed: Callable[[Tensor], Tensor]) -> Prompted:
        """Longer embeddings, labels and mask."""
        e, ids = self.engine, batch[0]
        size, seq = ids.shape
        held = self.longer_mask(ids)
        inputs_embeds = embed(ids)
        held.append(e.new((size, self.num_virtual_tokens), "int64", "prefix labels"))
        held.append(e.new((size, self.num_virtual_tokens + seq), "int64", "labels"))
        prompts = self.prompts(size)
        prompts = ops.to(e, prompts, inputs_embeds.dtype)
        held.append(prompts)
        return Prompted(_join(e, prompts, inputs_embeds), None, held)

    def prompts(self, batch: Size) -> Tensor:
        """``get_prompt``: what one sequence's tokens are encoded to, repeated for every sequence."""
        tokens = self.tokens(batch)
        one = Tensor(tokens.storage, (1, self.num_virtual_tokens), tokens.dtype)
        del tokens
        return _repeat(self.engine, self(one), batch)


def _repeat(e: Engine, x: Tensor, times: Size) -> Tensor:
    """``x.repeat(times, 1, 1)``: a copy; its gradient is summed."""
    shape, dtype, many = x.shape, x.dtype, times > 1

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        return [e.new(shape, dtype, "repeat backward") if many else part(g, shape)]

    return e.apply("repeat", [x], (times, *shape[1:]), dtype, (), backward)


def _join(e: Engine, first: Tensor, second: Tensor) -> Tensor:
    """``torch.cat((first, second), dim=1)``, whose gradient is cut in two where it lies."""
    a, b = first.shape, second.shape
    shape, dtype = (a[0], a[1] + b[1], a[2]), first.dtype
    # Made to require a gradient, the second is a leaf that keeps one: in a place of its own unless it has one.
    copies = second.node is not None and a[0] > 1

    def cut(_saved: Saved, g: Tensor) -> Gradients:
        kept = e.new(b, dtype, "gradient") if copies else part(g, b)
        return [part(g, a), kept]

    return e.apply("cat", [first, second], shape, dtype, (), cut)


def part(g: Tensor, shape: Shape) -> Tensor:
    """A piece of a gradient, where it lies."""
    return Tensor(g.storage, shape, g.dtype, None, True)
