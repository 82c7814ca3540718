"""How much wider intervals are for families of recipes that nobody measured, found by leaving families out.

A family is a source of runs with one method, loss, kind of kernels and release. Its runs are alike in what their
authors did not say, so that errors among them say too little about the next family.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import get_args

from vramcalc.memory.calibration.calibration import UNSPLIT, Calibration, MeasuredRecipe, Pool, least_bytes
from vramcalc.memory.calibration.conformal import LEVEL, quantile

_ENOUGH = 20
"""Recipes from which on a regime has a stretch of its own; jobs of another one take the pool's."""
_QUANTITY: Mapping[Pool, str] = {"allocated": "blocks", "reserved": "reserved", "snapshot": "snapshot"}
_LARGE = 1 << 40  # of a recipe whose size is not known, so that nothing is taken for covered


def family_of(recipe: MeasuredRecipe) -> tuple[str, ...]:
    """What tells families apart: the sources, and what of a job does."""
    return (" ".join(recipe.sources), *recipe.like.family)


def folds(recipes: Sequence[MeasuredRecipe]) -> Iterator[tuple[list[MeasuredRecipe], list[MeasuredRecipe]]]:
    """Every family, and all the others."""
    families: dict[tuple[str, ...], list[MeasuredRecipe]] = defaultdict(list)
    for recipe in recipes:
        families[family_of(recipe)].append(recipe)
    for own in families.values():
        names = {r.recipe_id for r in own}
        yield own, [r for r in recipes if r.recipe_id not in names]


def stretches(recipes: Sequence[MeasuredRecipe]) -> Mapping[str, float]:
    """What makes intervals hold their share of families left out, by pool, or pool and regime: added to both ends.

    Each figure of a family that is left out is held against its interval by the others: how far outside it lies is a
    score, and what is added holds a share of the scores, where a family weighs as the root of its recipes, which was
    chosen by what nested folds cover.

    References:
        Romano et al., "Conformalized Quantile Regression", NeurIPS 2019, eq. 6: the additive score.
    """
    scores: dict[str, list[tuple[float, float]]] = defaultdict(list)
    counts: dict[str, int] = defaultdict(int)
    for own, others in folds(recipes):
        without = Calibration(tuple(others), {})
        for recipe in own:
            for pool in get_args(Pool):
                found = recipe.errors.get(pool, ())
                if not found:
                    continue
                low, high = without.outlook(pool, recipe.like).bounds(LEVEL)
                sizes = recipe.predicted_bytes
                least = least_bytes(_QUANTITY[pool], recipe.like, sizes.get(UNSPLIT, 0), LEVEL) / sizes.get(
                    pool, sizes.get("allocated", _LARGE)
                )
                low, high = min(low, -least), max(high, least)
                for name in (pool, stretch_name(pool, recipe)):
                    scores[name] += [(max(low - e, e - high), 1 / len(found) / math.sqrt(len(own))) for e in found]
                    counts[name] += 1
    kept = [name for name in sorted(scores) if " " not in name or counts[name] >= _ENOUGH]
    return {name: max(0.0, quantile(scores[name], 0.0)) for name in kept}


def stretch_name(pool: Pool, recipe: MeasuredRecipe) -> str:
    """A pool with the regime of a recipe."""
    return " ".join((pool, *recipe.like.regime))
