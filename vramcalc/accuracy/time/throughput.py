"""Published training speeds, and the steps they were taken of.

One row per figure; ``tables/throughput.csv`` is such a file, in the vocabulary of ``tables/measurements.csv``. A row
becomes a step only where everything that decides its duration is known and counted; any other row has a reason.

References:
    Each row names its source as ``owner/repository@commit:path``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from vramcalc import tables
from vramcalc.accuracy.memory.unpublished_lengths import PEFT_METAMATHQA
from vramcalc.accuracy.published_rows import DTYPES, Reason, Row, adapters_known, adapters_of, require
from vramcalc.accuracy.time import published_speeds
from vramcalc.errors import DataError, InvalidValue, Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.stack import FullFineTuning, LoRA, Method, ModelSpec, QLoRA, Stack, TrainingSpec
from vramcalc.timing import matrices
from vramcalc.timing.flops import Tokens, seen
from vramcalc.timing.matrices import Matrices
from vramcalc.timing.work import Recipe, Work, work_of

COLUMNS = (
    "case_id", "source", "model", "method", "rank", "targets", "modules_to_save", "lora_dropout", "adapter_dtype",
    "weights_dtype", "autocast", "quant", "kbit_prepare", "optimizer", "micro_batch", "seq_len", "seq_kind",
    "tokens_per_step", "grad_accum", "checkpointing", "attention", "loss", "kernels", "stack", "n_gpus", "sharding",
    "offload", "gpu", "value", "unit", "scope", "wall_time_s", "steps", "note", "checked_on",
)  # fmt: skip
"""What a file must have; other columns are carried along."""

_LIKE = (
    "give a file like tables/throughput.csv, or one of published speeds with the columns "
    f"{', '.join(published_speeds.COLUMNS)}, which is converted"
)
_KINDS = ("fixed", "packed", "padded", "padding_free", "mean_known", "max_not_reached")
_CHECKPOINTING: dict[str, Any] = {
    "none": "none",
    "reentrant": "reentrant",
    "non_reentrant": "non_reentrant",
    "full": "reentrant",
}
_ATTENTION = ("flash1", "flash2", "flash", "sdpa", "eager")
_LOSSES: dict[str, Any] = {
    "full": "full",
    "": "full",
    "other": "full",
    "chunked": "chunked",
    "liger": "fused_linear",
    "unsloth": "full",
}
_OPTIMIZERS: dict[str, Any] = {
    "adamw_torch_fused": "adamw_torch_fused",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adam_bnb_8bit": "adamw_bnb_8bit",
    "adafactor": "adafactor",
}
"""Any other is torch's AdamW over several tensors at once, its default."""
_WITHOUT_FLASH = ("t4", "v100-sxm2-16")
_UNITS = ("tokens/s", "samples/s", "s/step")


@dataclass(frozen=True)
class MeasuredStep:
    """A row as a step: what was done, on which GPU, in which time.

    Attributes:
        row: as read.
        gpu: id in the table of GPUs.
        work: counts.
        step_s: duration of an optimizer step. [s]
        apart: lengths are not known, only that they are those of other rows: the speed is good for ratios alone.
    """

    row: Row
    gpu: str
    work: Work
    step_s: float
    apart: bool

    @property
    def model(self) -> str:
        """The model, for leaving it out."""
        return self.row["model"]

    @property
    def source(self) -> str:
        """Whose measurement it is, for leaving it out: the repository."""
        return self.row["source"].partition("@")[0].split(" ")[0]


def read_throughput(path: str | Path) -> Sequence[Row]:
    """Rows of a file in the schema, or in that of :mod:`vramcalc.accuracy.time.published_speeds`, which is converted.

    Raises:
        DataError: no such file, not CSV text, columns are missing, or a row holds what its column does not allow; the
            message names the line and the column.
    """
    rows: Sequence[Row] = tables.read_file(Path(path), _LIKE)
    foreign = bool(rows) and published_speeds.is_published(rows[0])
    if foreign:
        rows = published_speeds.converted(rows, tables.read("throughput"))
    elif not rows or not set(COLUMNS) <= set(rows[0]):
        rows = tables.read_file(Path(path), _LIKE, COLUMNS)
    for line, row in enumerate(rows, start=2):
        _check(row, f"{path}, line {line}", dated=not foreign)
    return rows


def _check(row: Row, where: str, *, dated: bool) -> None:
    if not row["case_id"]:
        raise DataError(f"{where}: case_id is empty; give each row an id")
    if not row["source"]:
        raise DataError(f"{where}: source is empty; say where the figure was published")
    try:
        if dated:
            tables.checked_on(dict(row))
    except DataError as err:
        raise DataError(f"{where}: {err}") from err
    if not _positive(row["value"]):
        raise DataError(f"{where}: value = {row['value']!r}: expected a positive number, the speed or duration")
    for column in ("rank", "micro_batch", "seq_len", "grad_accum", "n_gpus", "steps"):
        if row[column] and not (row[column].isdecimal() and int(row[column]) > 0):
            raise DataError(f"{where}: {column} = {row[column]!r}: expected a whole number above 0, or nothing")
    if row["tokens_per_step"] and not _positive(row["tokens_per_step"]):
        raise DataError(
            f"{where}: tokens_per_step = {row['tokens_per_step']!r}: expected a positive number, or nothing"
        )
    if row["seq_kind"] not in _KINDS:
        raise DataError(f"{where}: seq_kind = {row['seq_kind']!r}: expected one of {', '.join(_KINDS)}")


def _positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def measured_step(row: Row, length: int | None = None) -> MeasuredStep:
    """A row as a step.

    Args:
        row: as read.
        length: tokens of each sequence, for a row of which only the longest there may be is known.

    Raises:
        Unsupported: something about the run is unknown or not counted; the message is the reason, in few words.
    """
    apart = row["seq_kind"] == "max_not_reached" and length is not None
    _refuse(row, apart=apart)
    model = _model(row)
    method, stack = _method(row, model), _stack(row)
    training = TrainingSpec(
        micro_batch_size=int(row["micro_batch"]),
        seq_len=length or int(row["seq_len"]),
        gradient_accumulation_steps=int(row["grad_accum"] or 1),
        gradient_checkpointing=_CHECKPOINTING[row["checkpointing"]],
        optim=_OPTIMIZERS.get(row["optimizer"].partition("@")[0], "adamw_torch"),
        max_grad_norm=1.0 if row["stack"] in ("trainer", "trl", "ms-swift", "peft-loop") else 0.0,
    )
    tokens = _tokens(row, training, model)
    kernels = row["kernels"].split(";")
    recipe = Recipe(
        flash=row["gpu"] not in _WITHOUT_FLASH
        and "memory-efficient" not in row["note"]
        and row["stack"] != "peft-loop",
        fused="foak" in kernels or "liger" in kernels,
        fused_adapters="foak" in kernels and row["method"] == "qlora",
        compiled="compile" in kernels,
        norms_float32=row["kbit_prepare"] == "norms",
        gptq=row["quant"] == "gptq4",
    )
    try:
        work = work_of(model, method, training, stack, recipe, tokens)
    except InvalidValue as err:
        raise Reason(f"cannot run: {err}") from err
    return MeasuredStep(row, row["gpu"], work, _step_s(row, training, tokens), apart)


def _model(row: Row) -> ModelSpec | Matrices:
    found = matrices.known().get(row["model"].lower())
    if found is not None:
        return found
    if row["model"].lower() not in _in_table():
        raise Reason(f"matrices unknown: {row['model']}")
    try:
        return catalog.model(row["model"])
    except Unsupported:
        raise Reason(f"matrices unknown: {row['model']}") from None


@cache
def _in_table() -> frozenset[str]:
    """Names of the models in the table, in lower case; no other is looked up, for that would ask the hub."""
    return frozenset(
        name.lower() for row in tables.read("models") for name in (row["hf_id"], row["alias"], *row["also"].split())
    )


def _refuse(row: Row, *, apart: bool) -> None:
    """Go through what a row may have that no step can be made of, the most general first."""
    checks = (
        (row["n_gpus"] == "1", "several GPUs"),
        (row["method"] in ("full", "lora", "qlora"), f"method: {row['method']}"),
        (row["quant"] in ("none", "nf4", "fp4", "gptq4", ""), f"quantisation: {row['quant']}"),
        (bool(row["gpu"]), "GPU unknown"),
        (apart or row["seq_kind"] != "max_not_reached", "lengths unknown"),
        (row["attention"] in _ATTENTION, f"attention: {row['attention'] or 'unknown'}"),
        (row["checkpointing"] in _CHECKPOINTING, f"checkpointing: {row['checkpointing'] or 'unknown'}"),
        (row["sharding"] != "zero3", "ZeRO-3, which gathers weights by module"),
        (row["offload"] in ("none", ""), f"offload of {row['offload']}"),
        ("implausible" not in row["note"], "implausible: beyond the GPU's peak"),
        (row["weights_dtype"] in DTYPES, "weights dtype unknown"),
        (bool(row["micro_batch"]) and bool(row["seq_len"]), "batch unknown"),
        (adapters_known(row), "adapters unknown"),
        (row["unit"] in _UNITS, f"unit: {row['unit']}"),
    )
    require(checks)


def _method(row: Row, model: ModelSpec | Matrices) -> Method:
    if row["method"] == "full":
        return FullFineTuning()
    adapters = adapters_of(row)
    if adapters["target_modules"] == "all-linear" and isinstance(model, Matrices):
        adapters["target_modules"] = sorted({x.name.rpartition(".")[2] for x in model.linears})
    if row["method"] == "lora":
        return LoRA(**adapters)
    return QLoRA(**adapters, bnb_4bit_compute_dtype=DTYPES[row["weights_dtype"]])


def _stack(row: Row) -> Stack:
    """The recipe; heads are copied before SDPA, as most rows' releases do: grouped ones have no kernel in float32."""
    return Stack(
        dtype=DTYPES[row["weights_dtype"]],
        autocast=DTYPES.get(row["autocast"]),
        adapter_dtype="float32" if row["adapter_dtype"] in ("fp32", "") else "weights",
        prepare_model_for_kbit_training=row["kbit_prepare"] == "1",
        attn_implementation="eager" if row["attention"] == "eager" else "sdpa",
        repeats_kv=True,
        loss=_LOSSES[row["loss"]],
    )


def _tokens(row: Row, training: TrainingSpec, model: ModelSpec | Matrices) -> Tokens:
    """Tokens of a micro-batch; where only their number is known, sequences of the mean length."""
    batch, seq = training.micro_batch_size, training.seq_len
    if row["seq_kind"] in ("fixed", "packed", "max_not_reached"):
        return Tokens.padded([seq] * batch, window=model.sliding_window)
    if not row["tokens_per_step"]:
        raise Reason("lengths unknown")
    total = float(row["tokens_per_step"]) / training.gradient_accumulation_steps
    if row["seq_kind"] == "mean_known":
        return _bucketed(row, round(total), model)
    length = max(1, round(total / batch))
    n = round(total)
    return Tokens(n, n, batch * seen(length, model.sliding_window), batch * length * length, length)


def _bucketed(row: Row, real: int, model: ModelSpec | Matrices) -> Tokens:
    """Tokens of a batch of PEFT's comparison, whose loop fills it up to its longest sample."""
    lengths = PEFT_METAMATHQA
    if row["stack"] != "peft-loop" or int(row["micro_batch"]) != lengths.micro_batch_size:
        raise Reason("padding unknown")
    full = Tokens.padded([lengths.mean_batch] * lengths.micro_batch_size, window=model.sliding_window)
    return Tokens(full.computed, real, full.pairs, full.square, full.longest)


def _step_s(row: Row, training: TrainingSpec, tokens: Tokens) -> float:
    """Duration of an optimizer step. [s]"""
    value, micro_steps = float(row["value"]), training.gradient_accumulation_steps
    match row["unit"]:
        case "tokens/s":
            return tokens.real * micro_steps / value
        case "samples/s":
            return training.micro_batch_size * micro_steps / value
        case _:
            return value
