"""Published measurements of memory, and the jobs they were taken of.

One schema, one row per figure; ``tables/measurements.csv`` is such a file. A row becomes a job only where every setting
that decides memory is known and modelled; any other row has a reason.

References:
    Each row names its source as ``owner/repository@commit:path``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vramcalc import tables
from vramcalc.accuracy.memory.measured_jobs import measured, reserved_on_its_gpu, settings_of
from vramcalc.accuracy.published_rows import Reason, Row
from vramcalc.errors import DataError, VramcalcError, shown
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Gpu
from vramcalc.interval import Interval
from vramcalc.memory.calibration.file import current
from vramcalc.memory.calibration.similarity import recipe_id
from vramcalc.memory.estimate import Estimate, estimate

COLUMNS = (
    "case_id", "model", "n_layers_override", "method", "rank", "targets", "modules_to_save", "lora_dropout",
    "adapter_dtype", "weights_dtype", "autocast", "quant", "double_quant", "kbit_prepare", "optimizer", "micro_batch",
    "seq_len", "seq_kind", "grad_accum", "checkpointing", "attention", "loss", "kernels", "stack",
    "transformers_version", "n_gpus", "sharding", "offload", "gpu", "metric", "value_bytes", "use_cache",
    "keeps_outputs", "zero_grad", "note",
)  # fmt: skip
"""What a file must have; other columns are carried along."""


@dataclass(frozen=True)
class PredictedRow:
    """A row and what is predicted for it.

    Attributes:
        row: as read.
        predicted_bytes: None where the row is not supported. [B]
        reason: why it is not, empty where it is.
        job: that the row is of, None where it is not supported.
        gpu: that it ran on, None where that is not known.
        low_bytes: lower end of the interval, made without runs of the same recipe. [B]
        high_bytes: its upper end. [B]
        unsplit_bytes: of blocks that loading leaves unsplit, what they have beyond what was asked for. [B]
    """

    row: Row
    predicted_bytes: int | None
    reason: str
    job: Job | None = field(default=None, repr=False)
    gpu: Gpu | None = field(default=None, repr=False)
    low_bytes: int | None = None
    high_bytes: int | None = None
    unsplit_bytes: int = 0

    @property
    def value_bytes(self) -> int | None:
        """The measured figure, None for runs that ended out of memory. [B]"""
        return int(self.row["value_bytes"]) if self.row["value_bytes"] else None

    @property
    def error(self) -> float | None:
        """Predicted over measured, less one."""
        if self.predicted_bytes is None or not self.value_bytes:
            return None
        return self.predicted_bytes / self.value_bytes - 1

    @property
    def assumed(self) -> str:
        """What was taken for a release of transformers that the row does not name; empty where it does."""
        return "" if self.job is None or self.row["transformers_version"] else self.job.stack.transformers

    @property
    def covered(self) -> bool:
        """Whether the interval holds the measured figure."""
        if self.value_bytes is None or self.low_bytes is None or self.high_bytes is None:
            return False
        return self.low_bytes <= self.value_bytes <= self.high_bytes

    @property
    def width(self) -> float:
        """Of the interval from end to end, over what is predicted."""
        if not self.predicted_bytes or self.low_bytes is None or self.high_bytes is None:
            return 0.0
        return (self.high_bytes - self.low_bytes) / self.predicted_bytes

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "case_id": self.row["case_id"],
            "metric": self.row["metric"],
            "n_gpus": self.row["n_gpus"],
            "value_bytes": self.value_bytes,
            "predicted_bytes": self.predicted_bytes,
            "low_bytes": self.low_bytes,
            "high_bytes": self.high_bytes,
            "reason": self.reason,
            "assumed_transformers": self.assumed,
        }


def read_measurements(path: str | Path) -> Sequence[Row]:
    """Rows of a file in the schema.

    Raises:
        DataError: no such file, not CSV text, columns or fields are missing, or a field is no number that has to be.
    """
    rows = tables.read_file(Path(path), "give a file like tables/measurements.csv", COLUMNS)
    for line, row in enumerate(rows, start=2):
        for name in _NUMBERS:
            if row[name] and not _is_number(row[name], whole=name != "lora_dropout"):
                raise DataError(f"{path}, row {line}: {name} = {shown(row[name])}: expected a number, or nothing")
    return rows


_NUMBERS = (
    "n_layers_override", "rank", "lora_dropout", "micro_batch", "seq_len", "grad_accum", "n_gpus", "value_bytes",
)  # fmt: skip


def _is_number(text: str, *, whole: bool) -> bool:
    if not text.isascii() or "_" in text or len(text) > 18:
        return False
    try:
        return math.isfinite(int(text) if whole else float(text))
    except ValueError:
        return False


def quantity_of(metric: str) -> str:
    """What a metric is a figure of, by the names of :meth:`vramcalc.memory.estimate.Estimate.interval`."""
    known = {"allocated_max": "blocks", "reserved_max": "reserved"}
    of_process = ("process_used", "device_used", "oom")
    return known.get(metric, "process" if metric in of_process else "snapshot")


def held_out_interval(found: Estimate, metric: str, value: int) -> Interval:
    """The interval of a row, made without any run of its recipe. [B]"""
    own = recipe_id(found.job, found.gpu)
    without = current().without_recipe(own)
    return found.interval(quantity_of(metric), value_bytes=value, calibration=without)


def predict(rows: Sequence[Row], *, calibrated: bool = True) -> Iterator[PredictedRow]:
    """Predict every row that can be; metrics of one run share its walk.

    Args:
        rows: as read.
        calibrated: add the CUDA context to memory of processes, and intervals; without it they are what the
            allocator reserves, which is what a calibration is made of.
    """
    known: dict[tuple[str, ...], PredictedRow] = {}
    attached = {row.get("run_id") for row in rows if row["metric"] == "phase:after_lora_attach"} - {None}
    for row in rows:
        later = row.get("run_id") in attached
        try:
            # Releases and dates are no columns of every file, and some are read off the name of a run.
            same = tuple(row[c] for c in COLUMNS if c not in ("case_id", "value_bytes"))
            key = (*same, str(later), repr(settings_of(row)))
            if key not in known:
                known[key] = _predicted(row, later, calibrated)
            yield replace(known[key], row=row)
        except VramcalcError as err:
            yield PredictedRow(row, None, str(err) if isinstance(err, Reason) else f"refused: {type(err).__name__}")


def _predicted(row: Row, attached_later: bool, calibrated: bool) -> PredictedRow:
    found = estimate(row["model"], row["method"], **settings_of(row))
    if not calibrated and quantity_of(row["metric"]) == "process":
        value = reserved_on_its_gpu(found)
        return PredictedRow(row, value, "", found.job, found.gpu, unsplit_bytes=found.walks.unsplit_bytes)
    value = measured(found, row, attached_later=attached_later)
    bare = PredictedRow(row, value, "", found.job, found.gpu, unsplit_bytes=found.walks.unsplit_bytes)
    if not calibrated:
        return bare
    others = (
        held_out_interval(o, row["metric"], measured(o, row, attached_later=attached_later)) for o in found.others
    )
    interval = held_out_interval(found, row["metric"], value).spanning(others)
    return replace(bare, low_bytes=int(interval.low), high_bytes=math.ceil(interval.high))
