"""Peaks of many batch sizes, lengths and ranks at once, from one walk with symbolic sizes.

A walk with symbolic sizes serves every point at which it would have taken the same branches; the few walks that a grid
needs are found by their guards. Each result equals that of :func:`vramcalc.estimate` exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vramcalc import display
from vramcalc.errors import InvalidValue
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Gpu, Method, ModelSpec, Stack, TrainingSpec
from vramcalc.memory.calibration.calibration import interval_around
from vramcalc.memory.calibration.conformal import LEVEL
from vramcalc.memory.calibration.file import current
from vramcalc.memory.calibration.similarity import likeness
from vramcalc.memory.estimate import make_job
from vramcalc.memory.ledger import stages
from vramcalc.memory.walks import walk
from vramcalc.shadow.depth.counts import Counts, count
from vramcalc.shadow.engine.sizes import Symbols
from vramcalc.shadow.training.loop import Sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ints = npt.NDArray[np.int64]
_AXES = {"micro_batch_size": 1 << 20, "seq_len": 1 << 24, "rank": 1 << 20}
"""What may be an array, and the largest value of each."""


@dataclass(frozen=True)
class Grid:
    """Peaks over a grid; all arrays have one shape.

    Attributes:
        job: model, method, training and recipe; its own batch, length and rank are the first point's.
        micro_batch_size: of every point. [sequences]
        seq_len: of every point. [tokens]
        rank: of every point, None for methods that have none.
        allocated_bytes: peak of live tensors. [B]
        instant: what is going on at the peak.
        walks: symbolic walks it took.
    """

    job: Job
    micro_batch_size: Ints
    seq_len: Ints
    rank: Ints | None
    allocated_bytes: Ints
    instant: npt.NDArray[np.str_]
    walks: int

    @property
    def varying(self) -> tuple[str, ...]:
        """Which of ``seq_len``, ``micro_batch_size`` and ``rank`` differ, that with the most values first."""
        of = {"seq_len": self.seq_len, "micro_batch_size": self.micro_batch_size, "rank": self.rank}
        values = {name: len(np.unique(array)) for name, array in of.items() if array is not None}
        return tuple(name for name in sorted(values, key=lambda n: -values[n]) if values[name] > 1)

    def plot(self, gpu: str | Gpu | None = None, along: str | None = None, ax: Axes | None = None) -> Figure:
        """Peaks along one axis with their intervals, and the line of a GPU; see :func:`vramcalc.show.figures.grid`."""
        low, high = self.bounds(gpu)
        return display.figure(self, gpu=gpu, along=along, low_bytes=low, high_bytes=high, ax=ax)

    def bounds(self, gpu: str | Gpu | None = None, level: float = LEVEL) -> tuple[Ints, Ints]:
        """Ends of the interval of every peak, arrays of the grid's shape. [B]

        Args:
            gpu: whose generation counts, None for any.
            level: share of what is measured that the intervals hold.
        """
        card = None if gpu is None else catalog.gpu(gpu)
        like = likeness(self.job, card.architecture if card else None)
        context = current().context(card.architecture, card.capability) if card else current().context(None)
        low, high = np.empty_like(self.allocated_bytes), np.empty_like(self.allocated_bytes)
        for n, peak in np.ndenumerate(self.allocated_bytes):
            seq, tokens = int(self.seq_len[n]), int(self.seq_len[n] * self.micro_batch_size[n])
            here = replace(like, sizes={**like.sizes, "seq_len": seq, "tokens": tokens})
            ends = interval_around(int(peak), "allocated", here, current(), context, level)
            low[n], high[n] = int(ends.low), math.ceil(ends.high)
        return low, high

    def _repr_html_(self) -> str:
        return display.html(self)


def estimate_grid(
    model: str | ModelSpec,
    method: str | Method = "lora",
    *,
    training: TrainingSpec | None = None,
    stack: str | Stack = "transformers-trainer",
    gpu: str | Gpu | None = None,
    **settings: Any,
) -> Grid:
    """Peaks of live tensors for arrays of micro batch sizes, lengths and ranks.

    ``micro_batch_size``, ``seq_len`` and ``rank`` may be arrays of whole numbers, broadcast against each other as
    numpy does; everything else is as in :func:`vramcalc.estimate`.

    Raises:
        InvalidValue: an array of another type, out of range, or shapes that do not broadcast.
        UnknownName: as ``estimate``.
        Unsupported: as ``estimate``.
    """
    arrays = {n: _whole_numbers(n, v) for n in _AXES if (v := settings.pop(n, None)) is not None}
    first = {n: int(a.flat[0]) for n, a in arrays.items()}
    job, _ = make_job(model, method, training=training, stack=stack, gpu=gpu, **settings, **first)
    if job.training.seq_lens is not None:
        raise InvalidValue(
            "seq_lens", job.training.seq_lens, "no list, as a grid is made of single steps", "use seq_len"
        )
    sizes = Sizes.of(job)
    given = (("micro_batch_size", sizes.batch), ("seq_len", sizes.seq), ("rank", sizes.rank))
    try:
        full = np.broadcast_arrays(*(arrays.get(n, np.asarray(own, dtype=np.int64)) for n, own in given))
    except ValueError as err:
        shapes = {n: a.shape for n, a in arrays.items()}
        raise InvalidValue("arrays", shapes, "shapes that broadcast against each other") from err
    batch, seq, rank = (a.ravel() for a in full)
    peaks, names, walks = _evaluate(job, {"batch": batch, "seq": seq, "rank": rank})
    shape = full[0].shape
    return Grid(
        job,
        full[0].copy(),
        full[1].copy(),
        full[2].copy() if job.method.adapters else None,
        peaks.reshape(shape),
        names.reshape(shape),
        walks,
    )


def _whole_numbers(name: str, value: Any) -> Ints:
    try:
        array = np.asarray(value)
    except ValueError:
        array = np.empty(0)
    if array.dtype.kind not in "iu" or array.size == 0:
        raise InvalidValue(name, value, "a whole number or a non-empty array of them")
    if array.min() < 1 or array.max() > _AXES[name]:
        bad = array[(array < 1) | (array > _AXES[name])].flat[0]
        raise InvalidValue(name, int(bad), f"between 1 and {_AXES[name]:,}")
    return array.astype(np.int64)


def _evaluate(job: Job, values: dict[str, Ints]) -> tuple[Ints, npt.NDArray[np.str_], int]:
    n = len(values["batch"])
    peaks, names = np.zeros(n, dtype=np.int64), np.empty(n, dtype="U48")
    waiting = np.ones(n, dtype=bool)
    walks = 0
    while waiting.any():
        at = int(waiting.argmax())
        symbols = Symbols(**{k: int(v[at]) for k, v in values.items()})
        counts, labels = _count(job, symbols)
        mine = waiting & symbols.holds(values)
        peaks[mine], row = counts.peaks({k: v[mine] for k, v in values.items()})
        names[mine] = labels[row]
        waiting &= ~mine
        walks += 1
    return peaks, names, walks


def _count(job: Job, symbols: Symbols) -> tuple[Counts, npt.NDArray[np.str_]]:
    """Moments that may be the highest, and what is going on at each."""
    dims = symbols.dims
    program, _ = walk(job, Sizes(dims["batch"], dims["seq"], dims["rank"]))
    counts = count(program, skip=frozenset({"load", "states"}))
    named = stages(program)
    return counts, np.array([named[m][1] for m in counts.moments])
