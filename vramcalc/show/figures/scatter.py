"""Predicted against measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vramcalc.accuracy.memory.measurements import quantity_of
from vramcalc.errors import InvalidValue
from vramcalc.show.figures.canvas import decades, drawing, in_gib, ink, to_gib, whole
from vramcalc.show.palette import GREY, METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from vramcalc.accuracy.memory.accuracy import Accuracy
    from vramcalc.accuracy.memory.measurements import PredictedRow

_MARKERS = {"blocks": ("o", "allocated"), "reserved": ("s", "reserved"), "process": ("^", "process or device")}
"""Of quantities, and their names."""
_OTHER = ("+", "within the step")


def accuracy(found: Accuracy) -> Figure:
    """Every predicted row against its measurement, and the error of each in percent.

    Rows of which only the cap on the length is known are hollow.

    Raises:
        InvalidValue: no row was predicted.
        MissingExtra: matplotlib is not installed.
    """
    rows = [p for p in found.predictions if p.error is not None]
    if not rows:
        raise InvalidValue("accuracy", len(found.predictions), "at least one predicted row")
    with drawing(None, width=10.5, height=4.6, columns=2) as (left, right):
        for on in (left, right):
            on.grid(visible=True, axis="both")
            in_gib(on.xaxis, "measured")
            on.set_xscale("log")
            decades(on.xaxis)
        _points(left, rows, lambda p: to_gib(p.predicted_bytes or 0))
        _points(right, rows, lambda p: 100 * (p.error or 0))
        _diagonal(left)
        right.axhline(0, color=ink(right), linewidth=1, zorder=1)
        right.set_ylabel("error of the prediction [%]")
        left.set_title(f"{len(rows):,} of {len(found.predictions):,} rows predicted")
        right.set_title("the same rows: predicted / measured - 1")
        right.legend(handles=_key(rows, ink(right)), loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return whole(left)


def _points(on: Axes, rows: list[PredictedRow], y: Callable[[PredictedRow], float]) -> None:
    """One series per method and metric."""
    for method, metric in sorted({(p.row["method"], p.row["metric"]) for p in rows}):
        mine = [p for p in rows if (p.row["method"], p.row["metric"]) == (method, metric)]
        colour = METHODS.get(method, GREY)
        marker, _ = _MARKERS.get(quantity_of(metric), _OTHER)
        hollow = [p.row["seq_kind"] == "max_not_reached" for p in mine]
        on.scatter(
            [to_gib(p.value_bytes or 0) for p in mine],
            [y(p) for p in mine],
            s=26,
            marker=marker,
            **_inks(colour, hollow, line=marker == "+"),
            linewidths=1,
            label=f"{method}, {metric.removeprefix('phase:').replace('_', ' ')}",
        )


def _key(rows: list[PredictedRow], ink: str) -> list[Line2D]:
    """What colours and markers mean; a series for each pair of them would leave no room for the picture."""
    from matplotlib.lines import Line2D

    methods = [m for m in METHODS if any(p.row["method"] == m for p in rows)]
    markers = dict.fromkeys(_MARKERS.get(quantity_of(p.row["metric"]), _OTHER) for p in rows)
    order = [m for m in (*_MARKERS.values(), _OTHER) if m in markers]
    of_methods = [Line2D([], [], marker="o", linestyle="", color=METHODS[m], label=m) for m in methods]
    return [*of_methods, *(Line2D([], [], marker=m, linestyle="", color=ink, label=name) for m, name in order)]


def _inks(colour: str, hollow: list[bool], *, line: bool) -> dict[str, Any]:
    """Colours of edges and insides; no alpha for both, which would paint an inside that is none."""
    ink = (colour, 0.75)
    return (
        {"c": [ink] * len(hollow)}
        if line
        else {"facecolors": ["none" if h else ink for h in hollow], "edgecolors": ink}
    )


def _diagonal(on: Axes) -> None:
    """Equal scales, and where predicted equals measured."""
    on.set_yscale("log")
    decades(on.yaxis)
    in_gib(on.yaxis, "predicted")
    low, high = min(on.get_xlim()[0], on.get_ylim()[0]), max(on.get_xlim()[1], on.get_ylim()[1])
    on.plot([low, high], [low, high], color=ink(on), linewidth=1, zorder=1)
    on.set(xlim=(low, high), ylim=(low, high))
