"""Pictures: memory through a step, ledgers side by side, grids, accuracy, cost against time.

They need the extra ``notebook``. Every function returns a figure of matplotlib that shows itself in a notebook and
saves itself with ``savefig``; no global state of pyplot is touched. Background and text are set together, so that a
picture reads the same on a light and on a dark page. Colours are those of :mod:`vramcalc.show.palette`.
"""

from vramcalc.show.figures.costs import Run, pareto
from vramcalc.show.figures.curves import grid
from vramcalc.show.figures.memory import timeline
from vramcalc.show.figures.scatter import accuracy
from vramcalc.show.figures.stacks import ledgers

__all__ = ["Run", "accuracy", "grid", "ledgers", "pareto", "timeline"]
