"""Published measurements of memory, and the jobs they were taken of.

One schema, one row per figure; ``tables/measurements.csv`` is such a file. A row becomes a job only where every setting
that decides memory is known and modelled; any other row has a reason.

References:
    Each row names its source as ``owner/repository@commit:path``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vramcalc import catalog
from vramcalc.errors import DataError, Unsupported, VramcalcError
from vramcalc.estimation import Estimate, estimate

COLUMNS = (
    "case_id", "model", "n_layers_override", "method", "rank", "targets", "modules_to_save", "lora_dropout",
    "adapter_dtype", "weights_dtype", "autocast", "quant", "double_quant", "kbit_prepare", "optimizer", "micro_batch",
    "seq_len", "seq_kind", "grad_accum", "checkpointing", "attention", "loss", "kernels", "stack",
    "transformers_version", "n_gpus", "sharding", "offload", "gpu", "metric", "value_bytes", "use_cache",
    "keeps_outputs", "zero_grad", "note",
)  # fmt: skip
"""What a file must have; other columns are carried along."""

Row = Mapping[str, str]

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_OPTIMIZERS = {
    "adamw_torch_foreach": "adamw_torch",
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch_fused",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
_GPUS = {
    "t4": "t4",
    "v100-16": "v100-sxm2-16",
    "a10g": "a10g",
    "l4": "l4",
    "l40s": "l40s",
    "a100-40": "a100-sxm-40",
    "a100-80": "a100-sxm-80",
    "h100-80": "h100-sxm",
    "rtx3090": "rtx-3090",
    "rtx4080": "rtx-4080",
    "rtx4090": "rtx-4090",
}
_STACKS = {"transformers-loop": False, "trainer": True, "trl": True}
"""Loops that are modelled, and whether Trainer runs them: two parameter groups, clipping, only the loss kept."""
_PEAKS_OF_PHASES = {"phase:forward_peak": "forward", "phase:optimizer_step_peak": "optimizer step"}
"""Peaks within a phase, and how the names of its instants begin; snapshots after a phase are not predicted."""
_METRICS = ("allocated_max", "reserved_max", "process_used", *_PEAKS_OF_PHASES)


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
    """Predict every row that can be; metrics of one run share its estimate."""
    known: dict[tuple[str, ...], Estimate | str] = {}
    for row in rows:
        key = tuple(row[c] for c in COLUMNS if c not in ("case_id", "metric", "value_bytes"))
        if key not in known:
            try:
                known[key] = estimate(row["model"], row["method"], **settings_of(row))
            except VramcalcError as err:
                known[key] = str(err) if isinstance(err, _Reason) else f"refused: {type(err).__name__}"
        found = known[key]
        if isinstance(found, str):
            yield Prediction(row, None, found)
        elif row["metric"] not in _METRICS:
            yield Prediction(row, None, f"metric {row['metric'].partition(':')[0]}")
        else:
            yield Prediction(row, _metric(found, row["metric"]), "")


def _metric(found: Estimate, metric: str) -> int:
    match metric:
        case "allocated_max":
            return found.block_bytes
        case "reserved_max":
            return found.reserved_bytes
        case "process_used":
            return found.process_bytes
        case _:
            phase = _PEAKS_OF_PHASES[metric]
            return max(i.n_bytes for i in found.instants if i.name.startswith(phase))


class _Reason(Unsupported):
    """Why a row is not predicted, in few words: rows are counted by it."""


def settings_of(row: Row) -> dict[str, Any]:
    """What :func:`vramcalc.estimate` has to be told about a row.

    Raises:
        Unsupported: something about the run is unknown or not modelled.
    """
    _refuse(row)
    trainer = _STACKS[row["stack"]]
    pinned = "pinned to memory-efficient" in row["note"]
    settings: dict[str, Any] = {
        "gpu": _GPUS[row["gpu"]] if row["gpu"] else None,
        "micro_batch_size": int(row["micro_batch"]),
        "seq_len": int(row["seq_len"]),
        "gradient_accumulation_steps": int(row["grad_accum"] or 1),
        # Where the flavour is unknown: the peaks of both were within about a megabyte on the rows there are.
        "gradient_checkpointing": {"full": "non_reentrant"}.get(row["checkpointing"], row["checkpointing"]),
        "optim": _OPTIMIZERS[row["optimizer"]],
        "max_grad_norm": 1.0 if trainer else 0.0,
        "dtype": _DTYPES[row["weights_dtype"]],
        "autocast": _DTYPES.get(row["autocast"]),
        "attn_implementation": row["attention"],
        "sdpa_kernel": "efficient" if pinned else "auto",
        "repeats_kv": pinned,
        "use_cache": row["use_cache"] == "1",
        "keeps_outputs": "next_forward" if row["keeps_outputs"] == "1" else "no" if trainer else "step",
        "zero_grad": "start" if row["zero_grad"] == "begin" else "end",
        "decay_groups": trainer,
    }
    if row["method"] == "full":
        return settings
    settings |= {
        "rank": int(row["rank"]),
        "lora_dropout": float(row["lora_dropout"] or 0),
        "target_modules": "all-linear" if row["targets"] == "all-linear" else row["targets"].split(";"),
        "modules_to_save": [m for m in row["modules_to_save"].split(";") if m],
        "adapter_dtype": "float32" if row["adapter_dtype"] == "fp32" else "weights",
    }
    if row["method"] == "qlora":
        settings |= {
            "bnb_4bit_quant_type": row["quant"],
            "bnb_4bit_use_double_quant": row["double_quant"] == "1",
            "bnb_4bit_compute_dtype": _DTYPES[row["weights_dtype"]],
            "prepare_model_for_kbit_training": row["kbit_prepare"] == "1",
        }
    return settings


def _refuse(row: Row) -> None:
    """Go through what a row may have that no estimate can be made of, the most general first."""
    version = row["transformers_version"]
    checks = (
        (row["stack"] in _STACKS, f"stack {row['stack'] or 'unknown'}"),
        (row["method"] in ("full", "lora", "qlora"), f"method {row['method']}"),
        (row["quant"] in ("none", "nf4", "fp4", ""), f"quantisation {row['quant']}"),
        (row["n_gpus"] == "1", "several GPUs"),
        (row["sharding"] in ("none", "") and row["offload"] in ("none", ""), "sharding or offload"),
        (not version or version.startswith("5."), f"transformers {'.'.join(version.split('.')[:2])}"),
        (row["attention"] in ("eager", "sdpa"), f"attention {row['attention'] or 'unknown'}"),
        (row["kernels"] in ("none", ""), f"kernels {row['kernels']}"),
        (row["loss"] in ("full", ""), f"loss {row['loss']}"),
        (
            row["checkpointing"] in ("none", "reentrant", "non_reentrant", "full"),
            f"checkpointing {row['checkpointing']}",
        ),
        (row["optimizer"] in _OPTIMIZERS, f"optimizer {row['optimizer']}"),
        (row["gpu"] in _GPUS or not row["gpu"], f"GPU {row['gpu']}"),
        (row["kbit_prepare"] != "norms", "k-bit preparation of norms alone"),
        (row["weights_dtype"] in _DTYPES, "weights dtype unknown"),
        (bool(row["micro_batch"]) and bool(row["seq_len"]), "batch or length unknown"),
        (
            row["method"] == "full" or (bool(row["rank"]) and row["targets"] not in ("", "peft-default")),
            "adapters unknown",
        ),
        (not row["n_layers_override"], "another number of layers"),
    )
    for holds, reason in checks:
        if not holds:
            raise _Reason(reason)
    try:
        catalog.model(row["model"])
    except VramcalcError:
        raise _Reason(f"model {row['model']}") from None
