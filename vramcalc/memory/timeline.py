"""Live bytes through a training step by group, one value per allocation and free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from vramcalc.memory.ledger import GROUPS, SCENE, group_of, phases_of, size_of, stages
from vramcalc.shadow.depth.program import Program


@dataclass(frozen=True)
class Part:
    """A stretch of the step.

    Attributes:
        name: ``forward``, ``head and loss``, ``autocast ends`` (its cached casts are dropped), ``outputs`` (what is
            done to them after that), ``backward, head``, ``backward``, ``optimizer step``, ``zero_grad``.
        start: index of the value at its beginning.
        stop: index of the value at its end, where the next part starts.
        layers: first and last decoder layer of a pass over them, in its order; None outside such a pass.
    """

    name: str
    start: int
    stop: int
    layers: tuple[int, int] | None


@dataclass(frozen=True)
class Timeline:
    """Live tensors through a steady step, from the moment all optimizer states are there.

    Where the lengths of steps are listed it is the one with the peak, with the states it finds. A step of several
    micro-steps shows the first and one that adds to its gradients; a loop that keeps its outputs for the next forward
    pass shows that pass too.

    Attributes:
        groups: by group the bytes before the first event and after each; tensors rounded up to 512. [B]
        parts: of the step, in time order.
    """

    groups: Mapping[str, tuple[int, ...]]
    parts: tuple[Part, ...]

    @cached_property
    def totals(self) -> tuple[int, ...]:
        """Sum of the groups. [B]"""
        return tuple(map(sum, zip(*self.groups.values(), strict=True)))

    @cached_property
    def peak_index(self) -> int:
        """Where the sum is highest for the first time."""
        return max(range(len(self.totals)), key=self.totals.__getitem__)


def timeline_of(program: Program, step: str | None = None) -> Timeline:
    """Training in a walk with plain sizes, at full depth.

    Args:
        program: the walk.
        step: name of the one step to show, None for all there are.
    """
    expansion = program.expand()
    named = stages(program)
    shown = [
        n for n, (_, name) in enumerate(named) if name not in SCENE and (step is None or program.step_of(n) == step)
    ]
    first, last = shown[0], shown[-1]
    phases = phases_of(program)
    walked = [(group_of(b, phase), size_of(b)) for b, phase in zip(program.births, phases, strict=True)]
    before = dict.fromkeys(GROUPS, 0)
    changes: dict[str, list[int]] = {group: [] for group in GROUPS}
    begin, end = expansion.starts[first], [*expansion.starts, len(expansion.events)][last + 1]
    for number, event in enumerate(expansion.events[:end]):
        group, n_bytes = walked[expansion.births[event if event >= 0 else ~event]]
        change = n_bytes if event >= 0 else -n_bytes
        if number < begin:
            before[group] += change
        else:
            for other, found in changes.items():
                found.append(change if other == group else 0)
    groups = {g: tuple(accumulate(changes[g], initial=before[g])) for g in GROUPS}
    return Timeline({g: values for g, values in groups.items() if any(values)}, _parts(program, first, last))


def _parts(program: Program, first: int, last: int) -> tuple[Part, ...]:
    """Instances that follow each other in one pass, as one part."""
    found: list[tuple[tuple[str, str], list[int], list[int]]] = []
    at = 0
    inside = ""
    for instance in program.instances[first : last + 1]:
        segment = program.segments[instance.segment]
        if instance.layer is not None:
            inside = segment.phase
        key = segment.phase, _part(segment.phase.rsplit(".", 1)[-1], instance.layer, inside == segment.phase)
        if not found or found[-1][0] != key:
            found.append((key, [at, at], []))
        at += segment.stop - segment.start
        found[-1][1][1] = at
        if instance.layer is not None and key[1] in ("forward", "backward"):
            found[-1][2].append(instance.layer)
    return tuple(Part(name, start, stop, _ends(layers)) for (_, name), (start, stop), layers in found)


def _ends(layers: list[int]) -> tuple[int, int] | None:
    """The layer that a pass begins with, and the one it goes to; a pass after it, over what a cache holds, may turn."""
    if not layers:
        return None
    first = layers[0]
    return first, min(layers) if first == max(layers) else max(layers)


def _part(phase: str, layer: int | None, seen_layers: bool) -> str:
    match phase:
        case "head":
            return "autocast ends" if layer is not None else "outputs" if seen_layers else "head and loss"
        case "backward" if not seen_layers:
            return "backward, head"
        case "optimizer":
            return "optimizer step"
        case _:
            return phase
