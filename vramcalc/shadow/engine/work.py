"""What the operators of a walk compute and move: the second ledger, beside the tape, kept only where it is asked for.

**Convention.** One multiply-add is two operations. Matrix products alone are counted; attention counts every pair of
two tokens, whatever its mask hides. A product is written down where it runs, so that a recomputation which stops early,
a frozen weight or an input without gradient leave theirs out by themselves.

Bytes are those that an operator's arguments hold and that its results take, each once: what eager code moves, whatever
caches keep. A view moves nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

from vramcalc.shadow.engine.sizes import Size, product
from vramcalc.shadow.engine.tape import ITEMSIZE, Shape, Tape, Tensor

Pass = Literal["forward", "recomputation", "input gradients", "weight gradients"]


class Product(NamedTuple):
    """Matrix products of one size.

    Attributes:
        owner: name of the weight; of the module where two activations are multiplied.
        attends: scores of attention or their product with the values, whose size grows with pairs of tokens.
        made_in: which pass.
        dtype: that it is computed in.
        flops: multiplications and additions; may be symbolic.
        layer: decoder layer, None outside.
        phase: of the tape.
    """

    owner: str
    attends: bool
    made_in: Pass
    dtype: str
    flops: Size
    layer: int | None
    phase: str


class Move(NamedTuple):
    """Bytes that an operator reads and writes.

    Attributes:
        op: name of the operator; of its backward, the same.
        module: that it runs in.
        made_in: which pass.
        read: of its arguments, saved ones and the incoming gradient among them. [B]
        written: of what it makes, buffers that it needs on the way among them. [B]
        layer: decoder layer, None outside.
        phase: of the tape.
    """

    op: str
    module: str
    made_in: Literal["forward", "recomputation", "backward"]
    read: Size
    written: Size
    layer: int | None
    phase: str


class Uncounted:
    """Where nobody asks for work: operators say what they compute, and nothing is kept."""

    again = False
    """What runs now ran before: a checkpointed region is being recomputed."""

    def multiplied(
        self, owner: str, dtype: str, x_shape: Shape, d_out: Size, made_in: Pass | None = None, *, times: int = 1
    ) -> None:
        """``(..., in)`` times ``(in, out)``.

        Args:
            owner: of the weight, see :class:`Product`.
            dtype: that it is computed in.
            x_shape: of the input.
            d_out: width of the result.
            made_in: which part of the backward pass; None, the forward pass, which may be a recomputation.
            times: products of this size.
        """

    def differentiated(
        self, owner: str, dtype: str, x_shape: Shape, d_out: Size, *, for_input: bool, for_weight: bool
    ) -> None:
        """The backward pass of ``multiplied``: a product of its size for each gradient that is needed."""

    def looks_up(self, owner: str) -> None:
        """Rows of a weight are picked, which multiplies nothing."""

    def attended(self, dtype: str, shape: Shape, keys: Size, made_in: Pass | None = None, *, times: int = 1) -> None:
        """``(batch, heads, seq, head_dim)`` times as many keys, or scores of them times values: equally large."""

    def begins(self, op: str, arguments: Sequence[Tensor], gradient: Tensor | None = None) -> None:
        """An operator begins; what is made until the next one does is its.

        Args:
            op: its name.
            arguments: of it; of its backward, what was saved.
            gradient: that comes in, in the backward pass.
        """

    def ends(self) -> None:
        """The last operator is done."""

    def writes_over(self, x: Tensor) -> None:
        """The operator at hand writes its result over one of its arguments."""


class Work(Uncounted):
    """Products and moves of one walk, in order.

    Attributes:
        products: all of them.
        moves: of operators that move anything.
        looked_up: names of the weights whose rows were picked.
    """

    def __init__(self, tape: Tape) -> None:
        self.products: list[Product] = []
        self.moves: list[Move] = []
        self.looked_up: set[str] = set()
        self._tape = tape
        self._at_hand: Move | None = None
        self._born = 0

    def multiplied(
        self, owner: str, dtype: str, x_shape: Shape, d_out: Size, made_in: Pass | None = None, *, times: int = 1
    ) -> None:
        """See the base class."""
        self._add(owner, False, made_in, dtype, 2 * times * product(x_shape) * d_out)

    def differentiated(
        self, owner: str, dtype: str, x_shape: Shape, d_out: Size, *, for_input: bool, for_weight: bool
    ) -> None:
        """See the base class."""
        if for_input:
            self.multiplied(owner, dtype, x_shape, d_out, "input gradients")
        if for_weight:
            self.multiplied(owner, dtype, x_shape, d_out, "weight gradients")

    def looks_up(self, owner: str) -> None:
        """See the base class."""
        self.looked_up.add(owner)

    def attended(self, dtype: str, shape: Shape, keys: Size, made_in: Pass | None = None, *, times: int = 1) -> None:
        """See the base class."""
        if times:
            self._add(self._tape.module, True, made_in, dtype, 2 * times * product(shape) * keys)

    def begins(self, op: str, arguments: Sequence[Tensor], gradient: Tensor | None = None) -> None:
        """See the base class."""
        self.ends()
        tape, read = self._tape, sum(map(_bytes_of, arguments), start=0 if gradient is None else _bytes_of(gradient))
        forward: Literal["forward", "recomputation"] = "recomputation" if self.again else "forward"
        made_in = forward if gradient is None else "backward"
        self._at_hand = Move(op, tape.module, made_in, read, 0, tape.layer, tape.phase)
        self._born = len(tape.births)

    def ends(self) -> None:
        """See the base class."""
        move, self._at_hand = self._at_hand, None
        if move is None:
            return
        made = [b for b in self._tape.births[self._born :] if b.kind in ("", "gradient")]
        if made or move.written:
            written = sum((product(b.shape) * ITEMSIZE[b.dtype] for b in made), start=move.written)
            self.moves.append(move._replace(written=written))

    def writes_over(self, x: Tensor) -> None:
        """See the base class."""
        if self._at_hand is not None:
            self._at_hand = self._at_hand._replace(written=self._at_hand.written + _bytes_of(x))

    def _add(self, owner: str, attends: bool, made_in: Pass | None, dtype: str, flops: Size) -> None:
        now = made_in or ("recomputation" if self.again else "forward")
        tape = self._tape
        self.products.append(Product(owner, attends, now, dtype, flops, tape.layer, tape.phase))


def _bytes_of(x: Tensor) -> Size:
    return product(x.shape) * ITEMSIZE[x.dtype]
