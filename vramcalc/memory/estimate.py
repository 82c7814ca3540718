"""Estimate the memory of a fine-tuning job: from a model's name to its peaks."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from vramcalc import display
from vramcalc.errors import InvalidValue
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.presets import preset, stack_of
from vramcalc.inputs.release_span import likeliest_job, other_jobs
from vramcalc.inputs.settings import by_spec, kind_of, over_storage
from vramcalc.inputs.stack import Gpu, Method, ModelSpec, Stack, TrainingSpec
from vramcalc.interval import Interval
from vramcalc.memory.calibration.calibration import Calibration, interval_around, share_within
from vramcalc.memory.calibration.conformal import LEVEL
from vramcalc.memory.calibration.file import current
from vramcalc.memory.calibration.similarity import Likeness, likeness
from vramcalc.memory.context import Context
from vramcalc.memory.ledger import Instant, Row, by_group
from vramcalc.memory.timeline import Timeline
from vramcalc.memory.walks import Walks, walks_of
from vramcalc.memory.warnings import warnings_for
from vramcalc.shadow.allocator.replay import Replay

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMBERS = {
    **{name: f"{name}_bytes" for name in ("allocated", "reserved", "process")},
    "blocks": "block_bytes",
}
"""Numbers that have intervals, and the attributes that hold them."""
DEFAULT_CAPABILITY = (8, 0)
"""Compute capability assumed when no GPU is named."""


@dataclass(frozen=True)
class Estimate:
    """The memory of one training step, exact in its tensors.

    Attributes:
        job: model, method, training and recipe.
        gpu: the device, None when none was named.
        warnings: what a reader should know before trusting the numbers.
        allocated_bytes: highest sum of live tensors, each rounded up to 512 bytes. [B]
        instants: moments of the step in time order, each with its highest total; of any step where several are listed.
        peak: the highest of them.
        runner_up: the second highest.
    """

    job: Job
    gpu: Gpu | None
    warnings: tuple[str, ...]
    allocated_bytes: int
    instants: tuple[Instant, ...]
    peak: Instant
    runner_up: Instant
    total_params: int
    trainable_params: int
    paged_bytes: int
    """Optimizer state in managed memory, outside torch's allocator. [B]"""
    walks: Walks = field(repr=False, compare=False)
    """Where the numbers come from; shared by estimates that differ in the GPU alone."""

    def on(self, gpu: Gpu) -> Estimate:
        """The same estimate for another GPU of the same compute capability; nothing is worked out again."""
        return replace(self, gpu=gpu, warnings=tuple(warnings_for(self.job, gpu)))

    @property
    def rows(self) -> tuple[Row, ...]:
        """What is alive at the peak; rows sum to ``allocated_bytes``."""
        return self.walks.rows

    @property
    def timeline(self) -> Timeline:
        """Live bytes through the step by group, at every allocation and every free; of several, that with the peak."""
        return self.walks.timeline

    @property
    def groups(self) -> Mapping[str, int]:
        """Bytes alive at the peak by group, the CUDA context included. [B]"""
        return {**by_group(self.rows), "context": self.context.n_bytes}

    # -- allocator and process ---------------------------------------------------------------------------------------

    @property
    def _default_replay(self) -> Replay:
        return self.walks.replay(self.job.stack.allocator)

    @property
    def reserved_bytes(self) -> int:
        """Peak of ``torch.cuda.max_memory_reserved()`` under the recipe's allocator settings. [B]"""
        return self._default_replay.peak_reserved_bytes

    @property
    def block_bytes(self) -> int:
        """Peak of ``torch.cuda.max_memory_allocated()``: tensors with the remainders of blocks not split. [B]"""
        return self._default_replay.peak_allocated_bytes

    @property
    def reserved_expandable_bytes(self) -> int:
        """Reserved peak under ``expandable_segments:True`` added to the recipe's allocator settings. [B]"""
        return self.walks.replay(replace(self.job.stack.allocator, expandable_segments=True)).peak_reserved_bytes

    @cached_property
    def context(self) -> Context:
        """CUDA context of the process."""
        return current().context(self._architecture, self.gpu.capability if self.gpu else None)

    @property
    def process_bytes(self) -> int:
        """What nvidia-smi shows for the process: reserved and the CUDA context. [B]"""
        return self.reserved_bytes + self.context.n_bytes

    # -- how far off -------------------------------------------------------------------------------------------------

    @cached_property
    def likeness(self) -> Likeness:
        """What decides which measured runs the job is like."""
        return likeness(self.job, self._architecture)

    @property
    def unchecked(self) -> tuple[str, ...]:
        """Settings and sizes beyond those of every run whose memory was measured; they widen the intervals."""
        return tuple(current().unchecked("reserved", self.likeness))

    def interval(
        self,
        quantity: str = "process",
        level: float = LEVEL,
        *,
        value_bytes: int | None = None,
        calibration: Calibration | None = None,
    ) -> Interval:
        """A number between the bounds that hold a share of what is measured. [B]

        Args:
            quantity: ``allocated``, ``blocks``, ``reserved``, ``process``; ``snapshot`` at one moment.
            level: the share, above 0 and below 1.
            value_bytes: another prediction of the same quantity, such as a snapshot's, of the release modelled.
            calibration: by default the one in force.

        Raises:
            InvalidValue: no such quantity, or a level out of range.
        """
        if quantity not in _NUMBERS and (quantity != "snapshot" or value_bytes is None):
            raise InvalidValue("quantity", quantity, f"one of {', '.join(_NUMBERS)}")
        if not isinstance(level, (int, float)) or not 0 < level < 1:
            raise InvalidValue("level", level, "a share above 0 and below 1, such as 0.9")
        value = getattr(self, _NUMBERS[quantity]) if value_bytes is None else value_bytes
        unsplit = self.walks.unsplit_bytes if quantity in ("blocks", "snapshot") else 0
        own = interval_around(value, quantity, self.likeness, calibration or current(), self.context, level, unsplit)
        if value_bytes is not None:
            return own
        return own.spanning(other.interval(quantity, level, calibration=calibration) for other in self.others)

    @cached_property
    def others(self) -> tuple[Estimate, ...]:
        """Where the release of transformers is not known: the estimates of others that it may be."""
        return tuple(estimate_job(job, self.gpu) for job in other_jobs(self.job))

    @property
    def _architecture(self) -> str | None:
        return self.gpu.architecture if self.gpu else None

    def probability(self, capacity_bytes: float) -> float:
        """That the process needs no more than a capacity, as its memory is spread about what is predicted.

        Where the release is not known, the mean over those that it may be.
        """
        spread = current().outlook("reserved", self.likeness)
        own = share_within(spread, self.context, self.reserved_bytes, capacity_bytes)
        return statistics.fmean((own, *(other.probability(capacity_bytes) for other in self.others)))

    # -- showing -----------------------------------------------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; field names are stable."""
        job = self.job
        return {
            "model": job.model.name,
            "method": job.method.model_dump(mode="json"),
            "training": job.training.model_dump(mode="json"),
            "stack": job.stack.model_dump(mode="json"),
            "gpu": self.gpu.model_dump(mode="json") if self.gpu else None,
            "compute_capability": ".".join(map(str, job.compute_capability)),
            "total_params": self.total_params,
            "trainable_params": self.trainable_params,
            "allocated_bytes": self.allocated_bytes,
            "block_bytes": self.block_bytes,
            "reserved_bytes": self.reserved_bytes,
            "reserved_expandable_bytes": self.reserved_expandable_bytes,
            "context_bytes": self.context.n_bytes,
            "context_basis": self.context.basis,
            "process_bytes": self.process_bytes,
            **self._bounds(),
            "unchecked": list(self.unchecked),
            "calibration": current().note or "shipped",
            "paged_bytes": self.paged_bytes,
            "peak": vars(self.peak),
            "runner_up": vars(self.runner_up),
            "instants": [vars(i) for i in self.instants],
            "groups": dict(self.groups),
            "rows": [vars(r) for r in self.rows],
            "warnings": list(self.warnings),
        }

    def _bounds(self) -> dict[str, Any]:
        """Ends of the intervals, and their level."""
        found: dict[str, Any] = {"level": LEVEL}
        for quantity, name in _NUMBERS.items():
            low, _, high = self.interval(quantity)
            found |= {name.replace("_", "_low_"): int(low), name.replace("_", "_high_"): math.ceil(high)}
        return found

    def to_json(self, *, indent: int | None = 2) -> str:
        """``to_dict`` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        return display.text(self)

    def plot(self, ax: Axes | None = None) -> Figure:
        """Memory through the step by group, the peak marked; see :func:`vramcalc.show.figures.timeline`."""
        return display.figure(self, ax=ax)

    def _repr_html_(self) -> str:
        return display.html(self)


def make_job(
    model: str | ModelSpec,
    method: str | Method = "lora",
    *,
    training: TrainingSpec | None = None,
    stack: str | Stack = "transformers-trainer",
    gpu: str | Gpu | None = None,
    **settings: Any,
) -> tuple[Job, Gpu | None]:
    """Look up names and fill in defaults; see :func:`estimate`."""
    spec = catalog.model(model)
    chosen = kind_of(method, training, stack)
    stored, settings = over_storage(chosen, settings)
    given = by_spec(stored, settings)
    kept = {} if isinstance(method, str) else {n: getattr(method, n) for n in chosen.model_fields if n != "kind"}
    made = stored(**{**kept, **given["method"]})
    kind = made.kind if made.storage is None else "qlora"
    if isinstance(stack, str):
        defaults, asked = preset(stack).training, spec.attn_implementation or spec.family.attention[0]
        recipe = stack_of(stack, method=kind, **{"attn_implementation": asked} | given["stack"])
    else:
        defaults, recipe = {}, stack.replace(**given["stack"])
    plan = training.replace(**given["training"]) if training else TrainingSpec(**{**defaults, **given["training"]})
    device = None if gpu is None else catalog.gpu(gpu)
    capability = device.capability if device else DEFAULT_CAPABILITY
    parts = {"model": spec, "method": made, "training": plan, "compute_capability": capability}
    return likeliest_job(stack=recipe, **parts), device


def estimate(
    model: str | ModelSpec,
    method: str | Method = "lora",
    *,
    training: TrainingSpec | None = None,
    stack: str | Stack = "transformers-trainer",
    gpu: str | Gpu | None = None,
    **settings: Any,
) -> Estimate:
    """GPU memory of a fine-tuning run.

    Args:
        model: a Hugging Face id, a short name, a path to a ``config.json``, or a spec.
        method: ``full``, ``lora``, ``qlora``, ``dora``, ``adalora``, ``prompt_tuning``, ``p_tuning``,
            ``prefix_tuning``, or a spec.
        training: batch, length, optimizer and so on; defaults are the recipe's.
        stack: a recipe by name, or a spec.
        gpu: an id such as ``rtx-4090``, or a spec; it decides kernels, workspaces and the context.
        **settings: any field of the method, of ``TrainingSpec`` or of ``Stack``, by name; ``seq_lens=[...]`` is a
            run of exactly these optimizer steps, the first without optimizer states; ``seq_len`` is one that goes on.

    Returns:
        The estimate; reserved memory and the ledger are worked out when first asked for.

    Raises:
        UnknownName: a model, GPU, recipe or setting that does not exist.
        InvalidValue: a value out of range or of the wrong type.
        Unsupported: a model or setting that is not modelled.
    """
    job, device = make_job(model, method, training=training, stack=stack, gpu=gpu, **settings)
    return estimate_job(job, device)


def estimate_job(job: Job, gpu: Gpu | None = None) -> Estimate:
    """The estimate of a job that is spelled out; see :func:`estimate`."""
    walks = walks_of(job)
    peak, runner_up = walks.ranked[:2]
    return Estimate(
        job=job,
        gpu=gpu,
        warnings=tuple(warnings_for(job, gpu)),
        allocated_bytes=peak.n_bytes,
        instants=walks.instants,
        peak=peak,
        runner_up=runner_up,
        total_params=job.model.params_total,
        trainable_params=walks.trainable_params,
        paged_bytes=walks.paged_bytes,
        walks=walks,
    )
