"""Quantiles and spreads of errors for a run that nobody has measured: weighted conformal inference.

Split conformal inference puts the one error that nobody has seen beyond all others. With few rows every interval would
then be infinite, so here the unseen error is spread as errors of a wider pool are, and at the root as a Laplace
distribution of the pool's mean error.

References:
    Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 113(523), 2018, sec. 2.
    Vovk et al., "Cross-conformal predictive distributions", PMLR 91, 2018.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

LEVEL = 0.9
"""Share of errors that an interval is to hold."""
_MOST = 40.0
"""Largest error that is looked for, as a logarithm."""
_BLIND, _LEAST = 0.1, 1e-4
"""Mean size of errors where none was ever seen, and the least that is believed of any pool."""


def quantile(weighted: Iterable[tuple[float, float]], unseen: float, level: float = LEVEL) -> float:
    """The least value that holds its share of the weights, with ``unseen`` beyond all; else the largest."""
    order = sorted(weighted)
    need, reached = level * (sum(w for _, w in order) + unseen), 0.0
    for score, weight in order:
        reached += weight
        if reached >= need:
            return score
    return order[-1][0]


@dataclass(frozen=True)
class Spread:
    """How an error is spread: those seen, by weight, and the unseen one.

    Attributes:
        errors: logarithms of measured over predicted, in order.
        weights: of each.
        unseen: weight of the Laplace distribution beside them.
        scale: of that distribution: its mean size.
    """

    errors: tuple[float, ...]
    weights: tuple[float, ...]
    unseen: float
    scale: float

    @classmethod
    def of(cls, weighted: Iterable[tuple[float, float]], wider: Spread | None, unseen: float) -> Spread:
        """Errors of a pool, the unseen one spread as in a wider pool; without one, as a Laplace distribution."""
        own = list(weighted)
        total = sum(w for _, w in own)
        scale = max(sum(abs(e) * w for e, w in own) / total, _LEAST) if own else _BLIND
        if wider is None:
            return cls._sorted(own, unseen, scale)
        share = unseen / wider.total
        own += [(e, w * share) for e, w in zip(wider.errors, wider.weights, strict=True)]
        return cls._sorted(own, wider.unseen * share, wider.scale)

    @classmethod
    def _sorted(cls, weighted: Sequence[tuple[float, float]], unseen: float, scale: float) -> Spread:
        order = sorted(weighted)
        return cls(tuple(e for e, _ in order), tuple(w for _, w in order), unseen, scale)

    @cached_property
    def _reached(self) -> list[float]:
        return [0.0, *accumulate(self.weights)]

    @property
    def total(self) -> float:
        """Weight of all, the unseen one included."""
        return self._reached[-1] + self.unseen

    def share_up_to(self, error: float) -> float:
        """The probability of an error of at most so much; it never falls as the error grows."""
        seen = self._reached[bisect_right(self.errors, error)]
        return (seen + self.unseen * _laplace(error, self.scale)) / self.total

    def at(self, share: float) -> float:
        """The least error that has this probability up to it."""
        low, high = 0, len(self.errors)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.share_up_to(self.errors[middle]) >= share else (middle + 1, high)
        seen = self._reached[low]
        rest = (share * self.total - seen) / self.unseen if self.unseen else 1.0
        found = _laplace_at(rest, self.scale)
        below = self.errors[low - 1] if low else -_MOST
        above = self.errors[low] if low < len(self.errors) else _MOST
        return min(max(found, below), above)


def _laplace(error: float, scale: float) -> float:
    tail = 0.5 * math.exp(-abs(error) / scale)
    return tail if error < 0 else 1 - tail


def _laplace_at(share: float, scale: float) -> float:
    if share <= 0:
        return -_MOST
    if share >= 1:
        return _MOST
    return scale * math.log(2 * share) if share < 0.5 else -scale * math.log(2 * (1 - share))


@dataclass(frozen=True)
class Outlook:
    """A spread beyond what was checked: never narrower than the narrow one, nor than the wide one times a factor.

    Attributes:
        narrow: of the pool at hand.
        wide: of all pools.
        widening: factor on the errors of ``wide``; 0 where nothing lies beyond what was checked.
        stretch: added to the errors of ``narrow`` on either side, at least 0.
    """

    narrow: Spread
    wide: Spread
    widening: float
    stretch: float = 0.0

    def share_up_to(self, error: float) -> float:
        """The probability of an error of at most so much."""
        near = self.narrow.share_up_to(math.copysign(max(0.0, abs(error) - self.stretch), error))
        if not self.widening:
            return near
        far = self.wide.share_up_to(error / self.widening)
        least = min(near, far)
        return least if least >= 0.5 else min(0.5, max(near, far))

    def at(self, share: float) -> float:
        """The least error that has this probability up to it."""
        near = self.narrow.at(share) + math.copysign(self.stretch, share - 0.5)
        if not self.widening:
            return near
        far = self.wide.at(share) * self.widening
        return max(near, far) if share >= 0.5 else min(near, far)

    def bounds(self, level: float) -> tuple[float, float]:
        """Errors at both ends of an interval, that of no error between them."""
        return min(0.0, self.at((1 - level) / 2)), max(0.0, self.at((1 + level) / 2))
