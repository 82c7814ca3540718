"""What all pictures share: where matplotlib comes in, axes in GiB, the line of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vramcalc.errors import MissingExtra
from vramcalc.inputs.stack import Gpu
from vramcalc.units import GIB, gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure


@contextmanager
def drawing(ax: Axes | None, width: float = 9.0, height: float = 4.5, columns: int = 1) -> Iterator[list[Axes]]:
    """Axes to draw on, in the project's style unless they are the caller's own.

    Args:
        ax: the caller's, None for a new picture.
        width: of a new picture. [inch]
        height: of a new picture. [inch]
        columns: axes of a new picture, side by side.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    if ax is not None:
        yield [ax]
        return
    try:
        from matplotlib import style

        from vramcalc.show.figures.picture import STYLE, Picture
    except ImportError as err:
        raise MissingExtra("notebook", "pictures are drawn with matplotlib", ["matplotlib"]) from err
    figure = Picture(figsize=(width, height))
    with style.context(["default", STYLE]):
        yield [figure.add_subplot(1, columns, n + 1) for n in range(columns)]


def ink(on: Axes) -> str:
    """Colour for lines and words about limits: that of the axes' own words, whatever their style."""
    return str(on.yaxis.label.get_color())


def whole(ax: Axes) -> Figure:
    """The figure that axes belong to, sub-figures left."""
    from matplotlib.figure import Figure

    found = ax.get_figure(root=True)
    assert isinstance(found, Figure)
    return found


def in_gib(axis: Axis, what: str) -> None:
    """Name an axis whose values are in GiB."""
    axis.set_label_text(f"{what} [GiB]")


def decades(axis: Axis) -> None:
    """Ticks of a logarithmic axis: 1, 2, 5 in every decade, in plain digits."""
    axis.get_major_locator().set_params(subs=(1, 2, 5))  # type: ignore[call-arg]
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def to_gib(n_bytes: float) -> float:
    """Bytes on an axis in GiB."""
    return n_bytes / GIB


def limit_label(gpu: Gpu, room_bytes: int, without: str = "") -> str:
    """``"rtx-4090: 23.99 GiB usable"``."""
    from vramcalc.show.words import room

    return f"{gpu.gpu_id}: {gib(room_bytes)} {room(gpu)}{without}"
