"""The factors of the timing model, fitted to published speeds.

The fit is the most probable set of factors: each starts from what is to be expected of such a kernel, with a spread,
and moves where the rows say so. Errors are relative, and beyond 6 % a row pulls no harder (Huber). Rows that repeat a
recipe share the weight of one, and a source of many recipes counts as the square root of their number. The host's
factor of each machine is fitted and then left out of predictions: nobody knows the host of a machine before it is
rented. So is the factor that the rows of a cell share: what is left to tell apart within a cell is the method, so that
ratios of methods and times come from one fit.

References:
    Huber, "Robust Estimation of a Location Parameter", Ann. Math. Statist. 35(1), 1964.
    MacKay, "Bayesian Interpolation", Neural Computation 4(3), 1992: the most probable parameters and their covariance.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vramcalc.accuracy.published_rows import Row
from vramcalc.accuracy.time.cells import Cell, cell_of, steps_of
from vramcalc.accuracy.time.throughput import MeasuredStep
from vramcalc.errors import DataError, Unsupported
from vramcalc.inputs import catalog
from vramcalc.timing.roofline import (
    CELL_SPREAD,
    CORNER,
    GPU_SPREAD,
    HOST_SPREAD,
    KINDS,
    NOISE,
    Coefficients,
    Rates,
    least_seconds,
    rates,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

SINGLE_STEP = 0.05
"""Relative spread of single timed steps: that of the repeated runs of one recipe on a T4."""
_BEND = 1.5
"""Where the pull of a row stops growing, in units of the expected error."""
_UNKNOWN_SPREAD = 3.0
"""Of a cell whose level says nothing, as its lengths are not known: standard deviation of the logarithm."""
_DOMINANT = 20.0
"""Recipes from which on those of a source share the weight of fewer."""
_ROUNDS, _LARGEST_STEP, _DONE = 60, 0.5, 1e-5

_RECIPE = (
    "model", "method", "rank", "targets", "modules_to_save", "weights_dtype", "autocast", "quant", "kbit_prepare",
    "micro_batch", "seq_len", "seq_kind", "tokens_per_step", "grad_accum", "checkpointing", "attention", "loss",
    "kernels", "gpu",
)  # fmt: skip
"""Columns that make two rows the same recipe; versions and dates do not."""


@dataclass(frozen=True)
class Sample:
    """A row as the fit sees it.

    Attributes:
        step: the row.
        least: seconds by quantity at the rates of its GPU.
        recipe: what it has in common with its repetitions.
    """

    step: MeasuredStep
    least: tuple[float, ...]
    recipe: tuple[str, ...]

    @property
    def noise(self) -> float:
        """Relative error of the measurement itself: of one step that was timed once, and of many."""
        return SINGLE_STEP if self.step.row["steps"] == "1" else 0.0

    @property
    def cell(self) -> Cell:
        """What it has in common with rows of other methods."""
        return cell_of(self.step.row)


def gpu_rates(gpu: str) -> Rates:
    """Rates of a GPU by id.

    Raises:
        UnknownName: no GPU has that id.
        Unsupported: its rates are not known.
    """
    found = rates(catalog.gpu_row(gpu))
    if found is None:
        raise Unsupported(
            f"the speed of {gpu} is not known: its row of tables/gpus.csv lacks a tensor rate, a float32 rate or the "
            "memory's bandwidth; name a GPU with all of them, or give a measured step"
        )
    return found


def sample(step: MeasuredStep) -> Sample:
    """A row with its least times."""
    least = least_seconds(step.work.quantities, gpu_rates(step.gpu))
    return Sample(step, tuple(least[name] for name in KINDS), tuple(step.row[c] for c in _RECIPE))


def samples(rows: Sequence[Row]) -> list[Sample]:
    """Rows that can be predicted."""
    return [sample(step) for step in steps_of(rows)[0]]


def _tempered(found: Sequence[Sample]) -> list[float]:
    """Weights by which a source of many recipes counts as the square root of their number."""
    recipes = {(s.step.source, s.recipe) for s in found}
    n = Counter(source for source, _ in recipes)
    return [min(1.0, math.sqrt(_DOMINANT / n[s.step.source])) for s in found]


def fit_factors(found: Sequence[Sample], start: Array | None = None) -> tuple[Coefficients, Array]:
    """The most probable factors.

    Args:
        found: rows to learn from.
        start: where to begin, from an earlier fit; None, at what is to be expected.

    Returns:
        The factors, and where a later fit may begin.

    Raises:
        DataError: no rows.
    """
    if not found:
        raise DataError("no row of the table can be predicted: there is nothing to fit the timing model to")
    problem = _Problem(found)
    at = problem.solve(start)
    return problem.coefficients(at), at


class _Problem:
    """Rows as arrays. Unknowns are logarithms of factors: of quantities, of GPUs, of machines."""

    def __init__(self, found: Sequence[Sample]) -> None:
        import numpy as np

        times = Counter(s.recipe for s in found)
        self.gpus = sorted({s.step.gpu for s in found})
        self.machines = sorted({(s.step.source, s.step.gpu) for s in found})
        self.least = np.array([s.least for s in found])
        self.gpu = np.array([self.gpus.index(s.step.gpu) for s in found])
        self.machine = np.array([self.machines.index((s.step.source, s.step.gpu)) for s in found])
        keys = [s.cell for s in found]
        self.cells = sorted(set(keys))
        self.cell = np.array([self.cells.index(key) for key in keys])
        self.log_s = np.log([s.step.step_s for s in found])
        self.weight = np.array([w / times[s.recipe] for s, w in zip(found, _tempered(found), strict=True)])
        self.noise = np.array([math.hypot(NOISE, s.noise) for s in found])
        kinds = list(KINDS.values())
        self.tensor = np.array([k.limit == "tensor cores" for k in kinds])
        self.host = np.array([k.term == "host" for k in kinds])
        self.once = np.array([k.term == "per step" for k in kinds])
        factors = [0.0] * (len(self.gpus) + len(self.machines) + len(self.cells))
        self.prior = np.array([*(float(np.log(k.prior)) for k in kinds), *factors])
        apart = {s.cell for s in found if s.step.apart}
        spreads = [GPU_SPREAD] * len(self.gpus) + [HOST_SPREAD] * len(self.machines)
        spreads += [_UNKNOWN_SPREAD if cell in apart else CELL_SPREAD for cell in self.cells]
        self.spread = np.array([*(k.spread for k in kinds), *spreads])

    def solve(self, start: Array | None) -> Array:
        import numpy as np

        at = self.prior.copy()
        if start is not None:
            at[: len(KINDS)] = start[: len(KINDS)]
        for _ in range(_ROUNDS):
            move = np.clip(-self.moves(at)[0], -_LARGEST_STEP, _LARGEST_STEP)
            if np.abs(move).max() < _DONE:
                break
            cost = self.cost(at)
            while self.cost(at + move) > cost and np.abs(move).max() > _DONE:
                move = move / 2
            at = at + move
        return at

    def cost(self, at: Array) -> float:
        """Negative logarithm of the posterior."""
        import numpy as np

        error = np.abs(self.predict(at)[0] - self.log_s) / self.noise
        huber = np.where(error <= _BEND, error**2 / 2, _BEND * (error - _BEND / 2))
        return float(self.weight @ huber + (((at - self.prior) / self.spread) ** 2).sum() / 2)

    def moves(self, at: Array) -> tuple[Array, Array]:
        """Newton's step, and the covariance of the factors, what the cells add to it included.

        Each row belongs to one cell, so that the cells' part of the second derivative is diagonal and is eliminated.
        """
        import numpy as np

        n = len(self.prior) - len(self.cells)
        second, shared, own, gradient = self.curvature(at)
        covariance = np.linalg.inv(second - shared.T @ (shared / own[:, None]))
        factors = covariance @ (gradient[:n] - shared.T @ (gradient[n:] / own))
        return np.concatenate([factors, (gradient[n:] - shared @ factors) / own]), covariance

    def curvature(self, at: Array) -> tuple[Array, Array, Array, Array]:
        """Derivatives of the negative logarithm of the posterior.

        Returns:
            Second (Gauss-Newton): of the factors, of cells and factors, of the cells; first: of all.
        """
        import numpy as np

        n, cells = len(self.prior) - len(self.cells), len(self.cells)
        log_t, slope = self.predict(at)
        error, slope = (log_t - self.log_s) / self.noise, slope / self.noise[:, None]
        pull = self.weight * np.where(np.abs(error) <= _BEND, 1, _BEND / np.maximum(np.abs(error), 1e-12))
        second = slope.T @ (pull[:, None] * slope) + np.diag(1 / self.spread[:n] ** 2)
        shared = np.zeros((cells, n))
        np.add.at(shared, self.cell, (pull / self.noise)[:, None] * slope)
        own = np.bincount(self.cell, pull / self.noise**2, cells) + 1 / self.spread[n:] ** 2
        first = [slope.T @ (pull * error), np.bincount(self.cell, pull * error / self.noise, cells)]
        return second, shared, own, np.concatenate(first) + (at - self.prior) / self.spread**2

    def predict(self, at: Array) -> tuple[Array, Array]:
        """Logarithm of each row's time, and its slope in each factor; in its cell's it is 1."""
        import numpy as np

        n, k, g, m = len(self.least), len(KINDS), len(self.gpus), len(self.machines)
        own_gpu, own_host = np.exp(at[k : k + g])[self.gpu], np.exp(at[k + g : k + g + m])[self.machine]
        parts = self.least * np.exp(at[:k])
        parts = parts * np.where(self.tensor, own_gpu[:, None], 1) * np.where(self.host, own_host[:, None], 1)
        host, once = parts[:, self.host].sum(1), parts[:, self.once].sum(1)
        device = parts[:, ~self.host & ~self.once].sum(1)
        longer = (device**CORNER + host**CORNER) ** (1 / CORNER)
        total = longer + once
        share = np.where(
            self.host, ((host / longer) ** (CORNER - 1))[:, None], ((device / longer) ** (CORNER - 1))[:, None]
        )
        share[:, self.once] = 1
        slope = parts * share / total[:, None]
        extra = np.zeros((n, g + m))
        extra[np.arange(n), self.gpu] = slope[:, self.tensor].sum(1)
        extra[np.arange(n), g + self.machine] = slope[:, self.host].sum(1)
        return np.log(total) + at[k + g + m :][self.cell], np.hstack([slope, extra])

    def coefficients(self, at: Array) -> Coefficients:
        import numpy as np

        values = [float(v) for v in np.exp(at)]
        n = len(KINDS) + len(self.gpus)
        covariance = self.moves(at)[1][:n, :n]
        return Coefficients(
            dict(zip(KINDS, values, strict=False)),
            dict(zip(self.gpus, values[len(KINDS) :], strict=False)),
            tuple(tuple(float(v) for v in row) for row in covariance),
        )
