"""Everything that a training step asks the allocator for, in its order: what the real libraries asked for, kept.

A peak hides what is far below it. Here every request counts, and what is alive right after it: a tensor that is made in
another dtype or shape, too many, too few, too early, or that lives too long, shows in the phase it belongs to.
"""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from vramcalc.accuracy.traces.first_difference import SMALL
from vramcalc.inputs.job import Job
from vramcalc.memory.walks import walk, walks_of
from vramcalc.shadow.training.loop import Sizes
from vramcalc.shadow.training.requests import with_workspace_at_product

FILE = Path(__file__).parent / "reference" / "transcripts.csv"
LEVELS = ("every", "large", "sizes")
"""How much of two transcripts is alike: every request in its order, with what is alive after it; those above ``SMALL``
bytes, with what is alive of such; the sizes of those alone."""

Requests = dict[str, list[tuple[int, int]]]
"""By phase, such as ``step0.0.forward``: bytes asked for, and alive right after it beyond what was loaded. [B]"""


@dataclass(frozen=True)
class Phase:
    """What one phase of a step asks for.

    Attributes:
        name: step, micro-step, what runs.
        level: see ``LEVELS``.
        requests: how many.
        asked_bytes: all of them together. [B]
        highest_bytes: most that is alive after one of them. [B]
        digest: of all of them in order.
    """

    name: str
    level: str
    requests: int
    asked_bytes: int
    highest_bytes: int
    digest: str


def requests(events: Iterable[tuple[int, str]], sizes: Sequence[int], above: int = 0) -> Requests:
    """Requests of training in order.

    Args:
        events: ``id`` for a request, ``~id`` for its end, each with its phase; what loading makes has ``load``.
        sizes: by id, as requested. [B]
        above: smaller ones are left out. [B]
    """
    found: Requests = defaultdict(list)
    alive = 0
    for event, phase in events:
        n = sizes[event] if event >= 0 else -sizes[~event]
        if phase != "load" and abs(n) > above:
            alive += n
            if n > 0:
                found[phase].append((n, alive))
    return found


def phases(events: Iterable[tuple[int, str]], sizes: Sequence[int]) -> dict[tuple[str, str], Phase]:
    """The transcript of a run, by phase and level."""
    events = list(events)
    every, large = requests(events, sizes), requests(events, sizes, SMALL)
    return {
        (name, level): _phase(name, level, (every if level == "every" else large).get(name, []))
        for name in every
        for level in LEVELS
    }


def _phase(name: str, level: str, asked: Sequence[tuple[int, int]]) -> Phase:
    sizes, highest = [n for n, _ in asked], max((after for _, after in asked), default=0)
    digest = hashlib.sha256(repr(sizes if level == "sizes" else asked).encode()).hexdigest()[:12]
    return Phase(name, level, len(asked), sum(sizes), 0 if level == "sizes" else highest, digest)


def lengths_of(job: Job) -> tuple[int, ...]:
    """Steps that are traced, each by its length: those of the row. [tokens]"""
    return job.training.seq_lens or (job.training.seq_len,) * len(walks_of(job).stream.order)


def predicted(job: Job) -> dict[tuple[str, str], Phase]:
    """The transcript of a walk at full depth."""
    program, _ = walk(job, Sizes.of(job), lengths_of(job))
    expansion = program.expand()
    births = [program.births[b] for b in expansion.births]
    events = with_workspace_at_product(expansion.events, lambda birth: births[birth].op, job.stack)
    names: list[str] = []
    stops = [*expansion.starts[1:], len(events)]
    for stop, instance in zip(stops, program.instances, strict=True):
        names += [common(program.segments[instance.segment].phase)] * (stop - len(names))
    return phases(zip(events, names, strict=True), [b.requested_bytes for b in births])


def common(phase: str) -> str:
    """A phase as both sides can name it: the walk marks the head by itself, and optimizer states that are there."""
    return phase.replace("head", "forward")


def read() -> dict[str, list[Phase]]:
    """Stored transcripts by ``trace_id``: of each phase the level at which a walk is known to be alike."""
    found: defaultdict[str, list[Phase]] = defaultdict(list)
    with FILE.open(newline="") as file:
        for trace_id, name, level, n, asked, highest, digest in list(csv.reader(file))[1:]:
            found[trace_id].append(Phase(name, level, int(n), int(asked), int(highest), digest))
    return dict(found)


def write(found: dict[str, list[Phase]]) -> None:
    """The table, in the order of names."""
    with FILE.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["trace_id", *(field.name for field in fields(Phase))])
        rows.writerows([trace_id, *astuple(phase)] for trace_id in sorted(found) for phase in found[trace_id])


def alike(traced: dict[tuple[str, str], Phase], walked: dict[tuple[str, str], Phase]) -> list[Phase]:
    """What was traced, each phase at the first level at which a walk is alike; phases that never are left out."""
    found = {}
    for (name, _), phase in traced.items():
        if name not in found and walked.get((name, phase.level)) == phase:
            found[name] = phase
    return list(found.values())
