"""A figure with the interval it is expected in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from vramcalc.errors import InvalidValue


@dataclass(frozen=True)
class Interval:
    """A value between its bounds; the unit is in the name of what holds it.

    Raises:
        InvalidValue: a bound that is no finite number, or a value outside its bounds.
    """

    low: float
    value: float
    high: float

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, self)) or not self.low <= self.value <= self.high:
            raise InvalidValue("interval", tuple(self), "finite numbers, low <= value <= high")

    def __iter__(self) -> Iterator[float]:
        return iter((self.low, self.value, self.high))

    def map(self, rule: Callable[[float], float]) -> Interval:
        """Each of the three under a rule that never falls."""
        return Interval(*map(rule, self))

    def spanning(self, others: Iterable[Interval]) -> Interval:
        """The same value between bounds that hold those of the others, too."""
        every = (self, *others)
        return Interval(min(i.low for i in every), self.value, max(i.high for i in every))

    def to_dict(self) -> dict[str, float]:
        """Plain values."""
        return {"low": self.low, "value": self.value, "high": self.high}
