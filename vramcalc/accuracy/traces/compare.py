"""An estimate beside a trace of the real libraries: the same peaks, or the first tensor that only one of them has."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vramcalc import display
from vramcalc.accuracy.traces.first_difference import LiveRow, first_difference
from vramcalc.errors import InvalidValue, MissingExtra, Unsupported
from vramcalc.inputs.job import Job
from vramcalc.inputs.releases import minor_release
from vramcalc.inputs.stack import Gpu, ModelSpec
from vramcalc.memory.estimate import Estimate, estimate_job, make_job
from vramcalc.profiling.installed_versions import installed_versions

if TYPE_CHECKING:
    from vramcalc.profiling.trace.result import Trace

TOLERANCE = 2e-4
"""Of the allocated peak, relative."""
_NEEDED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True)
class Peaks:
    """One side: highest allocated and reserved memory, and what runs at the former. [B]"""

    allocated_bytes: int
    reserved_bytes: int
    instant: str


@dataclass(frozen=True)
class Agreement:
    """A trace and an estimate of one job.

    Attributes:
        estimate: what was predicted.
        trace: what the libraries did.
        traced: peaks of the trace.
        predicted: peaks of the estimate.
        difference: where allocated peaks differ, the first row that only one side has alive at the traced peak.
    """

    estimate: Estimate
    trace: Trace
    traced: Peaks
    predicted: Peaks
    difference: LiveRow | None

    @property
    def allocated_error(self) -> float:
        """Predicted over traced, less one."""
        return self.predicted.allocated_bytes / self.traced.allocated_bytes - 1

    @property
    def reserved_error(self) -> float:
        """Predicted over traced, less one."""
        return self.predicted.reserved_bytes / self.traced.reserved_bytes - 1

    @property
    def agrees(self) -> bool:
        """Whether the allocated peaks are within the tolerance."""
        return abs(self.allocated_error) <= TOLERANCE

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        job = self.estimate.job
        return {
            "model": job.model.name,
            "method": job.method.kind,
            "layers": job.model.num_hidden_layers,
            "traced": vars(self.traced),
            "predicted": vars(self.predicted),
            "allocated_error": self.allocated_error,
            "reserved_error": self.reserved_error,
            "agrees": self.agrees,
            "difference": vars(self.difference) if self.difference else None,
            "versions": self.trace.versions,
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """``to_dict`` as JSON."""
        return json.dumps(self.to_dict(), indent=indent)

    def __str__(self) -> str:
        return display.text(self)


def trace_and_estimate(
    model: str | ModelSpec, method: str = "lora", *, gpu: Gpu | None = None, layers: int | None = None, **settings: Any
) -> Agreement:
    """Trace a job with the real libraries, estimate it, and compare.

    Args:
        model: as for :func:`vramcalc.estimate`.
        method: as for :func:`vramcalc.estimate`.
        gpu: the device whose kernels are chosen.
        layers: decoder layers to build instead of the model's own number.
        **settings: as for :func:`vramcalc.estimate`.

    Raises:
        MissingExtra: a library to trace with is not installed.
        InvalidValue: no layers.
    """
    job, device = make_job(model, method, gpu=gpu, **settings)
    if layers is not None:
        if layers < 1:
            raise InvalidValue("layers", layers, "at least 1")
        job = Job(
            job.model.replace(num_hidden_layers=layers), job.method, job.training, job.stack, job.compute_capability
        )
    return compare(estimate_job(job, device))


def other_release(job: Job, libraries: Iterable[str] = ("transformers",)) -> str | None:
    """The first of ``libraries`` of which another release is installed than the job models, in words; None if none is.

    Raises:
        MissingExtra: a library to trace with is not installed.
    """
    _checked_installed()
    installed = installed_versions()
    for library in libraries:
        asked = getattr(job.stack, library)
        if minor_release(installed[library]) != minor_release(asked):
            return f"{library} {asked} is modelled and {installed[library]} is installed"
    return None


def compare(estimate: Estimate) -> Agreement:
    """Trace the job of an estimate and compare; see :func:`trace_and_estimate`.

    Raises:
        Unsupported: the job models another release of transformers than the one that would run.
    """
    job, stream = estimate.job, estimate.walks.stream
    if reason := other_release(job):
        raise Unsupported(f"{reason}: a trace can only run what is installed; name that release, or install the other")
    lengths = job.training.seq_lens or (job.training.seq_len,) * len(stream.order)
    found = _traced(job, lengths)
    allocated, at = found.peak()
    replayed = found.replay(job.stack.allocator, empty_before=stream.empty_before)
    traced = Peaks(allocated, replayed.peak_reserved_bytes, _instant(found, at))
    reserved = estimate.walks.from_loaded.peak_reserved_bytes
    predicted = Peaks(estimate.allocated_bytes, reserved, estimate.peak.name)
    same = traced.allocated_bytes == predicted.allocated_bytes
    return Agreement(estimate, found, traced, predicted, None if same else first_difference(found, at, job, lengths))


def _checked_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtra("profile", "tracing runs the real libraries", missing)


def _traced(job: Job, lengths: tuple[int, ...]) -> Trace:
    """The trace of a job, whatever libraries say kept off stdout."""
    with _quiet():
        try:
            from vramcalc.profiling.trace.trace import trace

            return trace(
                job.model,
                job.method,
                job.training,
                job.stack,
                compute_capability=job.compute_capability,
                steps=len(lengths),
                seq_lens=lengths,
            )
        except ModuleNotFoundError as err:
            raise MissingExtra("profile", "this recipe runs one more library", [str(err.name)]) from err


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Words that libraries print go to stderr, their log messages below errors nowhere."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logging.disable(before)


def _instant(trace: Trace, at: int) -> str:
    """What runs at the peak: the phase, and the storage made last."""
    event = trace.events[at - 1]
    if event < 0:
        return trace.phase_at(at)
    last = trace.allocations[event]
    return f"{trace.phase_at(at)}: {last.op} in {last.node or last.module or 'the loop'}"
