"""The peak against length, batch or rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vramcalc.errors import InvalidValue
from vramcalc.inputs import catalog
from vramcalc.inputs.stack import Gpu
from vramcalc.memory.calibration.file import current
from vramcalc.show.figures.canvas import drawing, in_gib, ink, limit_label, to_gib, whole
from vramcalc.show.palette import BLUE
from vramcalc.show.words import method_line
from vramcalc.units import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vramcalc.memory.grid import Grid

AXES = {"seq_len": "tokens per sequence", "micro_batch_size": "micro batch [sequences]", "rank": "LoRA rank"}
"""What may be drawn along, and its words on the axis."""
MOST_LINES = 10
_ABOVE = 2.0
"""How much of what does not fit is shown; lines go on beyond."""


def grid(
    found: Grid,
    *,
    gpu: str | Gpu | None = None,
    along: str | None = None,
    low_bytes: Any = None,
    high_bytes: Any = None,
    ax: Axes | None = None,
) -> Figure:
    """Peaks of live tensors along one of the grid's axes, a line for every value of another one.

    Args:
        found: a grid in which one or two of length, batch and rank differ.
        gpu: draws what it has for tensors: its usable memory less the CUDA context. What is above cannot run; below,
            the allocator takes a share that only an estimate tells.
        along: ``seq_len``, ``micro_batch_size`` or ``rank``; by default that with the most values.
        low_bytes: lower ends of an interval, an array of the grid's shape. [B]
        high_bytes: upper ends. [B]
        ax: axes to draw on, None for a new picture.

    Raises:
        InvalidValue: nothing differs, all three do, or more lines than can be told apart.
        UnknownName: no such GPU.
        MissingExtra: matplotlib is not installed.
    """
    device = None if gpu is None else catalog.gpu(gpu)
    along, across = _axes(found, along)
    with drawing(ax) as (on,):
        _curves(on, found, along, across, [low_bytes, high_bytes])
        if device is not None:
            _limit(on, device)
        on.set_ylim(bottom=0)
        on.set_xlim(left=0)
        on.xaxis.set_major_formatter("{x:,.0f}")
        on.set_xlabel(AXES[along])
        in_gib(on.yaxis, "peak of live tensors")
        on.set_title(f"{found.job.model.name}: {method_line(found.job)}")
        handles, labels = on.get_legend_handles_labels()
        on.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return whole(on)


def _curves(on: Axes, found: Grid, along: str, across: str | None, ends: list[Any]) -> None:
    lines = _lines(found, along, across)
    low, high = (None if e is None else np.broadcast_to(e, found.allocated_bytes.shape).ravel() for e in ends)
    for (value, at), colour in zip(lines, _shades(len(lines)), strict=True):
        x = getattr(found, along).ravel()[at]
        label = f"{value:,} {_unit(across, value)}" if across else "live tensors"
        on.plot(x, found.allocated_bytes.ravel()[at] / GIB, "o-", color=colour, markersize=3.5, label=label)
        if low is not None and high is not None:
            on.fill_between(x, low[at] / GIB, high[at] / GIB, color=colour, alpha=0.2, linewidth=0)


def _limit(on: Axes, gpu: Gpu) -> None:
    """What the GPU has for tensors."""
    room = max(gpu.usable_bytes - current().context(gpu.architecture, gpu.capability).n_bytes, 0)
    label = limit_label(gpu, room, "\nbeside the CUDA context")
    on.axhline(to_gib(room), color=ink(on), linewidth=1.6, label=label)
    on.set_ylim(top=min(on.get_ylim()[1], _ABOVE * to_gib(room)))


def _axes(found: Grid, along: str | None) -> tuple[str, str | None]:
    """What to draw along, and what tells the lines apart."""
    differ = found.varying
    if not 1 <= len(differ) <= 2:
        raise InvalidValue("grid", found.allocated_bytes.shape, f"one or two of {', '.join(AXES)} that differ")
    if along is None:
        along = differ[0]
    elif along not in differ:
        raise InvalidValue("along", along, f"one of {', '.join(differ)}")
    across = next((n for n in differ if n != along), None)
    n_lines = len(set(getattr(found, across).ravel().tolist())) if across else 1
    if n_lines > MOST_LINES:
        raise InvalidValue(f"values of {across}", n_lines, f"at most {MOST_LINES}, one line each", "draw fewer")
    return along, across


def _lines(found: Grid, along: str, across: str | None) -> list[tuple[int, list[int]]]:
    """For every value across, the points of its line in order."""
    x = getattr(found, along).ravel().tolist()
    of = getattr(found, across).ravel().tolist() if across else [0] * len(x)
    order = sorted(range(len(x)), key=lambda n: x[n])
    return [(value, [n for n in order if of[n] == value]) for value in sorted(set(of))]


def _shades(n: int) -> Sequence[Any]:
    """Of one scale from light to dark: the lines are values of one quantity. Cividis (Nuñez et al., PLOS ONE 2018)."""
    from matplotlib import colormaps

    return [colormaps["cividis"](0.8 * (1 - k / max(n - 1, 1))) for k in range(n)] if n > 1 else [BLUE]


def _unit(across: str, value: int) -> str:
    words = {"seq_len": "tokens", "micro_batch_size": "sequences", "rank": "rank"}[across]
    return words[:-1] if value == 1 and words.endswith("s") else words
