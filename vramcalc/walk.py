"""The walks of a job: one steady step for its tensors, the first steps for the allocator."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache

from vramcalc.job import Job
from vramcalc.ledger import SCENE, Row, instants, requested, rows_at, size_of
from vramcalc.methods.lora import layers_alike
from vramcalc.shadow.allocator import AllocatorSettings
from vramcalc.shadow.program import WALKED_LAYERS, NotRepeatable, Program
from vramcalc.shadow.replay import Replay, replay
from vramcalc.specs import LoRA
from vramcalc.step import Loop, Sizes


@contextmanager
def without_cycle_collector() -> Iterator[None]:
    """Lifetimes are counted references; the cycle collector would only cost time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def depths(job: Job) -> list[int]:
    """Numbers of layers to walk, in the order they are tried."""
    n_layers = job.model.num_hidden_layers
    alike = not isinstance(job.method, LoRA) or layers_alike(job.method, n_layers)
    return [n for n in WALKED_LAYERS if alike and n < n_layers] + [n_layers]


def walk(job: Job, sizes: Sizes, steps: int | None) -> tuple[Program, Loop]:
    """Walk as few layers as say it all.

    Args:
        job: what is trained.
        sizes: batch, length and rank, numbers or symbols.
        steps: optimizer steps from the first on, None for one of those after it.
    """
    with without_cycle_collector():
        for walked in depths(job):
            loop = Loop(job, sizes, walked)
            if steps is None:
                loop.steady_step()
            else:
                loop.steps(steps)
            try:
                return Program(loop.tape, walked, job.model.num_hidden_layers), loop
            except NotRepeatable:
                continue
    raise AssertionError("all layers can always be walked")


@dataclass(frozen=True)
class Stream:
    """Requests of the first steps at full depth.

    Attributes:
        events: ``id`` for a request, ``~id`` for its end.
        sizes: by id, as requested. [B]
        start: index of the event where training starts.
        empty_at: indices before which the loop empties the allocator's cache.
    """

    events: list[int]
    sizes: list[int]
    start: int
    empty_at: frozenset[int]


class Walks:
    """Walks of one job, each made when first asked for.

    Attributes:
        job: what is trained.
        instants: moments of a steady step in time order, each with its highest total.
        ranked: those of training itself, the highest first.
        trainable_params: elements that train.
        paged_bytes: optimizer state in managed memory. [B]
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._program, loop = walk(job, Sizes.of(job), steps=None)
        sizes = [size_of(b) for b in self._program.births]
        self._found = instants(self._program, self._program.totals(sizes))
        self.instants = tuple(i for i, _ in self._found)
        self.ranked = sorted((i for i in self.instants if i.name not in SCENE), key=lambda i: -i.n_bytes)
        self.trainable_params, self.paged_bytes = loop.trainable_params, loop.paged_bytes
        self._replays: dict[AllocatorSettings, Replay] = {}

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """What is alive at the peak."""
        program = self._program
        number = next(n for instant, n in self._found if instant == self.ranked[0])
        event = program.peak_event([size_of(b) for b in program.births], program.instances[number].segment)
        return tuple(rows_at(program, number, event))

    @cached_property
    def stream(self) -> Stream:
        """The first two steps; three where the cache is emptied after several, the last of them with it empty."""
        period = self.job.stack.empty_cache_steps
        steps = 2 if period in (None, 1) else 3
        program, _ = walk(self.job, Sizes.of(self.job), steps=steps)
        expansion = program.expand()
        sizes = [requested(b) for b in program.births]
        phases = [program.segments[i.segment].phase for i in program.instances]
        start = _first(expansion.starts, phases, lambda phase: phase != "load")
        last = _first(expansion.starts, phases, lambda phase: phase.startswith(f"step{steps - 1}."))
        emptied = frozenset() if period is None else frozenset({last})
        return Stream(expansion.events, [sizes[b] for b in expansion.births], start, emptied)

    def replay(self, settings: AllocatorSettings) -> Replay:
        """The first steps through torch's caching allocator.

        Raises:
            DoesNotFit: a limit is set and is not enough.
        """
        if settings not in self._replays:
            s = self.stream
            with without_cycle_collector():
                self._replays[settings] = replay(s.events, s.sizes, settings, start=s.start, empty_at=s.empty_at)
        return self._replays[settings]


def _first(starts: list[int], phases: list[str], wanted: Callable[[str], bool]) -> int:
    return next(s for s, phase in zip(starts, phases, strict=True) if wanted(phase))


@lru_cache(maxsize=32)
def walks_of(job: Job) -> Walks:
    """The walks of a job; those of the last few jobs are kept, as searches come back to them."""
    return Walks(job)
