"""Accuracy of step times on published speeds as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from vramcalc.accuracy.time.accuracy import PairGroup, TimeAccuracy, TimedRow, TimeGroup
from vramcalc.show.plaintext import counted, table

_HEADERS = ("GPU", "method", "rows", "MAPE", "median", "bias", "worst", "covered", "width", "worst row")

_PAIR_HEADERS = ("methods", "pairs", "median", "bias", "worst", "order", "covered", "width", "worst row")


def time_accuracy_text(found: TimeAccuracy, *, rows: bool = False) -> str:
    """Groups by what was left out, rows that are reported apart, unsupported rows by reason; on request every row."""
    parts = [f"{sum(1 for r in found.rows if r.predicted):,} of {len(found.rows):,} rows predicted, durations of steps"]
    parts += [
        f"by fits without the row's {what}\n{_groups([g for g in found.groups if g.left_out == what])}"
        for what in dict.fromkeys(g.left_out for g in found.groups)
    ]
    parts += [
        f"ratios of two methods on one GPU and the same tokens, by fits without their {what}\n"
        f"{_pairs([g for g in found.pairs if g.left_out == what])}"
        for what in dict.fromkeys(g.left_out for g in found.pairs)
    ]
    if found.apart:
        parts.append(f"of unknown lengths, in ratios alone: {found.apart:,} rows")
    if found.unsupported:
        parts.append(counted("unsupported", found.unsupported))
    if found.pairs:
        parts.append("order: pairs of which the faster method is predicted to be it")
    parts.append("covered: rows within the 90 % interval; width: how far its upper end is above the prediction")
    if rows:
        parts.append(_rows(found.rows))
    return "\n\n".join(parts)


def _groups(groups: Sequence[TimeGroup]) -> str:
    body = [
        (
            g.gpu,
            g.method,
            g.count,
            f"{100 * g.mape:.1f} %",
            f"{100 * g.median:.1f} %",
            f"{100 * g.bias:+.1f} %",
            f"{100 * g.worst:+.0f} %",
            "" if g.coverage is None else f"{100 * g.coverage:.0f} %",
            "" if g.width is None else f"+{100 * g.width:.0f} %",
            g.worst_case,
        )
        for g in groups
    ]
    return table(body, _HEADERS, right=tuple(range(2, 9)))


def _pairs(groups: Sequence[PairGroup]) -> str:
    body = [
        (
            g.methods,
            g.count,
            f"{100 * g.median:.1f} %",
            f"{100 * g.bias:+.1f} %",
            f"{100 * g.worst:+.0f} %",
            f"{100 * g.ordered:.0f} %",
            f"{100 * g.coverage:.0f} %",
            f"+{100 * g.width:.0f} %",
            g.worst_case,
        )
        for g in groups
    ]
    return table(body, _PAIR_HEADERS, right=tuple(range(1, 8)))


def _rows(rows: Sequence[TimedRow]) -> str:
    body = []
    for r in rows:
        measured = "" if r.step_s is None else f"{r.step_s:.3f} s"
        ends = [f"{s:.3f} s ({low:.3f} to {high:.3f})" for s, low, high in r.predicted.values()]
        body.append((r.row["case_id"], measured, *(ends or [r.reason, ""])))
    return table(body, ("row", "measured", "without its model", "without its source"), right=(1,))
