"""A figure of matplotlib that carries its own style."""

from __future__ import annotations

import io
from typing import Any

from matplotlib import style
from matplotlib.backend_bases import RendererBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

INK = "#222222"
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "font.size": 10,
    "grid.color": "#E4E4E4",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
    "savefig.dpi": "figure",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


class Picture(Figure):
    """Drawn with Agg whatever the backend is, on an opaque background, in the style it was made in."""

    def __init__(self, **settings: Any) -> None:
        with style.context(["default", STYLE]):
            super().__init__(**settings)
            FigureCanvasAgg(self)

    def draw(self, renderer: RendererBase) -> None:
        """Draw; what matplotlib makes only now, such as further ticks, gets the same style."""
        with style.context(["default", STYLE]):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        canvas = FigureCanvasAgg(self)
        canvas.draw()  # type: ignore[no-untyped-call]
        pixels = canvas.buffer_rgba()  # type: ignore[no-untyped-call]
        image = Image.frombuffer("RGBA", canvas.get_width_height(), pixels).convert("RGB")
        stream = io.BytesIO()
        # Few colours: a palette makes the notebooks that hold the picture a third as large.
        image.quantize(256, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        return stream.getvalue()
