"""Cost against time."""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vramcalc.errors import InvalidValue
from vramcalc.show.figures.canvas import decades, drawing, ink, whole
from vramcalc.show.palette import BLUE, GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Run(NamedTuple):
    """One way to run a job.

    Attributes:
        label: what stands beside the point.
        hours: how long it takes.
        usd: what it costs.
        low_hours, high_hours, low_usd, high_usd: ends of the intervals, None where there are none.
    """

    label: str
    hours: float
    usd: float
    low_hours: float | None = None
    high_hours: float | None = None
    low_usd: float | None = None
    high_usd: float | None = None


def pareto(runs: Iterable[Sequence[Any]], *, priced_on: datetime.date | str, ax: Axes | None = None) -> Figure:
    """Cost against time; those that no other beats in both are joined and dark.

    Args:
        runs: each a :class:`Run` or its fields in order.
        priced_on: date of the oldest price, or ``as given``; shown with the dollars.
        ax: axes to draw on, None for a new picture.

    Raises:
        InvalidValue: no runs, or a time or cost that is no positive number within its interval.
        MissingExtra: matplotlib is not installed.
    """
    rows = [_checked(run) for run in runs]
    if not rows:
        raise InvalidValue("runs", rows, "at least one run")
    best = front(rows)
    with drawing(ax, height=5) as (on,):
        on.grid(visible=True, axis="both")
        for row in rows:
            _point(on, row, BLUE if row in best else GREY, dark=row in best)
        on.plot([r.hours for r in best], [r.usd for r in best], color=BLUE, alpha=0.5, linewidth=1.2,
                drawstyle="steps-post", zorder=1)  # fmt: skip
        _scale(on, rows)
        on.set_xlabel("time [hours]")
        on.set_ylabel(f"cost [US dollars, prices: {priced_on}]")
        on.set_title("joined: those that no other beats in both")
        return whole(on)


def front(rows: Iterable[Run]) -> list[Run]:
    """Those that no other is at least as good as in both and better in one, the fastest first."""
    found: list[Run] = []
    for row in sorted(rows, key=lambda r: (r.hours, r.usd)):
        if not found or row.usd < found[-1].usd:
            found.append(row)
    return found


def _checked(given: Sequence[Any]) -> Run:
    try:
        row = Run(*given)
    except TypeError as err:
        raise InvalidValue("run", given, f"{', '.join(Run._fields)} in order; the last four may be left out") from err
    for name, low, n, high in (
        ("hours", row.low_hours, row.hours, row.high_hours),
        ("usd", row.low_usd, row.usd, row.high_usd),
    ):
        ends = [n if low is None else low, n, n if high is None else high]
        numbers = all(isinstance(e, (int, float)) and math.isfinite(e) and e > 0 for e in ends)
        if not numbers or sorted(ends) != ends:
            raise InvalidValue(f"{name} of {row.label}", tuple(ends), "positive numbers: low, value, high in order")
    return row


def _point(on: Axes, row: Run, colour: str, *, dark: bool) -> None:
    on.errorbar(
        row.hours,
        row.usd,
        xerr=_whiskers(row.low_hours, row.hours, row.high_hours),
        yerr=_whiskers(row.low_usd, row.usd, row.high_usd),
        fmt="o",
        color=colour,
        elinewidth=1,
        alpha=1 if dark else 0.5,
        zorder=3 if dark else 2,
    )
    # Below and left of those that none beats there is nothing; above and right of the others there is room more often.
    x, y, side, edge = (-5, -4, "right", "top") if dark else (5, 4, "left", "bottom")
    on.annotate(row.label, (row.hours, row.usd), xytext=(x, y), textcoords="offset points", ha=side, va=edge,
                fontsize=9, color=ink(on) if dark else GREY, zorder=4)  # fmt: skip


def _whiskers(low: float | None, n: float, high: float | None) -> list[list[float]] | None:
    if low is None and high is None:
        return None
    return [[n - (n if low is None else low)], [(n if high is None else high) - n]]


def _scale(on: Axes, rows: Sequence[Run]) -> None:
    """Room for every interval, and for the words beside the points."""
    scale, low, high = _limits([n for r in rows for n in (r.low_hours or r.hours, r.hours, r.high_hours or r.hours)])
    on.set_xscale(scale)
    on.set_xlim(low, high)
    scale_y, low, high = _limits([n for r in rows for n in (r.low_usd or r.usd, r.usd, r.high_usd or r.usd)])
    on.set_yscale(scale_y)
    on.set_ylim(low, high)
    for axis, kind in ((on.xaxis, scale), (on.yaxis, scale_y)):
        if kind == "log":
            decades(axis)


def _limits(values: Sequence[float]) -> tuple[Literal["log", "linear"], float, float]:
    """Scale and ends of an axis: logarithmic where values differ by more than a factor of ten, else from zero."""
    low, high = min(values), max(values)
    if high > 10 * low:
        return "log", low / 1.6, high * 1.8
    return "linear", 0, high * 1.2
