"""Modules of a shadow model: a tree with the names transformers gives, whose leaves a method may replace.

``Module.__call__`` holds its arguments while ``forward`` runs, as ``torch.nn.Module`` does; that decides how long the
input of every layer lives.
"""

from __future__ import annotations

from collections.abc import Iterator

from vramcalc.shadow.engine import norms, ops
from vramcalc.shadow.engine.autograd import Engine
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.sizes import Size
from vramcalc.shadow.engine.tape import Tensor


class Module:
    """A node of the tree.

    Attributes:
        name: as ``named_modules`` gives it.
        layer: decoder layer the module belongs to, None outside.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.engine, self.name, self.layer = engine, name, engine.tape.layer

    def __call__(self, *args: Tensor) -> Tensor:
        """``forward``, with the module's name on everything it makes."""
        tape = self.engine.tape
        outer, tape.module = tape.module, self.name
        result = self.forward(*args)
        tape.module = outer
        return result

    def forward(self, *args: Tensor) -> Tensor:
        """Run the module."""
        raise NotImplementedError

    def parameters(self) -> Iterator[Parameter]:
        """Parameters of this module and of those inside it, in order of registration; tied ones come twice."""
        for value in vars(self).values():
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, Parameter):
                    yield item
                elif isinstance(item, Module):
                    yield from item.parameters()

    def modules(self) -> Iterator[tuple[Module, str, Module]]:
        """``(parent, attribute, module)`` of everything inside this module, parents first."""
        for attribute, value in list(vars(self).items()):
            if isinstance(value, Module):
                yield self, attribute, value
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, Module):
                    yield from item.modules()


class Linear(Module):
    """``torch.nn.Linear``."""

    def __init__(self, engine: Engine, name: str, d_in: Size, d_out: Size, dtype: str, *, bias: bool = False) -> None:
        super().__init__(engine, name)
        self.d_in, self.d_out = d_in, d_out
        self.weight = Parameter(engine.tape, f"{name}.weight", (d_out, d_in), dtype)
        self.bias = Parameter(engine.tape, f"{name}.bias", (d_out,), dtype) if bias else None

    def forward(self, *args: Tensor) -> Tensor:
        """``(..., d_in)`` to ``(..., d_out)``."""
        return ops.linear(self.engine, args[0], self.weight, self.bias)


class TiedHead(Module):
    """An output projection that shares the embedding's weight."""

    def __init__(self, engine: Engine, name: str, embedding: Embedding) -> None:
        super().__init__(engine, name)
        self.weight = embedding.weight
        self.d_out, self.d_in = embedding.weight.tensor.shape

    def forward(self, *args: Tensor) -> Tensor:
        """``(..., d_in)`` to ``(..., d_out)``."""
        return ops.linear(self.engine, args[0], self.weight)


class RMSNorm(Module):
    """Root mean square norm with a weight."""

    def __init__(self, engine: Engine, name: str, width: int, dtype: str) -> None:
        super().__init__(engine, name)
        self.weight = Parameter(engine.tape, f"{name}.weight", (width,), dtype)

    def forward(self, *args: Tensor) -> Tensor:
        """Normalise the last dimension."""
        return norms.rms_norm(self.engine, args[0], self.weight)


class Embedding(Module):
    """``torch.nn.Embedding``."""

    def __init__(self, engine: Engine, name: str, vocab: int, width: int, dtype: str) -> None:
        super().__init__(engine, name)
        self.weight = Parameter(engine.tape, f"{name}.weight", (vocab, width), dtype)

    def forward(self, *args: Tensor) -> Tensor:
        """``(batch, seq)`` ids to ``(batch, seq, width)``."""
        return ops.embedding(self.engine, self.weight, args[0])

    def scaled(self, x: Tensor) -> Tensor:
        """What is looked up, an adapter's share too, times the embedding's own scale: none by default."""
        return x


class Factory:
    """Makes the leaves of a model; a method that stores weights in another form overrides ``linear``.

    Attributes:
        dtype: of everything that is not stored in another form.
        norm_class: of norms.
    """

    def __init__(self, engine: Engine, dtype: str, norm_class: type[RMSNorm] = RMSNorm) -> None:
        self.engine, self.dtype, self.norm_class = engine, dtype, norm_class

    def linear(self, name: str, d_in: int, d_out: int, *, bias: bool = False) -> Module:
        """A projection inside a decoder layer."""
        return Linear(self.engine, name, d_in, d_out, self.dtype, bias=bias)

    def head(self, name: str, d_in: int, d_out: int) -> Module:
        """The output projection, which no library quantises."""
        return Linear(self.engine, name, d_in, d_out, self.dtype)

    def norm(self, name: str, width: int, norm_class: type[RMSNorm] | None = None) -> RMSNorm:
        """A norm, of the family's own class where it has one."""
        return (norm_class or self.norm_class)(self.engine, name, width, self.dtype)

    def embedding(self, name: str, vocab: int, width: int, embedding_class: type[Embedding] = Embedding) -> Embedding:
        """The token embedding, of the family's own class where it has one."""
        return embedding_class(self.engine, name, vocab, width, self.dtype)
