"""Fit the timing model to ``tables/throughput.csv`` and write ``tables/timing.json``; ``--check`` only compares.

Run as ``python -m vramcalc.accuracy.time.generate``.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from vramcalc import tables
from vramcalc.accuracy.time.intervals import LEFT_OUT, HeldOut, held_out, widening, widening_by_fold
from vramcalc.accuracy.time.pairs import pairs, widening_of_ratios
from vramcalc.accuracy.time.regression import Sample, fit_factors, samples
from vramcalc.accuracy.time.throughput import read_throughput
from vramcalc.memory.calibration.conformal import quantile
from vramcalc.timing.fitted_factors import Checked, Spreads, TimingTable, agree, timing_table

_RUN = (
    "source", "gpu", "model", "method", "rank", "targets", "quant", "kernels", "attention", "checkpointing",
    "weights_dtype", "autocast", "seq_kind", "torch_version", "transformers_version",
)  # fmt: skip
"""Columns of one run of a recipe on one machine; its rows differ in batch, length and accumulation."""


def made(found: Sequence[Sample]) -> TimingTable:
    """Fit, leave out, and take the spreads."""
    coefficients, _ = fit_factors(found)
    every = {what: held_out(found, what) for what in LEFT_OUT}
    without_model, without_source = pairs(every["model"]), pairs(every["source"])
    model, source, gpu = ([e for e in every[what] if not e.sample.step.apart] for what in LEFT_OUT)
    measured = [e for e in source if e.prediction.gpu_measured]
    spreads = Spreads(
        measured=max(widening(model), widening(measured)),
        other=widening_by_fold(gpu),
        repeated=quantile(_differences(model, lambda e: (e.sample.step.source, *e.sample.recipe), _between_runs), 0.0),
        scaled=quantile(_differences(model, lambda e: tuple(e.sample.step.row[c] for c in _RUN), _between_sizes), 0.0),
        ratio=max(widening_of_ratios(without_model), widening_of_ratios(without_source)),
    )
    methods: dict[str, Counter[str]] = defaultdict(Counter)
    timed = [s for s in found if not s.step.apart]
    for s in timed:
        methods[s.step.gpu][s.step.row["method"]] += 1
    checked = Checked(
        rows=len(timed),
        sources=len({s.step.source for s in timed}),
        longest=max(s.step.work.longest for s in timed),
        micro_tokens=max(s.step.work.micro_tokens for s in timed),
        methods={gpu: dict(sorted(rows.items())) for gpu, rows in sorted(methods.items())},
        pairs=len(without_source),
    )
    return TimingTable(coefficients, spreads, checked)


def _between_runs(a: HeldOut, b: HeldOut) -> float | None:
    """How far two runs of one recipe are apart, as a logarithm."""
    return abs(math.log(a.sample.step.step_s / b.sample.step.step_s))


def _between_sizes(a: HeldOut, b: HeldOut) -> float | None:
    """How far a prediction is off that is scaled by another size's measurement."""
    return None if a.sample.recipe == b.sample.recipe else abs(a.log_error - b.log_error)


def _differences(
    errors: Sequence[HeldOut],
    key: Callable[[HeldOut], tuple[str, ...]],
    apart: Callable[[HeldOut, HeldOut], float | None],
) -> Iterator[tuple[float, float]]:
    """Differences within groups, and weights that make every group count the same."""
    groups: dict[tuple[str, ...], list[HeldOut]] = defaultdict(list)
    for e in errors:
        groups[key(e)].append(e)
    for rows in groups.values():
        found = [d for i, a in enumerate(rows) for b in rows[:i] if (d := apart(a, b)) is not None]
        yield from ((d, 1 / len(found)) for d in found)


def main() -> int:
    """Write the table, or say that it is stale."""
    table = made(samples(read_throughput(tables.directory() / "throughput.csv")))
    if "--check" not in sys.argv[1:]:
        (tables.directory() / "timing.json").write_text(table.to_json(), encoding="utf-8")
        return 0
    if agree(table, timing_table()):
        return 0
    remedy = "run 'python -m vramcalc.accuracy.time.generate' and commit the result"
    print(f"tables/timing.json is stale: {remedy}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
