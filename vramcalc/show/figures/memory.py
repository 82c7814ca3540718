"""Memory through one training step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

from vramcalc.show.figures.canvas import drawing, in_gib, ink, limit_label, to_gib, whole
from vramcalc.show.palette import GROUPS
from vramcalc.show.words import method_line
from vramcalc.units import gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vramcalc.memory.estimate import Estimate
    from vramcalc.memory.timeline import Part, Timeline

_WIDTHS = {
    "forward": 8.0,
    "head and loss": 3.0,
    "autocast ends": 0.5,
    "outputs": 3.0,
    "backward, head": 3.0,
    "backward": 10.0,
    "optimizer step": 3.2,
    "zero_grad": 2.0,
}
"""Of the parts on the axis: a dozen events at the head may decide the peak, and thousands in the layers not."""
_UNNAMED = ("autocast ends",)
_CROWDED = 8
"""Parts beyond which their names stand upright."""
_FAR = 2.0
"""A limit further above the peak than this is told in words: its line would flatten what the picture is about."""


def timeline(estimate: Estimate, *, ax: Axes | None = None) -> Figure:
    """Live tensors through a step, stacked by group: every allocation and every free, the peak marked.

    The axis is the order of events and not time: the parts of the step have fixed widths, and the events of a part are
    spread over it evenly.

    Args:
        estimate: of the job.
        ax: axes to draw on, None for a new picture.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    found = estimate.timeline
    x = list(_places(found))
    with drawing(ax, width=9.6) as (on,):
        values = [[to_gib(n) for n in found.groups[g]] for g in found.groups]
        colours = [GROUPS[g] for g in found.groups]
        on.stackplot(x, values, step="post", colors=colours, labels=list(found.groups), linewidth=0)
        _limits(on, estimate)
        _parts(on, found, x)
        _peak(on, estimate, x)
        in_gib(on.yaxis, "live tensors")
        on.set_title(f"{estimate.job.model.name}: {method_line(estimate.job)}")
        handles, labels = on.get_legend_handles_labels()
        on.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return whole(on)


def _places(found: Timeline) -> Iterator[float]:
    """Where on the axis each value begins."""
    left = 0.0
    for part in found.parts:
        width = _WIDTHS[part.name]
        n = part.stop - part.start
        yield from (left + width * k / n for k in range(n))
        left += width
    yield left


def _parts(on: Axes, found: Timeline, x: list[float]) -> None:
    """Name the parts below the axis, and part them."""
    edges = [x[p.start] for p in found.parts] + [x[-1]]
    for edge in edges[1:-1]:
        on.axvline(edge, color=on.get_facecolor(), linewidth=0.8, zorder=1.5)
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    crowded = len(found.parts) > _CROWDED
    words = [p.name if crowded else _words(p) for p in found.parts]
    named = [(c, w) for c, w, p in zip(centres, words, found.parts, strict=True) if p.name not in _UNNAMED]
    on.set_xticks([c for c, _ in named], [w for _, w in named], fontsize=8, rotation=90 if crowded else 0)
    on.tick_params(axis="x", length=0)
    on.set_xlim(0, x[-1])


def _words(part: Part) -> str:
    if part.layers:
        return f"{part.name}\nlayers {part.layers[0]} to {part.layers[1]}"
    return re.sub(r"(?<=,) |(?<=_)| (?=and)|(?<=optimizer) ", "\n", part.name)


def _limits(on: Axes, estimate: Estimate) -> None:
    """What the allocator reserves, what the GPU has for it, and an axis from zero with room for the words."""
    peak, reserved = estimate.allocated_bytes, estimate.reserved_bytes
    on.axhline(to_gib(reserved), color=ink(on), linewidth=1.2, linestyle=":", label=f"reserved {gib(reserved)}")
    top = max(peak, reserved)
    if estimate.gpu is not None:
        room = max(estimate.gpu.usable_bytes - estimate.context.n_bytes, 0)
        label = limit_label(estimate.gpu, room, "\nbeside the CUDA context")
        shown = room <= _FAR * peak
        on.axhline(to_gib(room) if shown else -1, color=ink(on), linewidth=1.6, label=label if shown else f"({label})")
        top = max(top, room if shown else 0)
    on.set_ylim(0, to_gib(top) * 1.16)


def _peak(on: Axes, estimate: Estimate, x: list[float]) -> None:
    """A mark at the peak; its words stand above all lines, where nothing crosses them."""
    place, height = x[estimate.timeline.peak_index], to_gib(estimate.allocated_bytes)
    right = place < 0.6 * x[-1]
    on.plot([place], [height], marker="v", color=ink(on), markersize=7, zorder=5)
    on.annotate(
        f" peak {gib(estimate.allocated_bytes)} \n {estimate.peak.name} ",
        (place, height),
        xytext=(place, 0.99),
        textcoords=on.get_xaxis_transform(),
        ha="left" if right else "right",
        va="top",
        fontsize=9,
        color=ink(on),
        arrowprops={
            "arrowstyle": "-",
            "color": ink(on),
            "linewidth": 0.8,
            "relpos": (0 if right else 1, 0),
            "shrinkA": 0,
            "shrinkB": 0,
        },
    )
