"""Which training steps of a job are walked: a steady one for its tensors and the first ones for the allocator.

Steps whose lengths are listed (``seq_lens``) are a run: exactly those, the first of which finds no optimizer states.
Every number of such a job is of the listed steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

from vramcalc.inputs.alloc_conf import AllocatorSettings
from vramcalc.inputs.job import Job
from vramcalc.inputs.targets import layers_alike
from vramcalc.memory.ledger import SCENE, Instant, Row, instants, rows_at, size_of
from vramcalc.memory.timeline import Timeline, timeline_of
from vramcalc.memory.unexplained import unexplained_bytes
from vramcalc.shadow.allocator.replay import Replay, replay_steps
from vramcalc.shadow.depth.few_layers import depths, walk_few, without_cycle_collector
from vramcalc.shadow.depth.program import Program
from vramcalc.shadow.training.loop import Loop, Sizes, step_name
from vramcalc.shadow.training.reading_checkpoint import read_quantised
from vramcalc.shadow.training.requests import Stream, WrittenOut, carries_over, plan, stream_of


def depths_of(job: Job) -> list[int]:
    """Numbers of layers to walk, in the order they are tried."""
    n_layers = job.model.num_hidden_layers
    adapters = job.method.adapters
    alike = adapters is None or layers_alike(adapters, n_layers, job.model.num_local_experts or 0)
    # The first layer is given another dtype than the rest, so the one that stands for most must not follow it.
    return depths(n_layers, alike=alike, more=int(job.stack.casts_embeddings_to_bf16))


def walk(job: Job, sizes: Sizes, lengths: Sequence[int] | None = None) -> tuple[Program, Loop]:
    """Walk as few layers as say it all.

    Args:
        job: what is trained.
        sizes: batch, length and rank, numbers or symbols.
        lengths: of the optimizer steps from the first on, None for one step of those after it.
    """

    def walk_layers(walked: int) -> tuple[Program, Loop]:
        loop = Loop(job, sizes, walked)
        if lengths is None:
            loop.steady_step()
        else:
            loop.steps(lengths)
        return Program(loop.tape, walked, job.model.num_hidden_layers), loop

    return walk_few(depths_of(job), walk_layers)


class Walks:
    """Walks of one job, each made when first asked for.

    Attributes:
        job: what is trained.
        instants: moments of a steady step in time order, each with its highest total; of listed steps, the highest of
            any of them.
        ranked: those of training itself, the highest first.
        trainable_params: elements that train.
        paged_bytes: optimizer state in managed memory. [B]
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._program, loop, made = self._highest()
        totals = self._program.totals([size_of(b) for b in self._program.births])
        self._found = list(instants(self._program, totals, made))
        self.instants = tuple(i for i, _ in self._found)
        self.ranked = _ranked(self._found)
        self.trainable_params, self.paged_bytes = loop.trainable_params, loop.paged_bytes
        self._replays: dict[tuple[AllocatorSettings, bool], Replay] = {}

    def _highest(self) -> tuple[Program, Loop, Collection[str] | None]:
        """The walk in which the peak is sought, and which of its steps the run makes: None for all."""
        if self.job.training.seq_lens is None:
            return *walk(self.job, Sizes.of(self.job)), None
        program, loop, _, order = self._steps
        return program, loop, {step_name(n) for n in order}

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """What is alive at the peak."""
        program = self._program
        number = next(n for instant, n in self._found if instant == self.ranked[0])
        event = program.peak_event([size_of(b) for b in program.births], program.instances[number].segment)
        return tuple(rows_at(program, number, event))

    @cached_property
    def timeline(self) -> Timeline:
        """Live bytes through the step, event by event; of listed steps, through the one with the peak."""
        number = next(n for instant, n in self._found if instant == self.ranked[0])
        listed = self.job.training.seq_lens is not None
        return timeline_of(self._program, self._program.step_of(number) if listed else None)

    @cached_property
    def _lengths(self) -> tuple[tuple[int, ...], frozenset[int]]:
        """Lengths of the steps to replay, and those before which the cache is emptied."""
        training, period = self.job.training, self.job.stack.empty_cache_steps
        if training.seq_lens is not None:
            n_steps = len(training.seq_lens)
            return training.seq_lens, frozenset(range(period, n_steps, period)) if period else frozenset()
        lengths = (training.seq_len,) * (2 if period in (None, 1) else 3)
        return lengths, frozenset({len(lengths) - 1}) if period else frozenset()

    @cached_property
    def _steps(self) -> tuple[Program, Loop, int, list[int]]:
        """A walk of the steps from the first on that differ, their number, and which of them each step is like."""
        lengths, stack = self._lengths[0], self.job.stack
        carries = stack.keeps_outputs == "next_forward" or stack.zero_grad == "start"
        while True:
            walked, order = plan(lengths, carries=carries)
            program, loop = walk(self.job, Sizes.of(self.job), walked)
            if carries or order == list(range(len(walked))) or not carries_over(program):
                return program, loop, len(walked), order
            carries = True

    @cached_property
    def written_out(self) -> WrittenOut:
        """Loading and the steps from the first on, at full depth."""
        program, _, n_walked, order = self._steps
        return WrittenOut(program, program.expand(), n_walked, order)

    @cached_property
    def stream(self) -> Stream:
        """The steps that are given; else two, or three where the cache is emptied after several, before the last."""
        return stream_of(self.written_out, self.job.stack, self._lengths[1])

    @property
    def from_loaded(self) -> Replay:
        """The replay that a trace is compared with: loading leaves nothing but the model."""
        return self.replay(self.job.stack.allocator, reads=False)

    def replay(self, settings: AllocatorSettings, *, reads: bool = True) -> Replay:
        """The steps of ``stream`` through torch's caching allocator.

        Args:
            settings: of the allocator.
            reads: as a run: a quantised model is read in 16 bits first, and what runs reserve unexplained is added;
                traces have neither.

        Raises:
            DoesNotFit: a limit is set and is not enough.
        """
        if (settings, reads) not in self._replays:
            s, stack = self.stream, self.job.stack
            load, sizes = s.load, s.sizes
            if reads and self.job.method.storage is not None:
                births = [self.written_out.program.births[b] for b in self.written_out.expansion.births]
                load, sizes = read_quantised(s.load, births, s.sizes, stack)
            with without_cycle_collector():
                found = replay_steps(load, s.steps, s.order, sizes, settings, empty_before=s.empty_before)
            if reads and not settings.expandable_segments:
                more = found.peak_reserved_bytes + unexplained_bytes(self.job)
                if settings.limit_bytes is None or more <= settings.limit_bytes:
                    found = replace(found, peak_reserved_bytes=more)
            self._replays[settings, reads] = found
        return self._replays[settings, reads]

    @property
    def unsplit_bytes(self) -> int:
        """Of blocks that loading leaves unsplit, what they have beyond what was asked for. [B]"""
        return self.replay(self.job.stack.allocator).unsplit_bytes

    def replay_within(self, limit_bytes: int) -> Replay:
        """The replay under the recipe's settings where segments have only so much: cached blocks are given back first.

        Raises:
            DoesNotFit: the limit is not enough.
        """
        return self.replay(replace(self.job.stack.allocator, limit_bytes=limit_bytes))


def _ranked(found: list[tuple[Instant, int]]) -> list[Instant]:
    """Instants of training itself, the highest first."""
    return sorted((i for i, _ in found if i.name not in SCENE), key=lambda i: -i.n_bytes)


@lru_cache(maxsize=32)
def walks_of(job: Job) -> Walks:
    """The walks of a job; those of the last few jobs are kept, as searches come back to them."""
    return Walks(job)
