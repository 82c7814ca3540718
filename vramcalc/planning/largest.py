"""The largest micro batch, and the longest sequence, that fit a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from vramcalc import display
from vramcalc.errors import DoesNotFit, InvalidValue
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Gpu, Method, ModelSpec
from vramcalc.memory.estimate import Estimate, estimate_job, make_job
from vramcalc.planning.verdict import Status, Verdict, verdict
from vramcalc.units import gib

EITHER: tuple[Status, ...] = ("fits", "tight")
STEP, LOOKS, NEAR = 64, 8, 4
"""Multiples of what, and how many of them, are tried above a value that fits; and how many values right above it."""

GUARANTEE = (
    f"it fits; none of the {NEAR} values above it does, nor of the {LOOKS} multiples of {STEP} above it, up to the "
    "limit"
)
"""What is known of a value that a search found."""


@dataclass(frozen=True)
class Largest:
    """The largest value of a setting that fits.

    Attributes:
        setting: its name.
        value: the largest found to fit, be it tightly; see :data:`GUARANTEE`.
        comfortable: the largest that fits with a probability of 95 %, None when none does.
        verdict: at ``value``.
        limited_by: ``memory``, ``limit`` or ``max_position_embeddings``.
    """

    setting: str
    value: int
    comfortable: int | None
    verdict: Verdict
    limited_by: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values; field names are stable."""
        return {
            "setting": self.setting,
            "value": self.value,
            "comfortable": self.comfortable,
            "limited_by": self.limited_by,
            "guarantee": GUARANTEE,
            **self.verdict.to_dict(remedies=False),
        }

    def __str__(self) -> str:
        return display.text(self)


def max_micro_batch_size(
    model: str | ModelSpec, method: str | Method = "lora", *, gpu: str | Gpu, limit: int = 4096, **settings: Any
) -> Largest:
    """The largest micro batch that fits a GPU.

    Args:
        model: as in :func:`vramcalc.estimate`.
        method: as in ``estimate``.
        gpu: an id or a spec.
        limit: where the search stops.
        **settings: as in ``estimate``.

    Raises:
        DoesNotFit: not even one sequence fits.
        InvalidValue: a limit below 1, or ``micro_batch_size`` among the settings.
    """
    return _search(model, method, gpu, "micro_batch_size", limit, settings)


def max_seq_len(
    model: str | ModelSpec, method: str | Method = "lora", *, gpu: str | Gpu, limit: int | None = None, **settings: Any
) -> Largest:
    """The longest sequence that fits a GPU.

    Args:
        model: as in :func:`vramcalc.estimate`.
        method: as in ``estimate``.
        gpu: an id or a spec.
        limit: where the search stops, by default the model's ``max_position_embeddings``.
        **settings: as in ``estimate``.

    Raises:
        DoesNotFit: not even one token fits.
        InvalidValue: a limit below 1, or ``seq_len`` among the settings.
    """
    return _search(model, method, gpu, "seq_len", limit, settings)


def _search(
    model: str | ModelSpec,
    method: str | Method,
    gpu: str | Gpu,
    setting: str,
    limit: int | None,
    settings: dict[str, Any],
) -> Largest:
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InvalidValue("limit", limit, "a whole number, at least 1")
    if setting in settings:
        raise InvalidValue(setting, settings[setting], "no value, as it is what is searched for", "use limit=")
    if setting == "seq_len" and settings.get("seq_lens") is not None:
        raise InvalidValue("seq_lens", settings["seq_lens"], "no list where the length is searched for", "leave it out")
    device = catalog.gpu(gpu)
    job, _ = make_job(model, method, gpu=device, **settings)
    ceiling = limit or job.model.max_position_embeddings
    value = largest_value(job, device, setting, ceiling)
    try:
        comfortable = largest_value(job, device, setting, value, accept=("fits",))
    except DoesNotFit:
        comfortable = None
    reached = "memory" if value < ceiling else "limit" if limit else "max_position_embeddings"
    return Largest(setting, value, comfortable, _at(job, device, setting, value), reached)


def largest_value(
    job: Job, gpu: Gpu, setting: str, ceiling: int, *, accept: Sequence[Status] = EITHER, climbs: bool = True
) -> int:
    """A large value up to ``ceiling`` with a verdict among ``accept``; it fits, and :data:`LOOKS` above it do not.

    Reserved memory is not monotone, so a bisection alone can stop below a value that fits. What it finds is therefore
    raised: to the highest of the next :data:`LOOKS` multiples of :data:`STEP` above that fits, until there is none,
    then to the highest of the :data:`NEAR` values above. Live tensors alone bound the value from above, by one symbolic
    grid; the allocator is asked below that bound.

    Args:
        job: what is searched.
        gpu: the device.
        setting: ``micro_batch_size`` or ``seq_len``.
        ceiling: where the search stops.
        accept: verdicts that will do.
        climbs: look above what the bisection finds; without it, the value fits and the next one does not.

    Raises:
        DoesNotFit: not even 1.
    """
    bound = _bound(job, gpu, setting, ceiling)

    def fits(value: int) -> bool:
        return _at(job, gpu, setting, value).status in accept

    low, high = 0, bound
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    while low:
        if not climbs:
            return low
        multiples = range((low // STEP + 1) * STEP, bound + 1, STEP)[:LOOKS]
        above = [*range(low + 1, min(low + NEAR, bound) + 1), *multiples]
        higher = next((value for value in sorted(set(above), reverse=True) if fits(value)), None)
        if higher is None:
            return low
        low = higher
    smallest = _at(job, gpu, setting, 1)
    raise DoesNotFit(
        f"even {setting} 1 does not fit {gpu.gpu_id}: {gib(smallest.needed_bytes)} needed, "
        f"{gib(gpu.usable_bytes)} usable; 'vramcalc estimate' with this GPU lists what would help"
    )


def _at(job: Job, gpu: Gpu, setting: str, value: int) -> Verdict:
    return verdict(_at_estimate(job, gpu, setting, value))


def _at_estimate(job: Job, gpu: Gpu, setting: str, value: int) -> Estimate:
    return estimate_job(replace(job, training=job.training.replace(**{setting: value})), gpu)


def _bound(job: Job, gpu: Gpu, setting: str, ceiling: int) -> int:
    """A value that no fitting one exceeds: by one symbolic grid; by doubling where steps are listed."""
    room = gpu.usable_bytes - estimate_job(job, gpu).context.n_bytes
    if job.training.seq_lens is not None and setting != "seq_len":
        value = 1
        while value < ceiling and _at_estimate(job, gpu, setting, value).allocated_bytes <= room:
            value = min(2 * value, ceiling)
        return value
    import numpy as np

    from vramcalc.memory.grid import estimate_grid

    values = np.unique(np.concatenate([np.arange(1, min(ceiling, 64) + 1), np.geomspace(1, ceiling, 4096).astype(int)]))
    training = job.training.replace(seq_lens=None)
    peaks = estimate_grid(
        job.model, job.method, training=training, stack=job.stack, gpu=gpu, **{setting: values}
    ).allocated_bytes
    above = values[peaks > room]
    return int(above[0]) - 1 if len(above) else ceiling
