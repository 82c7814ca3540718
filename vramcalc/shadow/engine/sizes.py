"""Sizes that may be symbols, so that one walk of a training step serves a whole grid of configurations.

A :class:`Dim` carries the value it has in the walk at hand (its hint) and the expression it stands for. Arithmetic
builds larger expressions; a comparison answers for the hint and is written down as a guard. The walk is valid for
every assignment of the symbols under which all guards give the same answers, and :meth:`Symbols.holds` finds those.
Plain ``int`` needs none of this: the same code runs on either.

The idea is that of torch's symbolic shapes (torch.fx.experimental.symbolic_shapes), reduced to what a size needs.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    IntArray = npt.NDArray[np.int64]
    Values = dict[str, IntArray]

_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}


class Symbols:
    """The symbols of one walk and the guards it collected."""

    def __init__(self, **hints: int) -> None:
        self.guards: dict[tuple[str, Any, Any], bool] = {}
        self._interned: dict[tuple[Any, ...], Dim] = {}
        self.dims = {name: self._make(("symbol", name), hint) for name, hint in hints.items()}

    def _make(self, key: tuple[Any, ...], hint: int) -> Dim:
        found = self._interned.get(key)
        if found is None:
            found = self._interned[key] = Dim(self, key, hint)
        return found

    def holds(self, values: Values) -> npt.NDArray[np.bool_]:
        """Which points of ``values`` (arrays of one length, by symbol) this walk is valid for."""
        import numpy as np

        ok: npt.NDArray[np.bool_] = np.ones(len(next(iter(values.values()))), dtype=bool)
        for (op, left, right), answer in self.guards.items():
            ok &= _COMPARE[op](evaluate(left, values), evaluate(right, values)) == answer
        return ok


class Dim:
    """One size: an expression over symbols with a hint; see the module's text."""

    __slots__ = ("_hash", "hint", "key", "symbols")

    def __init__(self, symbols: Symbols, key: tuple[Any, ...], hint: int) -> None:
        self.symbols, self.key, self.hint = symbols, key, hint
        self._hash = hash(key)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        if self.key[0] == "symbol":
            return str(self.key[1])
        return f"({self.key[1]!r} {self.key[0]} {self.key[2]!r})"

    def _combine(self, op: str, left: Size, right: Size) -> Size:
        value = _ARITHMETIC[op](_hint(left), _hint(right))
        if op == "*" and (left == 1 if isinstance(left, int) else right == 1 if isinstance(right, int) else False):
            return self
        return self.symbols._make((op, left, right), value)

    def __add__(self, other: Size) -> Size:
        return self._combine("+", self, other)

    def __radd__(self, other: int) -> Size:
        return self._combine("+", other, self)

    def __sub__(self, other: Size) -> Size:
        return self._combine("-", self, other)

    def __rsub__(self, other: int) -> Size:
        return self._combine("-", other, self)

    def __mul__(self, other: Size) -> Size:
        return self._combine("*", self, other)

    def __rmul__(self, other: int) -> Size:
        return self._combine("*", other, self)

    def __floordiv__(self, other: Size) -> Size:
        return self._combine("//", self, other)

    def __rfloordiv__(self, other: int) -> Size:
        return self._combine("//", other, self)

    def __mod__(self, other: Size) -> Size:
        return self._combine("%", self, other)

    def __neg__(self) -> Size:
        return self._combine("-", 0, self)

    def _guard(self, op: str, other: Size) -> bool:
        answer = bool(_COMPARE[op](self.hint, _hint(other)))
        self.symbols.guards[(op, self, other)] = answer
        return answer

    def __lt__(self, other: Size) -> bool:
        return self._guard("<", other)

    def __le__(self, other: Size) -> bool:
        return self._guard("<=", other)

    def __gt__(self, other: Size) -> bool:
        return self._guard(">", other)

    def __ge__(self, other: Size) -> bool:
        return self._guard(">=", other)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, int | Dim):
            return NotImplemented
        return self._guard("==", other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        """Whether it is not zero, which is a guard as well: a remainder is a case of its own."""
        return not self._guard("==", 0)

    def __index__(self) -> int:
        """The hint, pinned by a guard: for loops whose length is a size."""
        self._guard("==", self.hint)
        return self.hint


Size = int | Dim


def _hint(size: Size) -> int:
    return size.hint if isinstance(size, Dim) else size


def ceil_to(n: Size, multiple: int) -> Size:
    """The smallest multiple of ``multiple`` that is not below ``n``."""
    return (n + (multiple - 1)) // multiple * multiple


def minimum(a: Size, b: Size) -> Size:
    """The smaller size; a guard when symbols decide it."""
    return a if a < b else b


def product(sizes: Iterable[Size]) -> Size:
    """Product of the sizes of a shape."""
    return math.prod(sizes)


def evaluate(size: Size, values: Values) -> IntArray | int:
    """A size at every point of ``values``."""
    if isinstance(size, int):
        return size
    op, *args = size.key
    if op == "symbol":
        return values[args[0]]
    result: IntArray | int = _ARITHMETIC[op](evaluate(args[0], values), evaluate(args[1], values))
    return result
