"""Errors of predicted step times, each by a fit that has not seen what it predicts.

The model says of each prediction how far off it expects to be. Fits without the row's model, its source or its GPU
show how far off such predictions really were, in units of what was expected; the factor that holds nine in ten of these
ratios turns an expected error into the half-width of an interval.

References:
    Lei et al., "Distribution-Free Predictive Inference for Regression", JASA 113(523), 2018, sec. 5.2: locally weighted
    conformal inference.
    Vovk, "Cross-conformal predictors", Ann. Math. Artif. Intell. 74, 2015.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from vramcalc.accuracy.time.regression import Sample, fit_factors, gpu_rates
from vramcalc.memory.calibration.conformal import quantile
from vramcalc.timing.roofline import KINDS, Coefficients, Prediction, own_factors, predict

LeftOut = Literal["model", "source", "GPU"]
LEFT_OUT: tuple[LeftOut, ...] = ("model", "source", "GPU")


@dataclass(frozen=True)
class HeldOut:
    """A prediction by a fit that has not seen what it predicts.

    Attributes:
        sample: the row.
        fold: what was left out, such as the model's id.
        prediction: by the fit without it.
        coefficients: that fit.
    """

    sample: Sample
    fold: str
    prediction: Prediction
    coefficients: Coefficients

    @property
    def log_error(self) -> float:
        """Logarithm of predicted over measured."""
        return math.log(self.prediction.s / self.sample.step.step_s)

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.prediction.s / self.sample.step.step_s - 1

    @property
    def sigma(self) -> float:
        """The error to expect, that of the measurement included."""
        return math.hypot(self.prediction.sigma, self.sample.noise)

    @property
    def score(self) -> float:
        """Size of the error in units of the expected one."""
        return abs(self.log_error) / self.sigma


def predicted(sample: Sample, c: Coefficients) -> Prediction:
    """A row's step by a fit."""
    least, gpu = dict(zip(KINDS, sample.least, strict=True)), sample.step.gpu
    own = own_factors(gpu, gpu_rates(gpu), c, {other: gpu_rates(other) for other in c.products})
    return predict(least, gpu, own, c)


def held_out(samples: Sequence[Sample], left_out: LeftOut) -> list[HeldOut]:
    """Predict each row by a fit without its model, its source or its GPU, in the order of the rows.

    Rows whose lengths are not known are among them: their ratios are good, their times are not.
    """
    keys = {"model": "model", "source": "source", "GPU": "gpu"}
    folds = [str(getattr(s.step, keys[left_out])) for s in samples]
    _, start = fit_factors(samples)
    found: dict[int, HeldOut] = {}
    for fold in sorted(set(folds)):
        c, _ = fit_factors([s for s, f in zip(samples, folds, strict=True) if f != fold], start)
        for i, s in enumerate(samples):
            if folds[i] == fold:
                found[i] = HeldOut(s, fold, predicted(s, c), c)
    return [found[i] for i in range(len(samples))]


def widening(errors: Iterable[HeldOut]) -> float:
    """The factor from an expected error to a half-width: the split conformal 90 % quantile of the scores."""
    return quantile([(e.score, 1.0) for e in errors], 1.0)


def widening_by_fold(errors: Iterable[HeldOut]) -> float:
    """As :func:`widening`, where every fold counts the same, however many rows it has."""
    rows = list(errors)
    sizes = Counter(e.fold for e in rows)
    return quantile([(e.score, 1 / sizes[e.fold]) for e in rows], 1.0)


def covered(errors: Sequence[HeldOut]) -> list[tuple[bool, float]]:
    """For each error, whether its interval holds it, and the interval's half-width as a logarithm.

    Each interval is made of the errors of the other folds.
    """
    by_fold = {fold: widening(e for e in errors if e.fold != fold) for fold in {e.fold for e in errors}}
    return [(e.score <= by_fold[e.fold], by_fold[e.fold] * e.sigma) for e in errors]
