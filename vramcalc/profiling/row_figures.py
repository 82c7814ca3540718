"""What a profile row measured: its job for :func:`vramcalc.estimate`, and its figures by name, if they can be true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from vramcalc.inputs.job import Job
from vramcalc.profiling.rows import ProfileRow

_MOST_CONTEXT_BYTES = 4 << 30


@dataclass(frozen=True)
class FirstStep:
    """What ran, and what its first optimizer step took.

    Attributes:
        row: what ran.
        peaks: ``allocated_bytes`` and ``reserved_bytes`` of the step; None on a CPU.
    """

    row: ProfileRow
    peaks: dict[str, int] | None


def as_measurement(row: ProfileRow) -> tuple[dict[str, Any], dict[str, float]]:
    """A row as what to tell :func:`vramcalc.estimate`, and what was measured.

    Args:
        row: of a profile.

    Returns:
        Keyword arguments for ``vramcalc.estimate``; and metrics by the names of ``tables/measurements.csv``
        (``allocated_max``, ``reserved_max``, ``process_used``, ``phase:forward_peak``,
        ``phase:optimizer_step_peak``), with ``phase:load``, ``phase:backward_peak``, ``device_used``, ``context``
        and ``smallest_reserved`` [B], ``step_s`` [s] and ``tokens_per_s`` beside them. What was not measured is not
        there: a run that ended out of memory has no ``allocated_max``.
    """
    recipe = row.recipe
    settings: dict[str, Any] = {
        "model": recipe.model,
        "method": recipe.method,
        "training": recipe.training,
        "stack": recipe.stack,
        "gpu": row.machine.gpu,
    }
    return settings, dict(_metrics(row))


def job_of(row: ProfileRow) -> Job:
    """The job that a row measured.

    Raises:
        Unsupported: settings that do not go together.
    """
    r = row.recipe
    capability = row.machine.gpu.capability if row.machine.gpu else (8, 0)
    return Job(r.model, r.method, r.training, r.stack, capability)


def _metrics(row: ProfileRow) -> Iterator[tuple[str, float]]:
    memory = row.memory if row.outcome == "measured" else None
    if memory is not None:
        context = memory.context_bytes
        if memory.whole is not None:
            yield "allocated_max", memory.whole.allocated_bytes
            yield "reserved_max", memory.whole.reserved_bytes
            if context is not None:
                yield "process_used", memory.whole.reserved_bytes + context
        if context is not None:
            yield "context", context
        if memory.device_used_peak_bytes is not None:
            yield "device_used", memory.device_used_peak_bytes
        phases = (
            ("phase:load", memory.load),
            ("phase:forward_peak", memory.forward),
            ("phase:backward_peak", memory.backward),
            ("phase:optimizer_step_peak", memory.optimizer),
        )
        yield from ((name, peaks.allocated_bytes) for name, peaks in phases if peaks is not None)
    if row.smallest is not None:
        yield "smallest_reserved", row.smallest.suffices_bytes
    if row.timing is not None:
        yield "step_s", row.timing.step_s
        yield "tokens_per_s", row.timing.tokens_per_s


def inconsistencies(row: ProfileRow) -> list[str]:
    """What cannot be true of one run: a sign that the measurement is wrong, not the prediction."""
    return [text for holds, text in _laws(row) if not holds]


def _laws(row: ProfileRow) -> Iterator[tuple[bool, str]]:
    yield (row.failure is None) == (row.outcome == "measured"), "a failure goes with every outcome but 'measured'"
    m, on_gpu = row.memory, row.recipe.device == "cuda"
    if row.outcome == "measured":
        yield on_gpu == (m is not None and m.whole is not None), "memory is measured on a GPU, and only there"
    if m is None or m.whole is None:
        return
    phases = {"forward": m.forward, "backward": m.backward, "optimizer": m.optimizer}
    for name, peaks in {"load": m.load, **phases, "whole": m.whole}.items():
        if peaks is not None:
            yield peaks.allocated_bytes <= peaks.reserved_bytes, f"{name}: more allocated than reserved"
    for name, peaks in phases.items():
        if peaks is not None:
            yield peaks.allocated_bytes <= m.whole.allocated_bytes, f"{name}: peak above that of the whole"
            yield peaks.reserved_bytes <= m.whole.reserved_bytes, f"{name}: reserved above that of the whole"
    capacity = row.machine.torch_total_bytes
    if capacity is not None:
        yield m.whole.reserved_bytes <= capacity, "more reserved than the device has"
    context = m.context_bytes
    if on_gpu and context is not None:
        yield 0 < context < _MOST_CONTEXT_BYTES, f"a CUDA context of {context:,} bytes"
    if m.device_used_peak_bytes is not None:
        yield m.device_used_peak_bytes >= m.whole.allocated_bytes, "less in use on the device than allocated"
    s = row.smallest
    if s is not None:
        yield s.fails_bytes < s.suffices_bytes, "a limit that fails above one that suffices"
        yield s.suffices_bytes >= m.whole.allocated_bytes, "runs in less than it allocates"
