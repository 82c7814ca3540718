"""Prefix tuning as PEFT runs it: keys and values that every layer finds in its cache before those of the tokens.

All of them come out of one embedding, are cut into layers and copied into a cache. Their gradients arrive when the
model's backward pass is over, layer by layer: until then each holds that of all keys, or values, of its layer.

References:
    PEFT 0.21 peft_model.py, ``PeftModel.get_prompt``; tuners/prefix_tuning/model.py, ``PrefixEncoder``.
    transformers 5.23 cache_utils.py, ``DynamicCache.__init__`` and ``DynamicLayer.update``.
"""

from __future__ import annotations

from collections.abc import Callable

from vramcalc.inputs.stack import PrefixTuning, Stack
from vramcalc.shadow.engine import activations, ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Backward, Gradients
from vramcalc.shadow.engine.ops import Saved
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Shape, Tensor, promote
from vramcalc.shadow.families.common.context import Cache, Prompted
from vramcalc.shadow.families.common.decoder import CausalLM
from vramcalc.shadow.methods.virtual_tokens import Encoder, part

SPECS = (PrefixTuning,)


def attach(net: CausalLM, method: PrefixTuning, stack: Stack, _rank: Size | None) -> None:
    """Give every layer keys and values before those of the tokens."""
    net.prompt = encoder = PrefixEncoder(net, method, stack)
    encoder.train()


class PrefixCache(Cache):
    """A ``DynamicCache`` that holds a prefix, to which each layer's keys and values are joined."""

    def __init__(self, past: int) -> None:
        super().__init__()
        self.past = past

    def update(self, e: Engine, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Join keys, and let go of those before; the same of values."""
        layer = e.tape.layer
        assert layer is not None, "only layers have keys"
        kept = self.layers[layer]
        assert kept is not None, "nothing is let go of before it is joined"
        keys, values = kept
        del kept
        self.layers[layer] = None
        keys = _join(e, keys, k)
        values = _join(e, values, v)
        self.layers[layer] = keys, values
        return keys, values


class PrefixEncoder(Encoder):
    """``peft.PrefixEncoder``, and what makes a cache of its result.

    An embedding as wide as keys and values of all layers; with a projection as wide as the keys of one, behind two
    linear layers.
    """

    def __init__(self, net: CausalLM, method: PrefixTuning, stack: Stack) -> None:
        spec = net.spec
        self.heads, self.head_dim = spec.num_key_value_heads, spec.head_dim
        width = self.heads * self.head_dim
        every = 2 * spec.num_hidden_layers * width
        super().__init__(net, method.num_virtual_tokens, width if method.prefix_projection else every, stack)
        self.n_layers = len(net.layers)
        # ``model.dtype``: that of the first parameter that is a floating point number.
        self.base_dtype = next(net.embed_tokens.parameters()).tensor.dtype
        inner = method.encoder_hidden_size or width
        self.transform = (
            [self.linear("transform.0", width, inner), self.linear("transform.2", inner, every)]
            if method.prefix_projection
            else []
        )

    def forward(self, *args: Tensor) -> Tensor:
        """Virtual tokens to the keys and values of all layers."""
        e, x = self.engine, self.embedding(args[0])
        if self.transform:
            first, last = self.transform
            x = activations.tanh(e, first(x))
            x = last(x)
        return x

    def before(self, batch: list[Tensor], _embed: Callable[[Tensor], Tensor]) -> Prompted:
        """A longer mask, and a cache."""
        ids = batch[0]
        held = self.longer_mask(ids)
        return Prompted(None, self.cache(ids.shape[0]), held)

    def cache(self, batch: Size) -> Cache:
        """``get_prompt``."""
        e, tape = self.engine, self.engine.tape
        past = self(self.tokens(batch))
        past = ops.to(e, past, self.base_dtype)
        layers = _split(e, past, self.n_layers, (2, batch, self.heads, self.num_virtual_tokens, self.head_dim))
        del past
        made = PrefixCache(self.num_virtual_tokens)
        for i, layer in enumerate(layers):
            tape.at(i)
            keys, values = _unbind(e, layer)
            made.layers.append((ops.cat_copy(e, keys), ops.cat_copy(e, values)))
            del keys, values
        tape.at(None)
        # Only now is what they were cut from let go.
        del layers, layer
        return made


def _split(e: Engine, x: Tensor, n_layers: int, shape: Shape) -> list[Tensor]:
    """``view``, ``permute`` and ``split``: views of one node, which joins the gradients of all layers."""
    x_shape, dtype = x.shape, x.dtype
    waiting: dict[int, Tensor] = {}

    def kept(layer: int) -> Backward:
        def backward(_saved: Saved, g: Tensor) -> Gradients:
            if layer:
                waiting[layer] = g
                return [None]
            joined = e.new(x_shape, dtype, "split backward")
            for other in sorted(waiting):
                e.tape.at(other)
                del waiting[other]
            e.tape.at(None)
            # Permuted back, it does not lie as the view does.
            return [_copied(e, joined)]

        return backward

    return [e.view("split", x, shape, kept(layer)) for layer in range(n_layers)]


def _copied(e: Engine, x: Tensor) -> Tensor:
    return e.new(x.shape, x.dtype, "view backward")


def _unbind(e: Engine, x: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer: two views of one node, which stacks their gradients."""
    shape, dtype = x.shape, x.dtype
    waiting: list[Tensor] = []

    def first(_saved: Saved, _gradient: Tensor) -> Gradients:
        stacked = e.new(shape, dtype, "unbind backward")
        waiting.clear()
        return [stacked]

    def second(_saved: Saved, g: Tensor) -> Gradients:
        waiting.append(g)
        return [None]

    return e.view("unbind", x, shape[1:], first), e.view("unbind", x, shape[1:], second)


def _join(e: Engine, past: Tensor, x: Tensor) -> Tensor:
    """``torch.cat((past, x), dim=-2)`` in the wider dtype, whose gradient is cut in two where it lies."""
    dtype = promote(past.dtype, x.dtype)
    if e.autocast is not None:
        past, x = ops.to(e, past, dtype), ops.to(e, x, dtype)
    a, b = past.shape, x.shape
    types = past.dtype, x.dtype

    def cut(_saved: Saved, g: Tensor) -> Gradients:
        return [
            part(g, shape) if g.dtype == of else e.new(shape, of, "cat backward")
            for shape, of in zip((a, b), types, strict=True)
        ]

    return e.apply("cat", [past, x], (*a[:2], a[2] + b[2], a[3]), dtype, (), cut, op="KV cache")
