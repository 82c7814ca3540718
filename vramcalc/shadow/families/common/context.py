"""What a forward pass carries along: how the model runs, what all layers are given, the KV cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vramcalc.inputs.stack import Stack
from vramcalc.shadow.engine import ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Leaf
from vramcalc.shadow.engine.modules import Embedding, Module
from vramcalc.shadow.engine.tape import Tensor


class Cache:
    """``DynamicCache``: keys and values of every layer, by concatenation, which copies, or as they are."""

    past = 0
    """Keys that every layer holds before the model runs."""

    def __init__(self, *, copies: bool = True) -> None:
        self.copies = copies
        self.layers: list[tuple[Tensor, Tensor] | None] = []

    def update(self, e: Engine, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a copy of the states, both in the keys' dtype, and return it."""
        if self.copies:
            k, v = ops.cat_copy(e, k), ops.cat_copy(e, ops.to(e, v, k.dtype))
        self.layers.append((k, v))
        return k, v

    def to_float32(self, e: Engine) -> None:
        """Tuples of tensors are converted with the other outputs; a cache that is an object is not."""
        converted: list[tuple[Tensor, Tensor] | None] = []
        for layer, kept in enumerate(self.layers):
            e.tape.at(layer)
            converted.append(kept and (ops.to(e, kept[0], "float32"), ops.to(e, kept[1], "float32")))
        e.tape.at(None)
        self.layers = converted


class Prompt(Module):
    """What a method puts before the tokens of a batch: an encoder of virtual tokens."""

    embedding: Embedding

    def before(self, batch: list[Tensor], embed: Callable[[Tensor], Tensor]) -> Prompted:
        """What the model is called with instead of the batch.

        Args:
            batch: token ids, labels and, where the model is handed one, the attention mask.
            embed: token ids to the embeddings of their tokens.
        """
        raise NotImplementedError


@dataclass
class Prompted:
    """What a model is called with besides token ids, and what its caller holds until it returns."""

    inputs_embeds: Tensor | None
    """Of virtual tokens and the batch's own, in place of token ids."""
    cache: Cache | None
    """Keys and values that every layer finds."""
    held: list[Tensor]


@dataclass
class Shared:
    """What decoder layers of one forward pass are given, those with one kind of mask."""

    rotary: tuple[Tensor, Tensor] | None
    """Cosines and sines, None where every attention makes its own."""
    mask: Tensor | None
    position_ids: Tensor
    cache: Cache | None


@dataclass(frozen=True)
class Context:
    """What decides how a model runs besides its own shape."""

    stack: Stack
    compute_capability: tuple[int, int]
    checkpointing: str
    padded: bool
    require_input_grads: bool
    """The embedding's output is made to require a gradient, for checkpointing over frozen embeddings."""


def require_grad(x: Tensor) -> None:
    """``enable_inputrequire_grads``: the embedding's output becomes a leaf; the graph then holds it to the end."""
    if x.node is None:
        x.node = Leaf()
        x.node.keep = x.storage
