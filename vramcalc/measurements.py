"""Published measurements of memory, and the jobs they were taken of.

One schema, one row per figure; ``tables/measurements.csv`` is such a file. A row becomes a job only where every setting
that decides memory is known and modelled; any other row has a reason.

References:
    Each row names its source as ``owner/repository@commit:path``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vramcalc.errors import DataError, VramcalcError
from vramcalc.estimation import estimate
from vramcalc.measured_jobs import Reason, Row, measured, settings_of

COLUMNS = (
    "case_id", "model", "n_layers_override", "method", "rank", "targets", "modules_to_save", "lora_dropout",
    "adapter_dtype", "weights_dtype", "autocast", "quant", "double_quant", "kbit_prepare", "optimizer", "micro_batch",
    "seq_len", "seq_kind", "grad_accum", "checkpointing", "attention", "loss", "kernels", "stack",
    "transformers_version", "n_gpus", "sharding", "offload", "gpu", "metric", "value_bytes", "use_cache",
    "keeps_outputs", "zero_grad", "note",
)  # fmt: skip
"""What a file must have; other columns are carried along."""


@dataclass(frozen=True)
class Prediction:
    """A row and what is predicted for it.

    Attributes:
        row: as read.
        predicted_bytes: None where the row is not supported. [B]
        reason: why it is not, empty where it is.
    """

    row: Row
    predicted_bytes: int | None
    reason: str

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values; without a calibrated interval its ends are None."""
        return {
            "case_id": self.row["case_id"],
            "metric": self.row["metric"],
            "n_gpus": self.row["n_gpus"],
            "value_bytes": self.value_bytes,
            "predicted_bytes": self.predicted_bytes,
            "low_bytes": None,
            "high_bytes": None,
            "reason": self.reason,
        }


def read_measurements(path: str | Path) -> list[Row]:
    """Rows of a file in the schema.

    Raises:
        DataError: no such file, not CSV text, or columns are missing.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = [c for c in COLUMNS if c not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} lacks the columns {', '.join(missing)}; see tables/measurements.csv")
            return list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path} cannot be read as CSV: {err}; give a file like tables/measurements.csv") from err


def predict(rows: list[Row]) -> Iterator[Prediction]:
    """Predict every row that can be; metrics of one run share its walk."""
    known: dict[tuple[str, ...], int | str] = {}
    attached = {row.get("run_id") for row in rows if row["metric"] == "phase:after_lora_attach"} - {None}
    for row in rows:
        key = tuple(row[c] for c in COLUMNS if c not in ("case_id", "value_bytes"))
        if key not in known:
            try:
                found = estimate(row["model"], row["method"], **settings_of(row))
                known[key] = measured(found, row, attached_later=row.get("run_id") in attached)
            except VramcalcError as err:
                known[key] = str(err) if isinstance(err, Reason) else f"refused: {type(err).__name__}"
        answer = known[key]
        yield Prediction(row, None, answer) if isinstance(answer, str) else Prediction(row, answer, "")
