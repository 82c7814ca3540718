"""The requests of a run, made of a walk: loading, and steps of which alike ones are written down once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from vramcalc.inputs.releases import ROTARY_PRODUCT_UNTIL, minor_release
from vramcalc.inputs.stack import Stack
from vramcalc.shadow.allocator.replay import Step
from vramcalc.shadow.depth.program import Expansion, Program
from vramcalc.shadow.training.loop import MAIN_WORKSPACE, step_name

_PROJECTIONS = frozenset({"mm", "matmul_4bit", "matmul_lora"})


@dataclass(frozen=True)
class Stream:
    """Requests of a run at full depth: loading, and steps of which alike ones are written down once.

    Attributes:
        load: events before training, ``id`` for a request, ``~id`` for its end.
        steps: those that differ.
        order: indices of ``steps``, in the order they are made.
        sizes: by id, as requested. [B]
        empty_before: places in ``order`` before which the loop empties the allocator's cache.
    """

    load: list[int]
    steps: list[Step]
    order: list[int]
    sizes: list[int]
    empty_before: frozenset[int]

    @property
    def events(self) -> list[int]:
        """Loading and every step that differs, one after the other."""
        return [event for events in (self.load, *(s.events for s in self.steps)) for event in events]


class WrittenOut(NamedTuple):
    """The walk behind a stream.

    Attributes:
        program: the walk.
        expansion: its events at full depth.
        n_steps: steps walked.
        order: for each step of the run, which of them it is like.
    """

    program: Program
    expansion: Expansion
    n_steps: int
    order: list[int]


def plan(lengths: Sequence[int], *, carries: bool) -> tuple[list[int], list[int]]:
    """Steps to walk so that each step of a run is like one of them.

    Args:
        lengths: of the steps of the run.
        carries: whether a step ends what the one before it made, so that pairs of lengths count.

    Returns:
        Lengths of the steps to walk one after the other, and for each step of the run which of them it is like.
    """
    walked, order = [lengths[0]], [0]
    of: dict[tuple[bool, int, int], int] = {}
    for index, (before, length) in enumerate(pairwise(lengths)):
        key = (index == 0, before, length) if carries else (False, 0, length)
        if key not in of:
            if carries and walked[-1] != before:
                of.setdefault((False, walked[-1], before), len(walked))
                walked.append(before)
            of[key] = len(walked)
            walked.append(length)
        order.append(of[key])
    return walked, order


def carries_over(program: Program) -> bool:
    """Whether a step after the second ends what the one before it made: it must then find it by its name."""
    step = [program.step_of(number) for number in range(len(program.instances))]
    made: dict[int, str] = {}
    for instance, name in zip(program.instances, step, strict=True):
        s = program.segments[instance.segment]
        for event in program.events[s.start : s.stop]:
            if event >= 0:
                made[event] = name
            elif made[~event] != name and made[~event].startswith("step"):
                return True
    return False


def stream_of(written: WrittenOut, stack: Stack, empty_before: frozenset[int]) -> Stream:
    """What a walk at full depth asks for.

    Args:
        written: the walk.
        stack: its release of transformers.
        empty_before: places in the order of steps before which the loop empties the allocator's cache.
    """
    program, expansion, n_walked, order = written
    asked = [b.requested_bytes for b in program.births]
    starts = _starts(program, expansion.starts, n_walked)
    events = with_workspace_at_product(
        expansion.events, lambda birth: program.births[expansion.births[birth]].op, stack
    )
    sizes = [asked[b] for b in expansion.births]
    return Stream(events[: starts[0]], _steps(events, starts), order, sizes, empty_before)


def with_workspace_at_product(events: list[int], op: Callable[[int], str], stack: Stack) -> list[int]:
    """Events in which the forward pass takes cuBLAS's workspace right after the result of its first product.

    The walk has it first, as what happens once would set one layer apart from those it stands for. Where it lies
    decides which free blocks are whole later on: published runs on an A100 whose RMSNorm leaves float32 copies before
    the first product are met to 0.05 % this way, and missed by up to 3 % otherwise (tests/memory/test_measured.py). The
    autograd thread's stays at the start of the backward pass: at its first product, two T4 runs are off by 12 % more.

    Args:
        events: ``id`` for a request, ``~id`` for its end.
        op: what asks, of an id.
        stack: its release of transformers says what the first product is.

    References:
        pytorch aten/src/ATen/cuda/CublasHandlePool.cpp, ``getCurrentCUDABlasHandle``.
    """
    at = next((i for i, event in enumerate(events) if event >= 0 and op(event) == MAIN_WORKSPACE), None)
    if at is None:
        return events
    by_product = (minor_release(stack.transformers) or (0, 0)) <= ROTARY_PRODUCT_UNTIL
    first = _PROJECTIONS | {"freqs"} if by_product else _PROJECTIONS
    product = next(i for i in range(at, len(events)) if events[i] >= 0 and op(events[i]) in first)
    return [*events[:at], *events[at + 1 : product + 1], events[at], *events[product + 1 :]]


def _starts(program: Program, starts: list[int], n_steps: int) -> list[int]:
    """Index of the first event of each step."""
    found: dict[str, int] = {}
    for number, start in enumerate(starts):
        found.setdefault(program.step_of(number), start)
    return [found[step_name(n)] for n in range(n_steps)]


def _steps(events: list[int], starts: list[int]) -> list[Step]:
    """Events cut into steps, each with what it ends of the one before."""
    steps: list[Step] = []
    first = sum(event >= 0 for event in events[: starts[0]])
    found_first = 0
    for start, stop in pairwise([*starts, len(events)]):
        own = events[start:stop]
        ends = tuple(~event for event in own if event < 0 and found_first <= ~event < first) if steps else ()
        steps.append(Step(own, first, found_first, ends))
        found_first, first = first, first + sum(event >= 0 for event in own)
    return steps
