"""What the operators of a walk compute: the second ledger, beside the tape, kept only where it is asked for.

**Convention.** One multiply-add is two operations. Matrix products alone are counted; attention counts every pair of
two tokens, whatever its mask hides. A product is written down where it runs, so that a recomputation which stops early,
a frozen weight or an input without gradient leave theirs out by themselves.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from vramcalc.shadow.engine.sizes import Size, product
from vramcalc.shadow.engine.tape import Shape, Tape

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


class Work(Uncounted):
    """Products of one walk, in order.

    Attributes:
        products: all of them.
        looked_up: names of the weights whose rows were picked.
    """

    def __init__(self, tape: Tape) -> None:
        self.products: list[Product] = []
        self.looked_up: set[str] = set()
        self._tape = tape

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

    def _add(self, owner: str, attends: bool, made_in: Pass | None, dtype: str, flops: Size) -> None:
        now = made_in or ("recomputation" if self.again else "forward")
        tape = self._tape
        self.products.append(Product(owner, attends, now, dtype, flops, tape.layer, tape.phase))
