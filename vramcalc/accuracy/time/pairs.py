"""Ratios of two methods' step times, measured and predicted, from pairs of rows of one cell.

Rows of a cell are compared where kernels, attention and loss are the same too; repeated rows of a method count as one,
by the mean of their logarithms. A micro-step is what is compared, so that accumulation may differ.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vramcalc.accuracy.time.intervals import HeldOut
from vramcalc.memory.calibration.conformal import quantile
from vramcalc.timing.roofline import ratio_sigma

METHODS = ("full", "lora", "qlora", "qlora (GPTQ)")


@dataclass(frozen=True)
class Pair:
    """Two methods on one GPU and the same tokens, by fits that have seen neither.

    Attributes:
        methods: the two; the ratio is that of the first to the second.
        source: whose measurements they are.
        cases: ids of the rows.
        measured: ratio of their durations.
        predicted: the same by the model.
        sigma: relative error of the ratio to expect.
    """

    methods: tuple[str, str]
    source: str
    cases: tuple[str, ...]
    measured: float
    predicted: float
    sigma: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted / self.measured - 1

    @property
    def score(self) -> float:
        """Size of the error in units of the expected one."""
        return abs(math.log(self.predicted / self.measured)) / self.sigma

    @property
    def ordered(self) -> bool:
        """Whether the method that is predicted to be the faster one is."""
        return (self.predicted > 1) == (self.measured > 1)


def method_of(e: HeldOut) -> str:
    """A row's method, with the kind of its four-bit weights where that is not bitsandbytes'."""
    row = e.sample.step.row
    return row["method"] + (" (GPTQ)" if row["quant"] == "gptq4" else "")


def pairs(errors: Sequence[HeldOut]) -> list[Pair]:
    """All pairs of methods in all cells, adapters on the same modules; none whose halves two fits predicted."""
    cells: dict[tuple[str, ...], dict[tuple[str, str], list[HeldOut]]] = defaultdict(lambda: defaultdict(list))
    for e in errors:
        row = e.sample.step.row
        alike = (*e.sample.cell, row["kernels"], row["attention"], row["loss"])
        cells[alike][method_of(e), row["targets"]].append(e)
    found = []
    for runs in cells.values():
        for (first, on), (second, other) in itertools.permutations(runs, 2):
            ordered = METHODS.index(first) < METHODS.index(second) and (on == other or not on)
            a, b = runs[first, on], runs[second, other]
            if ordered and len({e.fold for e in (*a, *b)}) == 1:
                found.append(_pair((first, second), a, b))
    return found


def _pair(methods: tuple[str, str], a: Sequence[HeldOut], b: Sequence[HeldOut]) -> Pair:
    sample = a[0].sample
    measured = _mean(a, lambda e: e.sample.step.step_s) - _mean(b, lambda e: e.sample.step.step_s)
    predicted = _mean(a, lambda e: e.prediction.s) - _mean(b, lambda e: e.prediction.s)
    noise = math.hypot(sample.noise / math.sqrt(len(a)), b[0].sample.noise / math.sqrt(len(b)))
    sigma = math.hypot(ratio_sigma(a[0].prediction, b[0].prediction, a[0].coefficients), noise)
    return Pair(
        methods, sample.step.source, tuple(e.sample.step.row["case_id"] for e in (*a, *b)), math.exp(measured),
        math.exp(predicted), sigma,
    )  # fmt: skip


def _mean(rows: Sequence[HeldOut], seconds: Callable[[HeldOut], float]) -> float:
    """Mean logarithm of the seconds of a micro-step."""
    return statistics.fmean(math.log(seconds(e) / int(e.sample.step.row["grad_accum"] or 1)) for e in rows)


def widening_of_ratios(found: Sequence[Pair]) -> float:
    """The factor from an expected error of a ratio to a half-width: the conformal 90 % quantile of the scores."""
    return quantile([(p.score, 1.0) for p in found], 1.0)


def covered_ratios(found: Sequence[Pair]) -> Iterator[tuple[Pair, bool, float]]:
    """Each pair, whether its interval holds it, and the half-width, made of the pairs of other sources."""
    by_source = {s: widening_of_ratios([p for p in found if p.source != s]) for s in {p.source for p in found}}
    for p in found:
        yield p, p.score <= by_source[p.source], by_source[p.source] * p.sigma
