"""The first tensor that a trace has alive and a prediction lacks, or the other way round."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING

from vramcalc.inputs.job import Job
from vramcalc.memory.walks import walk
from vramcalc.shadow.training.loop import Sizes
from vramcalc.shadow.training.requests import with_workspace_at_product
from vramcalc.units import round_up

if TYPE_CHECKING:
    from vramcalc.profiling.trace.recorder import Allocation
    from vramcalc.profiling.trace.result import Trace

SMALL = 2048
"""Scalars and indices up to this many bytes are where an estimate takes liberties: they change no total. [B]"""
_WINDOW = 400
"""Rows after the first difference that decide which side it is on."""


@dataclass(frozen=True)
class LiveRow:
    """A tensor alive on one side.

    Attributes:
        side: ``trace`` or ``prediction``: who has it alive, where the other does not.
        module: whose it is; the autograd node where no module was running.
        what: operator, or parameter.
        shape: of the tensor.
        dtype: of the tensor.
        n_bytes: as requested. [B]
        phase: in which it was made.
    """

    side: str
    module: str
    what: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    phase: str


def first_difference(trace: Trace, at: int, job: Job, lengths: Sequence[int]) -> LiveRow | None:
    """The first row in order of birth that only one side has alive.

    Args:
        trace: the real libraries.
        at: events of the trace up to the moment to look at.
        job: what is predicted.
        lengths: of the optimizer steps that were traced. [tokens]

    Returns:
        The row; None where everything that is not small is alike.
    """
    real = [_traced_row(a) for a in trace.live_at(at) if a.n_bytes > SMALL]
    phase = trace.phase_at(at)
    born = (trace.allocations[e] for e in trace.events[:at] if e >= 0)
    asked = [a.n_bytes for a in born if a.phase == phase and a.n_bytes > SMALL]
    shadow = _predicted_rows(job, lengths, phase, asked)
    loaded = _first_uneven([r for r in real if r.phase == "load"], [r for r in shadow if r.phase == "load"])
    return loaded or _first_unaligned([r for r in real if r.phase != "load"], [r for r in shadow if r.phase != "load"])


def _first_uneven(real: Sequence[LiveRow], shadow: Sequence[LiveRow]) -> LiveRow | None:
    """What is loaded has no order of its own: the first of a size that one side has more of."""
    more, less = Counter(r.n_bytes for r in real), Counter(r.n_bytes for r in shadow)
    excess = next((r for r in real if more[r.n_bytes] > less[r.n_bytes]), None)
    return excess or next((r for r in shadow if less[r.n_bytes] > more[r.n_bytes]), None)


def _first_unaligned(real: Sequence[LiveRow], shadow: Sequence[LiveRow]) -> LiveRow | None:
    """What a step makes comes in the same order on both sides."""
    same = sum(1 for _ in itertools.takewhile(_alike, zip(real, shadow, strict=False)))
    a, b = real[same : same + _WINDOW], shadow[same : same + _WINDOW]
    match = SequenceMatcher(None, [_key(r) for r in a], [_key(r) for r in b], autojunk=False)
    for tag, i, _, j, _ in match.get_opcodes():
        if tag != "equal":
            return b[j] if tag == "insert" else a[i]
    return None


def _key(row: LiveRow) -> tuple[int, str]:
    """What both sides know of a row: names and shapes are each side's own."""
    return row.n_bytes, _common(row.phase)


def _alike(pair: tuple[LiveRow, LiveRow]) -> bool:
    return _key(pair[0]) == _key(pair[1])


def _traced_row(a: Allocation) -> LiveRow:
    return LiveRow("trace", a.module or a.node, a.op, a.shape, a.dtype, a.n_bytes, a.phase)


def _predicted_rows(job: Job, lengths: Sequence[int], phase: str, asked: list[int]) -> list[LiveRow]:
    """What a prediction has alive after the same requests in a phase, or where it is highest in it; small ones aside.

    Args:
        job: what is predicted.
        lengths: of the optimizer steps.
        phase: of the trace.
        asked: requests of the trace in that phase, small ones aside. [B]
    """
    program, _ = walk(job, Sizes.of(job), lengths)
    expansion = program.expand()
    births = [program.births[b] for b in expansion.births]
    made_in: dict[int, str] = {}
    made: list[int] = []
    total = best = highest = same = 0
    # All the workspace passes on its way belongs to one forward pass, so that the phases stay where they are.
    events = with_workspace_at_product(expansion.events, lambda birth: births[birth].op, job.stack)
    ends = [*expansion.starts[1:], len(events)]
    for start, end, instance in zip(expansion.starts, ends, program.instances, strict=True):
        name = program.segments[instance.segment].phase
        inside = _common(name) == _common(phase)
        for index in range(start, end):
            event = events[index]
            n_bytes = births[event if event >= 0 else ~event].requested_bytes
            total += round_up(n_bytes, 512) if event >= 0 else -round_up(n_bytes, 512)
            if event < 0:
                continue
            made_in[event] = name
            if inside and total > best:
                best, highest = total, index + 1
            if inside and n_bytes > SMALL:
                made.append(n_bytes)
                if len(made) == len(asked):
                    same = index + 1
    alive: dict[int, None] = {}
    for event in events[: same if made[: len(asked)] == asked else highest]:
        if event >= 0:
            alive[event] = None
        else:
            del alive[~event]
    rows = []
    for i in alive:
        birth, layer = births[i], expansion.layers[i]
        module = birth.module if layer is None else birth.module.replace(f".{birth.layer}.", f".{layer}.", 1)
        shape = tuple(int(n) for n in birth.shape)
        rows.append(LiveRow("prediction", module, birth.op, shape, birth.dtype, birth.requested_bytes, made_in[i]))
    return [r for r in rows if r.n_bytes > SMALL]


def _common(phase: str) -> str:
    """A phase as both sides can name it: an estimate walks three micro-steps for any number, and marks the head."""
    parts = phase.split(".")
    if len(parts) < 3:
        return phase
    return f"{parts[0]}.{min(int(parts[1]), 1)}.{parts[2].replace('head', 'forward')}"
