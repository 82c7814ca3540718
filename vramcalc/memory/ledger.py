"""The tensors alive when a step's memory peaks: every byte a named row."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from vramcalc.shadow.depth.program import Program
from vramcalc.shadow.engine.tape import Birth
from vramcalc.units import round_up

GROUPS = ("parameters", "gradients", "optimizer", "activations", "temporaries", "workspace", "context")
"""Groups of rows, in the order they are shown."""

SCENE = ("model loaded", "optimizer states made")
"""Instants that only set the scene; the peak is sought after them."""

_KINDS = {"parameter": "parameters", "gradient": "gradients", "optimizer": "optimizer", "workspace": "workspace"}
_LAYER = re.compile(r"(?<=layers\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Instant:
    """A moment of the step.

    Attributes:
        name: what is going on.
        n_bytes: highest total of live tensors in it. [B]
    """

    name: str
    n_bytes: int


@dataclass(frozen=True)
class Row:
    """Tensors that are alike: same module but for the layer, same shape, same reason to be alive.

    Attributes:
        group: one of ``GROUPS``.
        module: whose they are; ``*`` stands for the layer.
        what: parameter name or operator.
        shape: of each.
        dtype: of each.
        count: how many.
        n_bytes: all together, each rounded up to 512. [B]
        layers: first and last decoder layer, None outside.
        why: why they are alive.
        basis: ``exact`` for tensors, ``calibrated`` or ``assumed`` for what libraries take.
    """

    group: str
    module: str
    what: str
    shape: tuple[int, ...]
    dtype: str
    count: int
    n_bytes: int
    layers: tuple[int, int] | None
    why: str
    basis: str


def size_of(birth: Birth) -> int:
    """Bytes as the allocator counts them: rounded up to 512."""
    return round_up(birth.requested_bytes, 512)


def rows_at(program: Program, instance: int, event: int) -> list[Row]:
    """Rows alive at a moment.

    Args:
        program: of a walk with plain sizes.
        instance: number of the instance in ``program.instances``.
        event: events of the tape up to the moment, inside the instance's segment.

    Returns:
        Rows by group, the largest first inside each.
    """
    expansion = program.expand()
    segment = program.segments[program.instances[instance].segment]
    stop = expansion.starts[instance] + event - segment.start
    alive: dict[int, None] = {}
    for e in expansion.events[:stop]:
        if e >= 0:
            alive[e] = None
        else:
            del alive[~e]
    phases = phases_of(program)
    merged: dict[tuple[object, ...], list[int]] = {}
    for i in alive:
        birth = program.births[expansion.births[i]]
        phase = phases[expansion.births[i]]
        key = (group_of(birth, phase), _module(birth), birth.op, birth.shape, birth.dtype, _why(birth, phase))
        merged.setdefault(key, []).append(i)
    rows = [
        _row(key, program, [expansion.layers[i] for i in ids], ids[0], expansion.births) for key, ids in merged.items()
    ]
    return sorted(rows, key=lambda r: (GROUPS.index(r.group), -r.n_bytes, r.module))


def _row(key: tuple[object, ...], program: Program, layers: list[int | None], first: int, births: list[int]) -> Row:
    group, module, what, shape, dtype, why = key
    inside = [n for n in layers if n is not None]
    return Row(
        group=str(group),
        module=str(module),
        what=str(what),
        shape=tuple(int(n) for n in shape),  # type: ignore[attr-defined]
        dtype=str(dtype),
        count=len(layers),
        n_bytes=len(layers) * size_of(program.births[births[first]]),
        layers=(min(inside), max(inside)) if inside else None,
        why=str(why),
        basis="assumed" if group == "workspace" else "exact",
    )


def phases_of(program: Program) -> list[str]:
    """Phase each walked birth happened in: ``forward``, ``head``, ``backward``..."""
    found = [""] * len(program.births)
    for s in program.segments:
        for event in program.events[s.start : s.stop]:
            if event >= 0:
                found[event] = s.phase.rsplit(".", 1)[-1]
    return found


def group_of(birth: Birth, phase: str) -> str:
    """Group of a tensor, by what it is and by the phase that made it."""
    if birth.kind in _KINDS:
        return _KINDS[birth.kind]
    return "activations" if phase in ("forward", "head") else "temporaries"


def _module(birth: Birth) -> str:
    return _LAYER.sub("*", birth.module)


def _why(birth: Birth, phase: str) -> str:
    match birth.kind:
        case "parameter":
            return "held by the model"
        case "gradient":
            return "kept until zero_grad"
        case "optimizer":
            return "kept between steps"
        case "workspace":
            return "taken by a library or kernel"
    if birth.saved_by:
        return f"saved for {birth.saved_by} backward"
    if phase in ("forward", "head"):
        return "held by the forward pass"
    return "gradient in flight" if phase == "backward" else "made by the optimizer step"


def by_group(rows: Iterable[Row]) -> dict[str, int]:
    """Bytes of each group that has rows, in the order of ``GROUPS``. [B]"""
    totals = dict.fromkeys(GROUPS, 0)
    for row in rows:
        totals[row.group] += row.n_bytes
    return {group: n for group, n in totals.items() if n}


def instants(
    program: Program, totals: list[tuple[int, int]], steps: Collection[str] | None = None
) -> list[tuple[Instant, int]]:
    """Named moments in time order, each at its highest instance.

    Args:
        program: of a walk with plain sizes.
        totals: of every instance, as the program finds them.
        steps: names of the steps that count, beside what comes before training; None for all.

    Returns:
        The instant, and the number of the instance it is reached in.
    """
    best: dict[str, tuple[int, int, str]] = {}
    for number, ((stage, name), (highest, after)) in enumerate(zip(stages(program), totals, strict=True)):
        setup = stage in ("loaded", "states")
        if not setup and steps is not None and program.step_of(number) not in steps:
            continue
        n = after if setup else highest
        if setup or stage not in best or n > best[stage][0]:
            best[stage] = (n, number, name)
    return [(Instant(name, n), number) for n, number, name in best.values()]


def stages(program: Program) -> list[tuple[str, str]]:
    """Stage and name of every instance of a program."""
    found = []
    over_layers: set[str] = set()
    for instance in program.instances:
        phase = program.segments[instance.segment].phase
        if instance.layer is not None:
            over_layers.add(phase)
        found.append(_name(phase, instance.layer, phase in over_layers))
    return found


def _name(phase: str, layer: int | None, after_layers: bool) -> tuple[str, str]:
    """Stage and name of a segment."""
    if phase == "load":
        return "loaded", SCENE[0]
    if phase == "states":
        return "states", SCENE[1]
    last = phase.rsplit(".", 1)[-1]
    again = ", next step" if phase.startswith("next.") else ""
    if phase.split(".")[1:2] in (["1"], ["2"]):
        again = ", later micro-step"
    match last:
        case "forward" if layer is not None:
            name = f"forward, layer {layer}"
        case "forward":
            name = "forward, final norm" if after_layers else "forward, embedding"
        case "head":
            name = "forward, head and loss"
        case "backward" if layer is not None:
            name = f"backward, layer {layer}"
        case "backward":
            name = "backward, embedding" if after_layers else "backward, loss and head"
        case "optimizer":
            name = "optimizer step"
        case _:
            name = "gradients dropped"
    stage = re.sub(r" \d+$", "", name) + again
    return stage, name + again
