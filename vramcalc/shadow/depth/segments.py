"""Segments of a tape: cut at its marks, and grouped where one pass goes over the decoder layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from vramcalc.shadow.engine.tape import Tape


@dataclass(frozen=True)
class Segment:
    """A stretch of events between two marks."""

    phase: str
    layer: int | None
    start: int
    stop: int

    @property
    def empty(self) -> bool:
        """Nothing happens in it."""
        return self.start == self.stop


def cut(tape: Tape) -> list[Segment]:
    """Segments of a tape, those without events included: they separate passes."""
    end = tape.marks[-1][0]
    marks = [m for m in tape.marks if m[0] <= end]
    return [Segment(phase, layer, start, stop) for (start, phase, layer), (stop, _, _) in pairwise(marks)]


def passes(segments: Sequence[Segment]) -> Iterator[list[int]]:
    """Indices of segments, grouped where one pass goes over the layers in one direction without repeating any."""
    members: list[int] = []
    direction = 0
    for index, s in enumerate(segments):
        if s.layer is None:
            if members:
                yield members
            yield [index]
            members, direction = [], 0
            continue
        if members:
            step = s.layer - segments[members[-1]].layer  # type: ignore[operator]
            if step * direction < 0 or step == 0 or s.phase != segments[members[-1]].phase:
                yield members
                members, direction = [], 0
            else:
                direction = step
        members.append(index)
    if members:
        yield members
