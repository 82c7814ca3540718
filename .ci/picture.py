"""The picture of README.md: memory through one training step, as an SVG of plain shapes and words.

``python .ci/picture.py`` prints it. It is written here and not by matplotlib, whose output changes with its version, so
that ``.ci/generate.py --check`` can compare it byte for byte.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from html import escape
from itertools import pairwise

from vramcalc import estimate as estimate_of
from vramcalc.memory.estimate import Estimate
from vramcalc.memory.timeline import Timeline
from vramcalc.show.palette import GROUPS
from vramcalc.show.words import method_line
from vramcalc.units import GIB, gib

WIDTH, HEIGHT = 840, 400
LEFT, RIGHT, TOP, BOTTOM = 52, 150, 44, 56
"""Margins: of the axis, of the legend, of the title, of the parts' names."""
ACROSS, UP = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
INK, PALE = "#222222", "#E4E4E4"

PARTS = {
    "forward": (220, "forward"),
    "head and loss": (50, "loss"),
    "autocast ends": (8, ""),
    "outputs": (40, ""),
    "backward, head": (50, ""),
    "backward": (220, "backward"),
    "optimizer step": (50, "optimizer"),
    "zero_grad": (20, ""),
}
"""What each part of the step gets of the width, relative to the others, and its name below the axis."""


def step() -> str:
    """Full fine-tuning of a 1B model on a card of 24 GB: every group of memory has its turn."""
    return drawn(estimate_of("llama-3.2-1b", "full", gpu="rtx-3090", micro_batch_size=2))


def drawn(e: Estimate) -> str:
    """The timeline of an estimate for a GPU, and what the GPU has for it."""
    assert e.gpu is not None
    room = e.gpu.usable_bytes - e.context.n_bytes
    top = 1.1 * max(room, e.reserved_bytes)
    training = e.job.training
    title = (
        f"One training step of {e.job.model.name}: {method_line(e.job)}, "
        f"{training.micro_batch_size} x {training.seq_len:,} tokens"
    )
    shapes = [
        *_axis(top),
        *_stack(e.timeline, top),
        *_line(room, top, f"{e.gpu.name.removeprefix('NVIDIA ')}: {gib(room)} beside the CUDA context", "6 3"),
        *_line(e.reserved_bytes, top, f"reserved by torch's allocator: {gib(e.reserved_bytes)}", "2 3"),
        *_peak(e, top),
        *_names(e.timeline),
        *_legend(e),
        _text(LEFT, 24, title, size=14, weight="bold"),
    ]
    words = f"{title}. Highest at {gib(e.allocated_bytes)}, {e.peak.name}; {gib(room)} are there."
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img" aria-label="{escape(words)}">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#FFFFFF"/>', *shapes, "</svg>", ""])


def _stack(line: Timeline, top: float) -> Iterator[str]:
    """A polygon per group, the highest instant of every pixel."""
    columns = list(_columns(line))
    below = [0] * len(columns)
    for group, values in line.groups.items():
        above = [under + values[at] for under, (_, at) in zip(below, columns, strict=True)]
        if above != below:
            edge = [*_edge(columns, above, top), *reversed([*_edge(columns, below, top)])]
            points = " ".join(f"{x},{y}" for x, y in edge)
            yield f'<polygon fill="{GROUPS[group]}" points="{points}"/>'
        below = above


def _columns(line: Timeline) -> Iterator[tuple[int, int]]:
    """Each pixel across, and the event there with the largest sum."""
    for part, (left, right) in zip(line.parts, pairwise(_edges(line)), strict=True):
        width = right - left
        n = part.stop - part.start
        for pixel in range(width):
            first = part.start + pixel * n // width
            last = max(first + 1, part.start + (pixel + 1) * n // width)
            yield left + pixel, max(range(first, last), key=line.totals.__getitem__)


def _edges(line: Timeline) -> list[int]:
    """Where the parts begin, and where the last one ends."""
    shares = [PARTS[part.name][0] for part in line.parts]
    return [LEFT + round(ACROSS * sum(shares[:n]) / sum(shares)) for n in range(len(shares) + 1)]


def _edge(columns: Sequence[tuple[int, int]], values: Sequence[int], top: float) -> Iterator[tuple[int, int]]:
    """Corners of a line of steps; none where nothing changes."""
    heights = [_y(value, top) for value in values]
    yield columns[0][0], heights[0]
    for (x, _), (before, after) in zip(columns[1:], pairwise(heights), strict=True):
        if before != after:
            yield x, before
            yield x, after
    yield columns[-1][0] + 1, heights[-1]


def _y(n_bytes: float, top: float) -> int:
    return TOP + UP - round(UP * n_bytes / top)


def _axis(top: float) -> Iterator[str]:
    for tick in range(0, int(top / GIB) + 1, 4):
        y = _y(tick * GIB, top)
        yield f'<path stroke="{PALE}" d="M{LEFT} {y}H{LEFT + ACROSS}"/>'
        yield _text(LEFT - 8, y + 4, str(tick), anchor="end")
    yield _text(14, TOP + UP // 2, "live tensors [GiB]", anchor="middle", turn=True)


def _line(n_bytes: int, top: float, words: str, dashes: str) -> Iterator[str]:
    y = _y(n_bytes, top)
    yield f'<path stroke="{INK}" stroke-width="1.5" stroke-dasharray="{dashes}" d="M{LEFT} {y}H{LEFT + ACROSS}"/>'
    yield _text(LEFT + 4, y - 5, words)


def _peak(e: Estimate, top: float) -> Iterator[str]:
    x = next(x for x, at in _columns(e.timeline) if at == e.timeline.peak_index)
    y = _y(e.allocated_bytes, top)
    yield f'<path fill="{INK}" d="M{x} {y}l-5 -8h10z"/>'
    yield _text(x + 9, y + 16, f"peak {gib(e.allocated_bytes)}: {e.peak.name}", weight="bold")


def _names(line: Timeline) -> Iterator[str]:
    """Parts of the step below the axis."""
    y = TOP + UP
    for part, (left, right) in zip(line.parts, pairwise(_edges(line)), strict=True):
        name = PARTS[part.name][1]
        if part.layers:
            name = f"{name}, layers {part.layers[0]} to {part.layers[1]}"
        if name:
            yield f'<path stroke="{INK}" d="M{left + 2} {y + 8}H{right - 2}"/>'
            yield _text((left + right) // 2, y + 24, name, anchor="middle")
    yield _text(LEFT + ACROSS // 2, y + 44, "every allocation and free of the step, in order", anchor="middle")


def _legend(e: Estimate) -> Iterator[str]:
    """Names of the groups that can be seen."""
    least = e.allocated_bytes // UP
    shown = [group for group, values in e.timeline.groups.items() if max(values) > least]
    for n, group in enumerate(reversed(shown)):
        x, y = LEFT + ACROSS + 18, TOP + 20 + 22 * n
        yield f'<rect x="{x}" y="{y - 11}" width="13" height="13" fill="{GROUPS[group]}"/>'
        yield _text(x + 20, y, group)


def _text(x: int, y: int, words: str, *, anchor: str = "", size: int = 0, weight: str = "", turn: bool = False) -> str:
    extra = [("text-anchor", anchor), ("font-size", str(size or "")), ("font-weight", weight)]
    extra += [("transform", f"rotate(-90 {x} {y})" if turn else "")]
    given = "".join(f' {name}="{value}"' for name, value in extra if value)
    return f'<text x="{x}" y="{y}" fill="{INK}"{given}>{escape(words, quote=False)}</text>'


if __name__ == "__main__":
    sys.stdout.write(step())
