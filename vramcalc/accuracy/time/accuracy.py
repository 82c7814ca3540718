"""How far predicted step times are from published ones, each predicted by a fit that has not seen it."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vramcalc import tables
from vramcalc.accuracy.error_summary import error_summary
from vramcalc.accuracy.published_rows import Row
from vramcalc.accuracy.time.cells import steps_of
from vramcalc.accuracy.time.intervals import HeldOut, LeftOut, covered, held_out
from vramcalc.accuracy.time.pairs import Pair, covered_ratios, pairs
from vramcalc.accuracy.time.regression import sample
from vramcalc.accuracy.time.throughput import MeasuredStep, read_throughput

LEFT_OUT: tuple[LeftOut, ...] = ("model", "source")


@dataclass(frozen=True)
class TimeGroup:
    """Errors of the rows of one GPU and method; shares of the measured duration.

    Attributes:
        left_out: what the fit had not seen of each row: its model, or its source.
        gpu: id, or ``all``.
        method: ``full``, ``lora``, ``qlora``, with the kind of four-bit weights where it is not bitsandbytes'.
        count: rows; it and the next five are those of :class:`vramcalc.accuracy.error_summary.ErrorSummary`.
        coverage: share of the rows whose 90 % interval holds the measured duration.
        width: mean of upper end over prediction, less one.
    """

    left_out: str
    gpu: str
    method: str
    count: int
    mape: float
    median: float
    bias: float
    worst: float
    worst_case: str
    coverage: float | None
    width: float | None


@dataclass(frozen=True)
class PairGroup:
    """Errors of ratios of two methods' steps, on one GPU and the same tokens.

    Attributes:
        left_out: what the fits had not seen of either: the model, or the source.
        methods: the two, or ``all``; ratios are of the first to the second.
        count: pairs.
        median: of the sizes of the errors.
        bias: mean of the errors.
        worst: the largest error.
        worst_case: id of a row of it.
        ordered: share of the pairs of which the faster method is predicted to be it.
        coverage: share of the pairs whose 90 % interval, made of other sources, holds the measured ratio.
        width: mean of upper end over prediction, less one.
    """

    left_out: str
    methods: str
    count: int
    median: float
    bias: float
    worst: float
    worst_case: str
    ordered: float
    coverage: float
    width: float


@dataclass(frozen=True)
class TimedRow:
    """A row, and what fits that had not seen it say.

    Attributes:
        row: as read.
        step_s: measured duration of an optimizer step, None where the row says too little. [s]
        predicted: seconds, lower and upper end, by what was left out. [s]
        reason: why there is no prediction, empty where there is one.
    """

    row: Row
    step_s: float | None
    predicted: dict[str, tuple[float, float, float]]
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        found = {what: dict(zip(("s", "low_s", "high_s"), v, strict=True)) for what, v in self.predicted.items()}
        return {"case_id": self.row["case_id"], "step_s": self.step_s, "predicted": found, "reason": self.reason}


@dataclass(frozen=True)
class TimeAccuracy:
    """What a file of speeds says about predicted times.

    Attributes:
        groups: by what was left out, GPU and method; ``all`` first.
        pairs: by what was left out and the two methods; ``all`` first.
        apart: rows whose lengths are not known, which are good for ratios alone.
        unsupported: rows by reason.
        rows: every row.
    """

    groups: list[TimeGroup]
    pairs: list[PairGroup]
    apart: int
    unsupported: Counter[str]
    rows: list[TimedRow]

    def to_dict(self, *, rows: bool = False) -> dict[str, Any]:
        """Plain values; field names are stable."""
        found: dict[str, Any] = {
            "groups": [vars(g) for g in self.groups],
            "pairs": [vars(g) for g in self.pairs],
            "apart": self.apart,
            "unsupported": dict(self.unsupported.most_common()),
        }
        if rows:
            found["rows"] = [r.to_dict() for r in self.rows]
        return found


@dataclass(frozen=True)
class _Error:
    """One held-out prediction: how far off, whether its interval holds, and the half-width as a logarithm."""

    step: MeasuredStep
    error: float
    covered: bool | None
    width: float | None


def time_accuracy(path: str | Path) -> TimeAccuracy:
    """Predict every row of a file that can be predicted, without its model and without its source.

    The fits learn from the shipped rows and those of the file.

    Args:
        path: in the schema of :mod:`vramcalc.accuracy.time.throughput`.

    Raises:
        DataError: the file cannot be read.
    """
    asked = read_throughput(path)
    ids = {row["case_id"] for row in asked}
    shipped = [r for r in read_throughput(tables.directory() / "throughput.csv") if r["case_id"] not in ids]
    mine, reasons = steps_of(asked)
    learned = [sample(s) for s in (*mine, *steps_of(shipped)[0])]
    groups: list[TimeGroup] = []
    compared: list[PairGroup] = []
    said: dict[str, dict[str, tuple[float, float, float]]] = defaultdict(dict)
    for what in LEFT_OUT:
        found = held_out(learned, what)
        compared += _pair_groups(what, found, ids)
        every = [e for e in found if not e.sample.step.apart]
        errors = [(e, c) for e, c in zip(every, covered(every), strict=True) if e.sample.step.row["case_id"] in ids]
        groups += _groups(what, [_Error(e.sample.step, e.error, ok, width) for e, (ok, width) in errors])
        for e, (_, width) in errors:
            said[e.sample.step.row["case_id"]][what] = _interval(e.prediction.s, width)
    durations = {s.row["case_id"]: s.step_s for s in mine}
    timed = [TimedRow(r, durations.get(r["case_id"]), said[r["case_id"]], reasons.get(r["case_id"], "")) for r in asked]
    unsupported = Counter(r.partition(":")[0] for r in reasons.values())
    return TimeAccuracy(groups, compared, sum(s.apart for s in mine), unsupported, timed)


def _pair_groups(left_out: str, errors: Sequence[HeldOut], ids: Set[str]) -> Iterator[PairGroup]:
    """Errors of ratios, of pairs of which at least one row is in the file."""
    kinds: dict[str, list[tuple[Pair, bool, float]]] = defaultdict(list)
    for found in covered_ratios(pairs(errors)):
        if ids & set(found[0].cases):
            kinds["all"].append(found)
            kinds[" / ".join(found[0].methods)].append(found)
    for methods, group in kinds.items():
        worst = max((p for p, _, _ in group), key=lambda p: abs(p.error))
        yield PairGroup(
            left_out,
            methods,
            len(group),
            median=statistics.median(abs(p.error) for p, _, _ in group),
            bias=statistics.fmean(p.error for p, _, _ in group),
            worst=worst.error,
            worst_case=worst.cases[0],
            ordered=statistics.fmean(p.ordered for p, _, _ in group),
            coverage=statistics.fmean(held for _, held, _ in group),
            width=statistics.fmean(math.exp(width) - 1 for _, _, width in group),
        )


def _interval(seconds: float, half_width: float) -> tuple[float, float, float]:
    return seconds, seconds / math.exp(half_width), seconds * math.exp(half_width)


def _groups(left_out: str, errors: Sequence[_Error]) -> list[TimeGroup]:
    if not errors:
        return []
    return [_group(left_out, "all", "", errors), *_by_regime(left_out, errors)]


def _by_regime(left_out: str, errors: Sequence[_Error]) -> Iterator[TimeGroup]:
    regimes: dict[tuple[str, str], list[_Error]] = defaultdict(list)
    for e in errors:
        gptq = " (GPTQ)" if e.step.row["quant"] == "gptq4" else ""
        regimes[e.step.gpu, e.step.row["method"] + gptq].append(e)
    for gpu, method in sorted(regimes):
        yield _group(left_out, gpu, method, regimes[gpu, method])


def _group(left_out: str, gpu: str, method: str, errors: Sequence[_Error]) -> TimeGroup:
    held = [e.covered for e in errors if e.covered is not None]
    widths = [math.exp(e.width) - 1 for e in errors if e.width is not None]
    return TimeGroup(
        left_out,
        gpu,
        method,
        **error_summary([(e.error, e.step.row["case_id"]) for e in errors]),
        coverage=statistics.fmean(held) if held else None,
        width=statistics.fmean(widths) if widths else None,
    )
