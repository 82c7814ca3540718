"""Walks an architecture whose memory is not modelled, for the products that its published speeds rest on.

Projections, adapters, attention and the head run in the shadow engine as those of any model; whatever else a layer
does is left out, so that a walk of one says nothing about memory.
"""

from __future__ import annotations

from vramcalc.errors import Unsupported
from vramcalc.inputs.stack import Method, Stack
from vramcalc.shadow import methods
from vramcalc.shadow.engine import activations, attention, ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Gradients, Leaf
from vramcalc.shadow.engine.modules import Factory, Module
from vramcalc.shadow.engine.ops import Saved
from vramcalc.shadow.engine.tape import Tape, Tensor
from vramcalc.shadow.engine.work import Work
from vramcalc.shadow.families.common import experts
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.timing.matrices import Matrices


class Layer(Module):
    """Projections by role, attention between them."""

    q: Module
    k: Module
    v: Module
    qkv: Module
    o: Module
    gate: Module
    up: Module
    down: Module

    def __init__(self, make: Factory, matrices: Matrices, index: int) -> None:
        super().__init__(make.engine, matrices.prefix.format(index).rstrip("."))
        self.matrices, self.eager = matrices, False
        self.norm = make.norm(f"{self.name}.norm", matrices.hidden_size)
        for x in matrices.linears:
            setattr(self, x.role, make.linear(f"{self.name}.{x.name}", x.d_in, x.d_out))

    def forward(self, *args: Tensor) -> Tensor:
        """``(batch, seq, hidden_size)`` to the same."""
        e, x = self.engine, args[0]
        x = ops.add(e, x, self._attended(self.norm(x)))
        return ops.add(e, x, self._fed_forward(self.norm(x)))

    def _attended(self, x: Tensor) -> Tensor:
        e, m = self.engine, self.matrices
        heads = {"q": m.num_attention_heads, "k": m.key_heads, "v": m.key_heads}
        if hasattr(self, "qkv"):
            widths = [n * m.head_dim for n in heads.values()]
            projected = _parts(e, self.qkv(x), widths)
        else:
            projected = [getattr(self, role)(x) for role in heads]
        q, k, v = (
            ops.split_heads(e, y, n, m.head_dim, head_major_grad=False)
            for y, n in zip(projected, heads.values(), strict=True)
        )
        out, _ = attention.attend(e, "eager" if self.eager else "flash", q, k, v, None, (8, 0), repeats=False)
        return self.o(ops.merge_heads(e, out))

    def _fed_forward(self, x: Tensor) -> Tensor:
        e, m = self.engine, self.matrices
        batch, seq, width = x.shape
        active, tokens = max(y.active for y in m.linears), batch * seq
        if active > 1:
            # What the experts of a token get: together, as many rows as there are pairs of a token and an expert.
            x = ops.reshape(e, x, (tokens, width))
            x = experts.gather(e, x, e.new((tokens * active,), "int64", "index"), tokens * active)
        inner = activations.silu(e, self.gate(x) if hasattr(self, "gate") else self.up(x))
        if hasattr(self, "gate"):
            inner = ops.mul(e, inner, self.up(x))
        result = self.down(inner)
        if active > 1:
            result = ops.reshape(e, experts.sum_pairs(e, result, tokens), (batch, seq, width))
        return result


def _parts(e: Engine, x: Tensor, widths: list[int]) -> list[Tensor]:
    """Queries, keys and values of one projection."""
    shape, dtype = x.shape, x.dtype

    def backward(_saved: Saved, g: Tensor) -> Gradients:
        return [e.new(shape, dtype, "slice backward")]

    return [e.view("slice", x, (*shape[:-1], width), backward) for width in widths]


class Outline(CausalLM):
    """Embedding, layers, head."""

    def __init__(self, make: Factory, matrices: Matrices, n_layers: int, *, eager: bool) -> None:
        Module.__init__(self, make.engine, "")
        vocab = matrices.vocab_size
        self.embed_tokens = make.embedding(matrices.embedding, vocab or 1, matrices.hidden_size)
        self.blocks = []
        for i in range(n_layers):
            make.engine.tape.at(i)
            self.blocks.append(Layer(make, matrices, i))
            self.blocks[-1].eager = eager
        make.engine.tape.at(None)
        self.norm = make.norm("norm", matrices.hidden_size)
        if vocab:
            self.lm_head = make.head("lm_head", matrices.hidden_size, vocab)


def walk_outline(
    matrices: Matrices, method: Method, stack: Stack, checkpointing: str, n_layers: int
) -> tuple[Work, frozenset[str]]:
    """Forward and backward of one token.

    Args:
        matrices: of the architecture.
        method: what trains.
        stack: dtypes and attention.
        checkpointing: of the layers.
        n_layers: of them to walk.

    Returns:
        What was computed, and the names of the weights that the method brought.

    Raises:
        Unsupported: a method that puts something before the tokens.
    """
    if method.num_virtual_tokens:
        raise Unsupported(
            f"{matrices.name}: of method {method.kind!r} what passes through the layers is not known where only the "
            "matrices of a model are; use a model whose config.json is read"
        )
    tape = Tape()
    work = Work(tape)
    e = Engine(tape, work)
    tape.mark("step.0.forward")
    net = Outline(methods.factory(e, method, stack), matrices, n_layers, eager=stack.attn_implementation == "eager")
    loaded = frozenset(p.name for p in net.parameters())
    methods.attach(net, method, stack, method.adapters.rank if method.adapters else 1)
    e.autocast = stack.autocast
    x = net.embed_tokens(e.new((1, 1), "int64", "input_ids"))
    if method.adapters and checkpointing != "none" and x.node is None:
        x.node = Leaf()
    for i, block in enumerate(net.blocks):
        tape.at(i)
        x = e.checkpoint(checkpointing, block, x)
    tape.at(None)
    x = net.norm(x)
    if matrices.vocab_size:
        hidden, x = x, net.lm_head(x)
        if stack.loss == "chunked" and x.node is not None:
            work.multiplied("lm_head.weight", x.dtype, hidden.shape, matrices.vocab_size, "recomputation")
    e.autocast = None
    e.backward(x.node, e.new(x.shape, x.dtype, "gradient"))
    return work, frozenset(p.name for p in net.parameters() if p.name not in loaded and not p.name.endswith("(copy)"))
