"""How far off a group of predictions is, in a few numbers."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TypedDict


class ErrorSummary(TypedDict):
    """Errors of a group; shares of the measured value.

    Attributes:
        count: rows.
        mape: mean of the absolute errors.
        bias: mean of the errors.
        median: of the absolute errors.
        worst: largest absolute error, with its sign.
        worst_case: id of that row.
    """

    count: int
    mape: float
    bias: float
    median: float
    worst: float
    worst_case: str


def error_summary(errors: Sequence[tuple[float, str]]) -> ErrorSummary:
    """Sum up errors, at least one, each with the id of its row."""
    values = [error for error, _ in errors]
    worst, case = max(errors, key=lambda pair: abs(pair[0]))
    return ErrorSummary(
        count=len(errors),
        mape=statistics.fmean(map(abs, values)),
        bias=statistics.fmean(values),
        median=statistics.median(map(abs, values)),
        worst=worst,
        worst_case=case,
    )
