"""How far predictions are from published measurements."""

from __future__ import annotations

import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vramcalc.measurements import Prediction, predict, read_measurements


@dataclass(frozen=True)
class Group:
    """Errors of the rows of one stack, method and metric; shares of the measured value.

    Attributes:
        stack: trainer family.
        method: ``full``, ``lora``, ``qlora``.
        metric: what was measured.
        count: rows.
        mape: mean of the absolute errors.
        bias: mean of the errors.
        median: of the absolute errors.
        worst: largest absolute error, with its sign.
        worst_case: id of that row.
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


@dataclass(frozen=True)
class Accuracy:
    """What a file of measurements says about the predictions.

    Attributes:
        groups: of rows whose length is known, by stack, method and metric.
        apart: of rows of which only the cap on the length is known.
        unsupported: rows by reason.
        predictions: every row.
    """

    groups: list[Group]
    apart: list[Group]
    unsupported: Counter[str]
    predictions: list[Prediction]

    def to_dict(self, *, rows: bool = False) -> dict[str, Any]:
        """Plain values; field names are stable."""
        found: dict[str, Any] = {
            "groups": [vars(g) for g in self.groups],
            "apart": [vars(g) for g in self.apart],
            "unsupported": dict(self.unsupported.most_common()),
        }
        if rows:
            found["rows"] = [p.to_dict() for p in self.predictions]
        return found


def accuracy(path: str | Path) -> Accuracy:
    """Predict every row of a file that can be predicted.

    Args:
        path: in the schema of :mod:`vramcalc.measurements`.

    Raises:
        DataError: the file cannot be read.
    """
    predictions = list(predict(read_measurements(path)))
    known = [p for p in predictions if p.error is not None and p.row["seq_kind"] != "max_not_reached"]
    apart = [p for p in predictions if p.error is not None and p.row["seq_kind"] == "max_not_reached"]
    reasons = Counter(p.reason or "no value" for p in predictions if p.error is None)
    return Accuracy(list(_groups(known)), list(_groups(apart)), reasons, predictions)


def _groups(predictions: Sequence[Prediction]) -> Iterable[Group]:
    keys = sorted({_key(p) for p in predictions})
    for key in keys:
        mine = [(p.error or 0.0, p.row["case_id"]) for p in predictions if _key(p) == key]
        errors = [e for e, _ in mine]
        worst, case = max(mine, key=lambda pair: abs(pair[0]))
        yield Group(
            *key,
            count=len(mine),
            mape=statistics.fmean(map(abs, errors)),
            bias=statistics.fmean(errors),
            median=statistics.median(map(abs, errors)),
            worst=worst,
            worst_case=case,
        )


def _key(p: Prediction) -> tuple[str, str, str]:
    return p.row["stack"], p.row["method"], p.row["metric"]


def main() -> None:
    """``python -m vramcalc.accuracy``: the command ``vramcalc accuracy``."""
    from vramcalc.cli import main as run

    sys.argv[1:1] = ["accuracy"]
    run()


if __name__ == "__main__":
    main()
