"""How often intervals hold runs they have not seen: a recipe, family, model, GPU or source left out at a time."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from vramcalc.accuracy.intervals.families import family_of, stretches
from vramcalc.accuracy.intervals.fitted_calibration import fit_calibration
from vramcalc.memory.calibration.calibration import UNSPLIT, Calibration, MeasuredRecipe, Pool, interval_around
from vramcalc.memory.calibration.conformal import LEVEL

LeftOut = Literal["recipe", "family", "model", "GPU", "source"]
LEFT_OUT: tuple[LeftOut, ...] = get_args(LeftOut)
_KEYS: dict[LeftOut, Callable[[MeasuredRecipe], tuple[str, ...]]] = {
    "recipe": lambda r: (r.recipe_id,),
    "family": lambda r: ("|".join(family_of(r)),),
    "model": lambda r: (r.model,),
    "GPU": lambda r: (r.gpu,),
    "source": lambda r: r.sources,
}
UNDER = 0.05
"""Share by which a figure may be above what is predicted before the prediction counts as too low."""
QUANTITIES = ("blocks", "reserved", "process", "snapshot")
_POOLS: dict[str, Pool] = {"blocks": "allocated", "reserved": "reserved", "snapshot": "snapshot"}


@dataclass(frozen=True)
class Held:
    """A figure and its interval by a calibration that has not seen it; logarithms of figure over prediction.

    Attributes:
        recipe: that was measured.
        quantity: ``blocks``, ``reserved``, ``process``, ``snapshot``.
        weight: every recipe counts alike.
        error: of the figure.
        low: lower end.
        high: upper end.
    """

    recipe: MeasuredRecipe
    quantity: str
    weight: float
    error: float
    low: float
    high: float

    @property
    def covered(self) -> bool:
        """Whether the interval holds the figure."""
        return self.low <= self.error <= self.high

    @property
    def width(self) -> float:
        """From end to end, as a share of the prediction."""
        return math.exp(self.high) - math.exp(self.low)

    @property
    def score(self) -> float:
        """Width and a penalty for what is outside: the interval score.

        References:
            Gneiting & Raftery, "Strictly Proper Scoring Rules", JASA 102(477), 2007, eq. 43.
        """
        outside = max(self.low - self.error, self.error - self.high, 0.0)
        return self.high - self.low + 2 / (1 - LEVEL) * outside


def held(recipe: MeasuredRecipe, c: Calibration, level: float = LEVEL) -> Iterator[Held]:
    """The figures of a recipe beside intervals of a calibration."""
    for quantity, value in _predicted(recipe, c).items():
        context, unsplit = c.context(recipe.architecture, recipe.capability), recipe.predicted_bytes.get(UNSPLIT, 0)
        ends = interval_around(value, quantity, recipe.like, c, context, level, unsplit)
        low, high = math.log(ends.low / value), math.log(ends.high / value)
        process = [math.log(n / value) for n in recipe.process_bytes]
        errors = process if quantity == "process" else recipe.errors[_POOLS[quantity]]
        for error in errors:
            yield Held(recipe, quantity, 1 / len(errors), error, low, high)


def _predicted(recipe: MeasuredRecipe, c: Calibration) -> dict[str, int]:
    """What is predicted of the quantities that were measured; of snapshots, the peak that they are below. [B]"""
    sizes = recipe.predicted_bytes
    found = {q: sizes.get(pool, sizes.get("allocated", 0)) for q, pool in _POOLS.items() if recipe.errors.get(pool)}
    if recipe.process_bytes:
        found["process"] = sizes["reserved"] + c.context(recipe.architecture, recipe.capability).n_bytes
    return found


def held_out(recipes: Sequence[MeasuredRecipe], left_out: LeftOut) -> list[Held]:
    """Every figure beside the interval of a fit without its recipe, family, model, GPU or source.

    Args:
        recipes: all.
        left_out: what is left out.
    """
    key = _KEYS[left_out]
    found, whole = [], stretches(recipes)
    for fold in sorted({k for r in recipes for k in key(r)}):
        mine = [r for r in recipes if fold in key(r)]
        rest = [r for r in recipes if fold not in key(r)]
        # A recipe's family is still there without it, so that the stretch of others is not asked for.
        without = fit_calibration(rest, tried=False, stretch=whole if left_out == "recipe" else None)
        found += [h for r in mine for h in held(r, without)]
    return found


@dataclass(frozen=True)
class Coverage:
    """How intervals did on figures they had not seen.

    Attributes:
        left_out: recipe, family, model, GPU or source.
        quantity: as in :class:`Held`.
        method: ``full``, ``lora``, ``qlora``, or ``all``.
        attention: ``eager``, ``fused``, or ``all``.
        figures: measured.
        recipes: that they are of.
        covered: share within the interval, every recipe counting alike.
        width: mean, from end to end, as a share of the prediction.
        under: share of figures that are more than 5 % above what is predicted, which is what hurts.
    """

    left_out: str
    quantity: str
    method: str
    attention: str
    figures: int
    recipes: int
    covered: float
    width: float
    under: float


def coverage(found: Iterable[Held], left_out: str) -> list[Coverage]:
    """By quantity and regime, all regimes together first."""
    groups: dict[tuple[str, str, str], list[Held]] = defaultdict(list)
    for h in found:
        for method, attention in (("all", "all"), h.recipe.like.regime):
            groups[h.quantity, method, attention].append(h)
    order = sorted(groups, key=lambda k: (QUANTITIES.index(k[0]), k[1:]))
    return [_coverage(left_out, key, groups[key]) for key in order]


def _coverage(left_out: str, key: tuple[str, str, str], found: Sequence[Held]) -> Coverage:
    return Coverage(
        left_out,
        *key,
        figures=len(found),
        recipes=len({h.recipe.recipe_id for h in found}),
        covered=weighted(found, lambda h: float(h.covered)),
        width=weighted(found, lambda h: h.width),
        under=weighted(found, lambda h: float(h.error > math.log1p(UNDER))),
    )


def weighted(found: Sequence[Held], value: Callable[[Held], float]) -> float:
    """The mean where every recipe counts alike."""
    total = sum(h.weight for h in found)
    return sum(value(h) * h.weight for h in found) / total if total else 0.0


def score(found: Sequence[Held]) -> float:
    """The mean interval score, of every quantity alike: what a better calibration lowers."""
    of = [[h for h in found if h.quantity == q] for q in QUANTITIES]
    return sum(weighted(group, lambda h: h.score) for group in of if group) / max(1, sum(map(bool, of)))
