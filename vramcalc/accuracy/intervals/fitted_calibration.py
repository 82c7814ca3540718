"""A calibration made of measured runs: published ones and profiles.

Terms are simple and physical and at least zero: the middle of what was measured, every recipe counting alike. A term is
added where it helps with recipes, or models, that its fit has not seen.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vramcalc import tables
from vramcalc.accuracy.intervals.families import stretches
from vramcalc.accuracy.memory.measurements import predict, quantity_of, read_measurements
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Gpu
from vramcalc.memory.calibration.calibration import (
    POOLS,
    UNSPLIT,
    Calibration,
    ContextTerm,
    MeasuredRecipe,
    Pool,
    Tried,
)
from vramcalc.memory.calibration.conformal import quantile
from vramcalc.memory.calibration.similarity import likeness, recipe_id
from vramcalc.memory.context import documented
from vramcalc.memory.estimate import estimate_job
from vramcalc.profiling.row_figures import as_measurement, job_of
from vramcalc.profiling.rows import ProfileRow
from vramcalc.units import MIB

_POOL_OF: dict[str, Pool] = {"blocks": "allocated", "reserved": "reserved", "snapshot": "snapshot"}


@dataclass
class _Runs:
    """What was measured of one recipe, as it is collected; runs by id, so that their figures stay together."""

    job: Job
    gpu: Gpu
    sources: set[str] = field(default_factory=set)
    errors: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    predicted: dict[str, int] = field(default_factory=dict)
    reserved: dict[str, int] = field(default_factory=dict)
    process: dict[str, int] = field(default_factory=dict)

    def add(self, quantity: str, measured: int, predicted: int, run: str) -> None:
        if quantity == "process":
            self.process[run] = measured
            self.predicted.setdefault("reserved", predicted)
            return
        pool = _POOL_OF[quantity]
        self.errors[pool].append(math.log(measured / predicted))
        if pool != "snapshot":
            self.predicted[pool] = predicted
        if pool == "reserved":
            self.reserved[run] = measured

    def made(self, name: str) -> MeasuredRecipe:
        architecture = self.gpu.architecture or ""
        if self.process and not self.reserved:
            # Of a run whose process alone was seen, what it has beyond the context is what was reserved.
            context, predicted = documented(architecture, self.gpu.capability).n_bytes, self.predicted["reserved"]
            beyond = [n - context for n in self.process.values()]
            self.errors["reserved"] = [math.log(n / predicted) for n in beyond if n > 0]
        # Beside a predicted reserved peak the error of that prediction, gigabytes at times, would pass for a context.
        beside = [n - self.reserved[run] for run, n in self.process.items() if run in self.reserved]
        return MeasuredRecipe(
            recipe_id=name,
            model=self.job.model.name,
            gpu=self.gpu.gpu_id,
            architecture=architecture,
            sources=tuple(sorted(self.sources)),
            like=likeness(self.job, architecture),
            errors={pool: tuple(self.errors[pool]) for pool in POOLS if self.errors.get(pool)},
            predicted_bytes=self.predicted,
            process_bytes=tuple(self.process.values()),
            context_bytes=tuple(max(0, n) for n in beside),
        )


def published(path: Path | None = None) -> list[MeasuredRecipe]:
    """Recipes of a table of measurements, by default the shipped one."""
    found: dict[str, _Runs] = {}
    rows = read_measurements(path or tables.directory() / "measurements.csv")
    for p in predict(rows, calibrated=False):
        known = p.row["metric"] != "oom" and p.row["seq_kind"] != "max_not_reached"
        if p.job is None or p.gpu is None or not p.value_bytes or not p.predicted_bytes or not known:
            continue
        if not (p.row["transformers_version"] or p.row.get("torch_version")):
            # Part of the error is that neither release is known, and no interval may rest on it.
            continue
        runs = found.setdefault(recipe_id(p.job, p.gpu), _Runs(p.job, p.gpu))
        source = p.row.get("source", "").split("@")[0]
        runs.sources.add(source)
        run = p.row.get("run_id") or p.row["case_id"]
        runs.add(quantity_of(p.row["metric"]), p.value_bytes, p.predicted_bytes, run)
        runs.predicted[UNSPLIT] = p.unsplit_bytes
    return [runs.made(name) for name, runs in sorted(found.items())]


def profiled(rows: Iterable[ProfileRow]) -> list[MeasuredRecipe]:
    """Recipes of profiles; runs without a GPU, or that ended early, say nothing about memory."""
    found: dict[str, _Runs] = {}
    for n, row in enumerate(rows):
        _, metrics = as_measurement(row)
        gpu = row.machine.gpu
        if gpu is None or "allocated_max" not in metrics or "reserved_max" not in metrics:
            continue
        job = job_of(row)
        e = estimate_job(job, gpu)
        runs = found.setdefault(recipe_id(job, gpu), _Runs(job, gpu, {"profile"}))
        runs.add("blocks", int(metrics["allocated_max"]), e.block_bytes, str(n))
        runs.add("reserved", int(metrics["reserved_max"]), e.reserved_bytes, str(n))
        runs.predicted[UNSPLIT] = e.walks.unsplit_bytes
        if "process_used" in metrics:
            runs.add("process", int(metrics["process_used"]), e.reserved_bytes, str(n))
    return [runs.made(name) for name, runs in sorted(found.items())]


def merged(recipes: Sequence[MeasuredRecipe], more: Sequence[MeasuredRecipe]) -> list[MeasuredRecipe]:
    """Recipes, those of the same id put together."""
    found = {r.recipe_id: r for r in recipes}
    for r in more:
        other, both = found.get(r.recipe_id), r
        if other is not None:
            pools = [pool for pool in POOLS if pool in r.errors or pool in other.errors]
            both = replace(
                other,
                sources=tuple(sorted({*other.sources, *r.sources})),
                errors={pool: other.errors.get(pool, ()) + r.errors.get(pool, ()) for pool in pools},
                predicted_bytes={**r.predicted_bytes, **other.predicted_bytes},
                process_bytes=other.process_bytes + r.process_bytes,
                context_bytes=other.context_bytes + r.context_bytes,
            )
        found[r.recipe_id] = both
    return [found[name] for name in sorted(found)]


# -- the fit -----------------------------------------------------------------------------------------------------------


def fit_calibration(
    recipes: Sequence[MeasuredRecipe], *, tried: bool = True, stretch: Mapping[str, float] | None = None
) -> Calibration:
    """Contexts, the errors of the recipes, and on request terms put to the test.

    Args:
        recipes: that were measured.
        tried: put terms to the test.
        stretch: of intervals of families that nobody measured; by default found by leaving out each family.
    """
    contexts, tests = _contexts(recipes)
    terms = (*tests, *_candidates(recipes)) if tried else ()
    return Calibration(tuple(recipes), contexts, terms, stretches(recipes) if stretch is None else stretch)


def middle(weighted: Iterable[tuple[float, float]]) -> float:
    """The weighted median."""
    return quantile(weighted, 0.0, 0.5)


def _contexts(recipes: Sequence[MeasuredRecipe]) -> tuple[dict[str, ContextTerm], list[Tried]]:
    """Contexts of the generations where the fit helps with recipes it has not seen."""
    found: dict[str, ContextTerm] = {}
    tests = []
    for architecture in sorted({r.architecture for r in recipes if r.context_bytes and r.architecture}):
        own = [r for r in recipes if r.architecture == architecture and r.context_bytes]
        n_bytes = _context(own)
        test = _test(
            own, f"context on {architecture}", "process", n_bytes / MIB, "MiB",
            lambda r: r.recipe_id,
            lambda r, size: _process_error(r, size * MIB),
            lambda rest: _context(rest) / MIB if rest else None,
            documented(architecture, own[0].capability).n_bytes / MIB,
        )  # fmt: skip
        tests.append(test)
        if test.kept:
            runs = [n for r in own for n in r.context_bytes]
            sources = tuple(sorted({s for r in own for s in r.sources}))
            found[architecture] = ContextTerm(n_bytes, min(runs), max(runs), len(runs), len(own), sources)
    return found, tests


def _context(recipes: Sequence[MeasuredRecipe]) -> int:
    return int(middle((n, 1 / len(r.context_bytes)) for r in recipes for n in r.context_bytes))


def _process_error(r: MeasuredRecipe, context_bytes: float) -> float:
    return _mean(abs(math.log(n / (r.predicted_bytes["reserved"] + context_bytes))) for n in r.process_bytes)


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _candidates(recipes: Sequence[MeasuredRecipe]) -> Iterator[Tried]:
    """Terms that could stand for what the walk does not see; each is held against models it was not fitted to."""
    candidates: tuple[tuple[str, Pool, str, Callable[[MeasuredRecipe], bool]], ...] = (
        ("workspaces of cuBLAS and cuBLASLt beyond those of the walk", "allocated", "MiB", lambda r: True),
        ("blocks that are not split while 4-bit weights load", "allocated", "MiB", _qlora),
        ("allocator spread", "reserved", "of the reserved memory", lambda r: True),
        ("allocator spread where attention is eager", "reserved", "of the reserved memory", _eager),
    )  # fmt: skip
    for name, pool, unit, applies in candidates:
        own = [r for r in recipes if pool in r.errors and applies(r)]
        if own:
            share = unit != "MiB"
            yield _test(
                own, name, pool, _size(own, pool, share), unit,
                lambda r: r.model,
                lambda r, size, pool=pool, share=share: _error_with(r, pool, size, share),  # type: ignore[misc]
                lambda rest, pool=pool, share=share: _size(rest, pool, share) if rest else 0.0,  # type: ignore[misc]
                0.0,
            )  # fmt: skip


def _qlora(r: MeasuredRecipe) -> bool:
    return r.like.regime[0] == "qlora"


def _eager(r: MeasuredRecipe) -> bool:
    return r.like.regime[1] == "eager"


def _size(recipes: Sequence[MeasuredRecipe], pool: Pool, share: bool) -> float:
    """The middle of what is missing, at least nothing: MiB, or a share of what is predicted."""
    missing = [
        (math.expm1(e) * (1 if share else r.predicted_bytes[pool] / MIB), 1 / len(r.errors[pool]))
        for r in recipes
        for e in r.errors[pool]
    ]
    return max(0.0, middle(missing))


def _error_with(r: MeasuredRecipe, pool: Pool, size: float, share: bool) -> float:
    added = math.log1p(size if share else size * MIB / r.predicted_bytes[pool])
    return _mean(abs(e - added) for e in r.errors[pool])


def _test(
    recipes: Sequence[MeasuredRecipe],
    name: str,
    pool: str,
    size: float,
    unit: str,
    fold: Callable[[MeasuredRecipe], str],
    error: Callable[[MeasuredRecipe, float], float],
    refit: Callable[[list[MeasuredRecipe]], float | None],
    start: float,
) -> Tried:
    """Errors without a term, and with the term fitted to the other folds."""
    with_it = []
    for r in recipes:
        found = refit([other for other in recipes if fold(other) != fold(r)])
        with_it.append(error(r, start if found is None else found))
    return Tried(name, pool, size, unit, _mean(error(r, start) for r in recipes), _mean(with_it))
