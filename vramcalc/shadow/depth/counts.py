"""A program as a matrix: how many tensors of each size are alive at each moment that could be the highest.

Which tensors live when does not depend on their sizes, so the peak of every configuration that a walk is valid for is
the largest of a few sums ``counts @ sizes``. Moments at which fewer tensors of every size are alive than at another
one can never win and are left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vramcalc.shadow.depth.program import Program
from vramcalc.shadow.engine.sizes import Dim, evaluate, product
from vramcalc.shadow.engine.tape import ITEMSIZE, Shape

Ints = npt.NDArray[np.int64]
Values = dict[str, Ints]
_CHUNK = 4096


@dataclass(frozen=True)
class Counts:
    """Moments that may be the highest.

    Attributes:
        moments: ``(instance of the program)`` of each row.
        fixed: bytes of tensors whose size is no symbol, by row. [B]
        counts: tensors alive, by row and symbolic size.
        shapes: of the symbolic sizes: shape and bytes per element.
    """

    moments: list[int]
    fixed: Ints
    counts: Ints
    shapes: list[tuple[Shape, int]]

    def peaks(self, values: Values) -> tuple[Ints, Ints]:
        """Highest total at every point, and the row it is reached at. [B], [1]

        Sums run in float64, which is exact below 2**53 bytes.
        """
        n = len(next(iter(values.values())))
        sizes = np.empty((len(self.shapes), n))
        for i, (shape, itemsize) in enumerate(self.shapes):
            n_bytes = evaluate(product(shape), values) * itemsize
            sizes[i] = -(-n_bytes // 512) * 512
        best, row = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int64)
        counts, fixed = self.counts.astype(np.float64), self.fixed.astype(np.float64)[:, None]
        for start in range(0, n, _CHUNK):
            totals = counts @ sizes[:, start : start + _CHUNK]
            totals += fixed
            row[start : start + _CHUNK] = winner = totals.argmax(axis=0)
            best[start : start + _CHUNK] = totals[winner, np.arange(totals.shape[1])]
        return best, row


def count(program: Program, *, skip: frozenset[str] = frozenset()) -> Counts:
    """Count the live tensors of a program at its local maxima.

    Args:
        program: of a walk with symbols.
        skip: phases that cannot hold the peak that is asked for.
    """
    columns, shapes, fixed_sizes = _columns(program)
    delta = np.zeros((len(program.events) + 1, len(shapes)), dtype=np.int32)
    fixed = np.zeros(len(program.events) + 1, dtype=np.int64)
    for index, event in enumerate(program.events):
        sign, birth = (1, event) if event >= 0 else (-1, ~event)
        if columns[birth] >= 0:
            delta[index + 1, columns[birth]] = sign
        else:
            fixed[index + 1] = sign * fixed_sizes[birth]
    running, running_fixed = delta.cumsum(axis=0, dtype=np.int32), fixed.cumsum()
    tops = _local_maxima(program)
    rows, rows_fixed, moments = [], [], []
    base, base_fixed = np.zeros(len(shapes), dtype=np.int64), 0
    ends = _first_and_last(program)
    for number, instance in enumerate(program.instances):
        s = program.segments[instance.segment]
        if number in ends and s.phase not in skip:
            at = tops[instance.segment]
            rows.append(base + running[at] - running[s.start])
            rows_fixed.append(base_fixed + running_fixed[at] - running_fixed[s.start])
            moments += [number] * len(at)
        base = base + running[s.stop] - running[s.start]
        base_fixed += int(running_fixed[s.stop] - running_fixed[s.start])
    kept = _undominated(np.concatenate(rows), np.concatenate(rows_fixed))
    return Counts(
        [moments[i] for i in kept],
        np.concatenate(rows_fixed)[kept],
        np.concatenate(rows).astype(np.int64)[kept],
        shapes,
    )


def _columns(program: Program) -> tuple[list[int], list[tuple[Shape, int]], list[int]]:
    """By birth: its column among symbolic sizes or -1; the sizes; bytes of those that are not symbolic."""
    index: dict[tuple[Shape, int], int] = {}
    columns, fixed = [], []
    for birth in program.births:
        itemsize = ITEMSIZE[birth.dtype]
        if any(isinstance(n, Dim) for n in birth.shape):
            columns.append(index.setdefault((birth.shape, itemsize), len(index)))
            fixed.append(0)
        else:
            columns.append(-1)
            fixed.append(-(-int(product(birth.shape)) * itemsize // 512) * 512)
    return columns, list(index), fixed


def _local_maxima(program: Program) -> list[npt.NDArray[np.intp]]:
    """By segment: numbers of events after which the total can only fall next."""
    found = []
    for s in program.segments:
        at = [
            i + 1
            for i in range(s.start, s.stop)
            if program.events[i] >= 0 and (i + 1 == s.stop or program.events[i + 1] < 0)
        ]
        found.append(np.array(at or [s.start], dtype=np.intp))
    return found


def _first_and_last(program: Program) -> set[int]:
    """Instances that can win: totals are linear in the repeats of a segment, so only its first and last one."""
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for number, instance in enumerate(program.instances):
        first.setdefault(instance.segment, number)
        last[instance.segment] = number
    return set(first.values()) | set(last.values())


def _undominated(rows: Ints, fixed: Ints) -> list[int]:
    """Indices of rows that no other row equals or exceeds everywhere."""
    full = np.concatenate([rows, fixed[:, None]], axis=1)
    order = np.argsort(-full.sum(axis=1), kind="stable")
    kept: list[int] = []
    stack = np.empty((0, full.shape[1]), dtype=full.dtype)
    for i in order:
        if len(kept) and (stack >= full[i]).all(axis=1).any():
            continue
        kept.append(int(i))
        stack = np.concatenate([stack, full[i][None]])
    return kept
