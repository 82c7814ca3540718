"""How far predictions are from published measurements."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vramcalc import display
from vramcalc.accuracy.error_summary import error_summary
from vramcalc.accuracy.memory.measured_jobs import TRAINERS, capacity_bytes
from vramcalc.accuracy.memory.measurements import PredictedRow, predict, read_measurements
from vramcalc.accuracy.published_rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Key = tuple[str, str, str]
"""Stack, method and metric of a group."""


@dataclass(frozen=True)
class Group:
    """Errors of the rows of one stack, method and metric; shares of the measured value.

    Attributes:
        stack: trainer family.
        method: ``full``, ``lora``, ``qlora``.
        metric: what was measured.
        count: rows; it and the next five are those of :class:`vramcalc.accuracy.error_summary.ErrorSummary`.
        covered: share of the rows within their 90 % intervals, made without runs of their recipes.
        width: mean of the intervals from end to end, over what is predicted.
    """

    stack: str
    method: str
    metric: str
    count: int
    mape: float
    bias: float
    median: float
    worst: float
    worst_case: str
    covered: float
    width: float


@dataclass(frozen=True)
class Accuracy:
    """What a file of measurements says about the predictions.

    Attributes:
        groups: of rows whose length and release of transformers are known, by stack, method and metric.
        apart: of rows of which only the cap on the length is known.
        unsupported: rows by reason.
        out_of_memory: rows of runs that ended out of memory and are predicted, and how many of those are predicted to
            need more than their GPU has.
        hugging_face: rows of full fine-tuning, LoRA and 4-bit QLoRA on one GPU by transformers, TRL or PEFT, and how
            many of them are predicted.
        predictions: every row.
        unnamed: of rows that do not name their release, which is then taken for the likeliest of the run's date.
        metrics: the same rows as ``groups``, by metric alone.
    """

    groups: list[Group]
    apart: list[Group]
    unsupported: Counter[str]
    predictions: list[PredictedRow] = field(repr=False)
    out_of_memory: tuple[int, int] = (0, 0)
    hugging_face: tuple[int, int] = (0, 0)
    unnamed: list[Group] = field(default_factory=list)
    metrics: list[Group] = field(default_factory=list)

    def to_dict(self, *, rows: bool = False) -> dict[str, Any]:
        """Plain values; field names are stable."""
        found: dict[str, Any] = {
            "groups": [vars(g) for g in self.groups],
            "apart": [vars(g) for g in self.apart],
            "unnamed": [vars(g) for g in self.unnamed],
            "metrics": [vars(g) for g in self.metrics],
            "unsupported": dict(self.unsupported.most_common()),
            "out_of_memory": {"predicted": self.out_of_memory[0], "foreseen": self.out_of_memory[1]},
            "hugging_face": {"rows": self.hugging_face[0], "predicted": self.hugging_face[1]},
        }
        if rows:
            found["rows"] = [p.to_dict() for p in self.predictions]
        return found

    def plot(self) -> Figure:
        """Predicted against measured, and the errors; see :func:`vramcalc.show.figures.accuracy`."""
        return display.figure(self)

    def _repr_html_(self) -> str:
        return display.html(self)


def accuracy(path: str | Path) -> Accuracy:
    """Predict every row of a file that can be predicted.

    Args:
        path: in the schema of :mod:`vramcalc.accuracy.memory.measurements`.

    Raises:
        DataError: the file cannot be read.
    """
    predictions = list(predict(read_measurements(path)))
    lengths = [p for p in predictions if p.error is not None and p.row["seq_kind"] != "max_not_reached"]
    known, unnamed = [p for p in lengths if not p.assumed], [p for p in lengths if p.assumed]
    apart = [p for p in predictions if p.error is not None and p.row["seq_kind"] == "max_not_reached"]
    reasons = Counter(p.reason or "no value" for p in predictions if p.error is None and not _ran_out(p))
    ends = [p for p in predictions if _ran_out(p)]
    foreseen = sum((p.predicted_bytes or 0) > capacity_bytes(p.row) for p in ends)
    ours = [p for p in predictions if _of_hugging_face(p.row)]
    return Accuracy(
        list(_groups(known)),
        list(_groups(apart)),
        reasons,
        predictions,
        unnamed=list(_groups(unnamed)),
        metrics=list(_groups(known, lambda p: ("any", "any", p.row["metric"]))),
        out_of_memory=(len(ends), foreseen),
        hugging_face=(len(ours), sum(p.predicted_bytes is not None for p in ours)),
    )


def _ran_out(p: PredictedRow) -> bool:
    return p.row["metric"] == "oom" and p.predicted_bytes is not None


def _of_hugging_face(row: Row) -> bool:
    method = row["method"] in ("full", "lora") or (row["method"] == "qlora" and row["quant"] in ("nf4", "fp4"))
    return row["n_gpus"] == "1" and row["stack"] in TRAINERS and method


def _groups(
    predictions: Sequence[PredictedRow], key_of: Callable[[PredictedRow], Key] | None = None
) -> Iterable[Group]:
    key_of = key_of or _key
    for key in sorted({key_of(p) for p in predictions}):
        mine = [p for p in predictions if key_of(p) == key]
        yield Group(
            *key,
            **error_summary([(p.error or 0.0, p.row["case_id"]) for p in mine]),
            covered=statistics.fmean(float(p.covered) for p in mine),
            width=statistics.fmean(p.width for p in mine),
        )


def _key(p: PredictedRow) -> Key:
    return p.row["stack"], p.row["method"], p.row["metric"]
