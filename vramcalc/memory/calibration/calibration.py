"""How far a prediction may be off, from what measured runs say; the CUDA context, which no walk can see.

Errors are logarithms of measured over predicted. A job's interval is made of the errors of runs in its regime (method
and attention); where those are few, of wider pools. Repeated runs of one recipe count as one. A job of a family
(method, loss, kernels, release) that nobody measured has errors stretched by what leaving out families asks for. Where
a setting is beyond what was checked, an interval is never narrower than that of errors between groups of runs, where
every GPU of every source counts alike, however many runs it has. How much of their blocks 4-bit weights leave unsplit
depends on the order in which the loader's threads are done, which differs between runs of one recipe: allocated memory
may hold none of it, or twice what the replay has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from vramcalc.inputs.families import FAMILIES
from vramcalc.interval import Interval
from vramcalc.memory.calibration.conformal import LEVEL, Outlook, Spread
from vramcalc.memory.calibration.similarity import SIZES, Likeness
from vramcalc.memory.context import Context, capability_of, documented
from vramcalc.units import MIB

Pool = Literal["allocated", "reserved", "snapshot"]
POOLS: tuple[Pool, ...] = get_args(Pool)
UNSEEN = 5.0
"""Recipes that the wider pool counts for beside those of a regime."""
_ROOT_UNSEEN = 1.0
SEGMENT_BYTES = 2 * MIB
"""The least that torch's allocator asks the driver for; no interval is narrower on either side."""
_APART: Mapping[str, Mapping[str, frozenset[str]]] = {
    "reserved": {"loss": frozenset({"fused_cross_entropy"})},
    "allocated": {"model_type": frozenset(name for name, family in FAMILIES.items() if family.experts)},
}
"""Traits whose runs count for them alone, by pool: a loss that reserves memory for no known reason, some runs of which
fill their GPU; and experts, which get as many tokens as the data has for them, where the walk's router is balanced."""
UNSPLIT = "unsplit"
"""Name of what loading leaves unsplit among what is predicted of a recipe."""
_PER_SETTING = 0.1
"""Power of the number of settings beyond what was checked, by which errors grow with it."""


@dataclass(frozen=True)
class MeasuredRecipe:
    """Measured runs of one recipe on one kind of GPU.

    Attributes:
        recipe_id: digest.
        model: Hugging Face id.
        gpu: id of the device.
        architecture: its generation.
        sources: where the runs were published, or ``profile``.
        like: what decides which jobs it is like.
        errors: by pool, of every run.
        predicted_bytes: by pool; :data:`UNSPLIT` is what loading leaves unsplit, where it is known. [B]
        process_bytes: as measured, of every run. [B]
        context_bytes: what was measured beside the allocator, of runs whose reserved memory was measured too. [B]
    """

    recipe_id: str
    model: str
    gpu: str
    architecture: str
    sources: tuple[str, ...]
    like: Likeness
    errors: Mapping[str, tuple[float, ...]]
    predicted_bytes: Mapping[str, int]
    process_bytes: tuple[int, ...] = ()
    context_bytes: tuple[int, ...] = ()

    @property
    def capability(self) -> tuple[int, int] | None:
        """Compute capability of the device, None where it is in no table."""
        return capability_of(self.gpu)


@dataclass(frozen=True)
class ContextTerm:
    """The CUDA context of a GPU generation, fitted.

    Attributes:
        n_bytes: the middle one, every recipe counting alike. [B]
        low_bytes: the least. [B]
        high_bytes: the most. [B]
        runs: figures behind it.
        recipes: that they are of.
        sources: where they were published.
    """

    n_bytes: int
    low_bytes: int
    high_bytes: int
    runs: int
    recipes: int
    sources: tuple[str, ...]


@dataclass(frozen=True)
class Tried:
    """A term that was fitted, and what leaving out one model at a time says of it.

    Attributes:
        name: of the term.
        pool: what it would be added to.
        size: in ``unit``.
        unit: of the size.
        without: mean size of held-out errors without the term.
        with_it: the same with it.
    """

    name: str
    pool: str
    size: float
    unit: str
    without: float
    with_it: float

    @property
    def kept(self) -> bool:
        """Whether the term helps with what it has not seen."""
        return self.with_it < self.without


@dataclass(frozen=True, eq=False)
class Calibration:
    """What measured runs say.

    Attributes:
        recipes: that were measured.
        contexts: fitted, by GPU generation.
        tried: terms that were put to the test.
        stretch: what is added to errors on either side for jobs of a family that no recipe is of, by pool, or pool and
            regime; see :mod:`vramcalc.accuracy.intervals.families`.
        note: which calibration it is, where it is not the shipped one, or why it is.
    """

    recipes: tuple[MeasuredRecipe, ...]
    contexts: Mapping[str, ContextTerm]
    tried: tuple[Tried, ...] = ()
    stretch: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    def without(self, left_out: Callable[[MeasuredRecipe], bool]) -> Calibration:
        """The same but for some recipes; contexts stay as they are."""
        return replace(self, recipes=tuple(r for r in self.recipes if not left_out(r)), _made={})

    def without_recipe(self, recipe_id: str) -> Calibration:
        """The same but for the runs of one recipe; itself where it has none."""
        if all(r.recipe_id != recipe_id for r in self.recipes):
            return self
        return self._once(("without", recipe_id), lambda: self.without(lambda r: r.recipe_id == recipe_id))  # type: ignore[no-any-return]

    # -- intervals ---------------------------------------------------------------------------------------------------

    def unchecked(self, pool: Pool, like: Likeness) -> list[str]:
        """What no measured run of a pool has, in words."""
        seen, most = self._once(("checked", pool), lambda: self._checked(pool))
        found = [f"{name} {value}" for name, value in like.traits.items() if value not in seen.get(name, ())]
        return found + [words.format(like.sizes[n]) for n, words in SIZES.items() if like.sizes[n] > most.get(n, 0)]

    def _checked(self, pool: Pool) -> tuple[dict[str, set[str]], dict[str, int]]:
        seen: dict[str, set[str]] = {}
        most: dict[str, int] = {}
        for r in self.recipes:
            if pool in r.errors:
                for name, value in r.like.traits.items():
                    seen.setdefault(name, set()).add(value)
                most = {n: max(most.get(n, 0), r.like.sizes[n]) for n in SIZES}
        return seen, most

    def outlook(self, pool: Pool, like: Likeness) -> Outlook:
        """How the error of a job's prediction is spread."""
        beyond = len(self.unchecked(pool, like))
        spread = self.spread(pool, like.regime)
        if _apart(pool, like):
            spread = self._once(("apart", pool, like.regime), lambda: self._spread_apart(pool, spread))
        outside = not beyond and like.family not in self._once(("families", pool), lambda: self._families(pool))
        own = self.stretch.get(" ".join((pool, *like.regime)), self.stretch.get(pool, 0.0)) if outside else 0.0
        return Outlook(spread, self.between_groups(pool), beyond**_PER_SETTING if beyond else 0, own)

    def _families(self, pool: Pool) -> set[tuple[str, ...]]:
        return {r.like.family for r in self.recipes if pool in r.errors}

    def _spread_apart(self, pool: Pool, wider: Spread) -> Spread:
        return Spread.of(_errors(pool, (r for r in self.recipes if _apart(pool, r.like))), wider, UNSEEN)

    def _usual(self, pool: Pool) -> list[MeasuredRecipe]:
        return [r for r in self.recipes if pool in r.errors and not _apart(pool, r.like)]

    def between_groups(self, pool: Pool) -> Spread:
        """Errors of a pool where every GPU of every source counts alike: what an unseen one may have."""
        return self._once(("groups", pool), lambda: self._between_groups(pool))  # type: ignore[no-any-return]

    def _between_groups(self, pool: Pool) -> Spread:
        own = self._usual(pool)
        sizes = Counter((r.gpu, r.sources) for r in own)
        errors = [(e, 1 / len(r.errors[pool]) / sizes[r.gpu, r.sources]) for r in own for e in r.errors[pool]]
        return Spread.of(errors, None, _ROOT_UNSEEN)

    def spread(self, pool: Pool, regime: tuple[str, ...]) -> Spread:
        """Errors of a pool's runs in a regime, backed by those of the wider one."""
        return self._once(("spread", pool, regime), lambda: self._spread(pool, regime))  # type: ignore[no-any-return]

    def _spread(self, pool: Pool, regime: tuple[str, ...]) -> Spread:
        own = _errors(pool, (r for r in self._usual(pool) if r.like.regime[: len(regime)] == regime))
        if not regime:
            return Spread.of(own, None, _ROOT_UNSEEN)
        return Spread.of(own, self.spread(pool, regime[:-1]), UNSEEN)

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    # -- the CUDA context --------------------------------------------------------------------------------------------

    def context(self, architecture: str | None, capability: tuple[int, int] | None = None) -> Context:
        """The CUDA context and kernel modules on a GPU generation: fitted, else as read off torch's messages."""
        term = self.contexts.get(architecture or "")
        if term is not None:
            source = f"{', '.join(term.sources)}: {term.runs} runs of {term.recipes} recipes"
            return Context(term.n_bytes, "calibrated", source, term.low_bytes, term.high_bytes)
        return documented(architecture, capability)


def _apart(pool: Pool, like: Likeness) -> bool:
    return any(like.traits.get(name) in values for name, values in _APART.get(pool, {}).items())


def _errors(pool: Pool, recipes: Iterable[MeasuredRecipe]) -> list[tuple[float, float]]:
    """Errors of a pool with their weights; every recipe counts alike."""
    return [(error, 1 / len(errors)) for r in recipes if (errors := r.errors.get(pool)) for error in errors]


def context_at(context: Context, share: float) -> float:
    """The context that has a probability up to it: exponential on both sides, its bounds those of 90 %. [B]"""
    tail = math.log(2 * min(share, 1 - share) + 1e-300) / math.log(1 - LEVEL)
    side = (context.high_bytes - context.n_bytes) if share > 0.5 else (context.low_bytes - context.n_bytes)
    return max(0.0, context.n_bytes + side * tail)


def interval_around(
    value: int,
    quantity: str,
    like: Likeness,
    calibration: Calibration,
    context: Context,
    level: float,
    unsplit_bytes: int = 0,
) -> Interval:
    """A prediction between its bounds. [B]

    Args:
        value: what is predicted; of ``process`` with the context in it. [B]
        quantity: ``allocated``, ``blocks``, ``reserved``, ``snapshot`` or ``process``.
        like: of the job.
        calibration: whose errors count.
        context: CUDA context of the process.
        level: share of what is measured that the bounds hold.
        unsplit_bytes: of blocks that loading leaves unsplit, what they have beyond what was asked for. [B]
    """
    if quantity == "process":
        reserved = interval_around(value - context.n_bytes, "reserved", like, calibration, context, level)
        low, high = (context_at(context, share) for share in ((1 - level) / 2, (1 + level) / 2))
        return Interval(reserved.low + low, value, reserved.high + high)
    pool: Pool = "reserved" if quantity == "reserved" else "snapshot" if quantity == "snapshot" else "allocated"
    low, high = calibration.outlook(pool, like).bounds(level)
    least = least_bytes(quantity, like, unsplit_bytes, level)
    return Interval(
        max(0.0, min(value * math.exp(low), value - least)), value, max(value * math.exp(high), value + least)
    )


def least_bytes(quantity: str, like: Likeness, unsplit_bytes: int, level: float) -> float:
    """What an interval has at least on either side: a segment, and the scatter of loading in 4-bit models. [B]"""
    if quantity not in ("blocks", "snapshot") or not (like.regime[0] == "qlora" or "quantization" in like.traits):
        return SEGMENT_BYTES
    return max(SEGMENT_BYTES, unsplit_bytes * math.log(1 - level) / math.log(1 - LEVEL))


def share_within(spread: Outlook, context: Context, n_bytes: float, capacity_bytes: float) -> float:
    """The probability that process memory is at most so much; it never falls as that grows.

    Reserved memory and the context are taken to be large together, so that the bounds of an interval are the sums of
    theirs.
    """
    if capacity_bytes <= 0:
        return 0.0
    low, high = 0.0, 1.0
    for _ in range(32):
        share = (low + high) / 2
        needed = n_bytes * math.exp(spread.at(share)) + context_at(context, share)
        low, high = (share, high) if needed <= capacity_bytes else (low, share)
    return high if high == 1.0 else low
