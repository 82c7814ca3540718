"""Speeds in the words of their sources, as rows of :mod:`vramcalc.accuracy.time.throughput`.

Collections of published speeds say less than a prediction needs: no modules that have adapters, no optimizer, no loss.
What such a file does not say stays empty, and a row that is short of it has that as its reason; a row that
``tables/throughput.csv`` has in full, by id and speed, is that row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vramcalc.accuracy.published_rows import Row

COLUMNS = (
    "case_id", "source_repo_or_paper", "source_path_or_table", "source_commit_or_version", "model_id", "method", "rank",
    "quant", "base_dtype", "micro_batch_size", "global_batch_size", "seq_len", "seq_note", "grad_checkpointing",
    "attention_impl", "framework", "torch_version", "n_gpus", "parallelism", "gpu_model", "throughput_value",
    "throughput_unit", "throughput_scope", "steps_or_samples", "notes",
)  # fmt: skip
"""What makes a file one of these."""

_GPUS = {
    "a100-40gb": "a100-sxm-40", "a100-80gb": "a100-sxm-80", "a10g-24gb": "a10g", "a5000 24gb": "a5000",
    "b200-180gb": "b200", "h100": "h100-sxm", "h100-80gb": "h100-sxm", "h100-96gb": "h100-sxm",
    "h100 80gb sxm": "h100-sxm", "h200-141gb": "h200", "l40s-48gb": "l40s", "rtx3090-24gb": "rtx-3090",
    "rtx4090-24gb": "rtx-4090", "rtxa6000-48gb": "a6000", "t4-16gb": "t4", "v100-16gb": "v100-sxm2-16",
}  # fmt: skip
_DTYPES = {"bfloat16": "bf16", "bf16": "bf16", "float16": "fp16", "fp16": "fp16", "float32": "fp32", "fp32": "fp32"}
_QUANT = {"gptq-int4": "gptq4", "gptq-int8": "gptq8", "fp8 training": "fp8"}
_CHECKPOINTING = {"true": "full", "false": "none"}
_UNITS = {"minutes for whole run": "min/run", "minutes per 1000 micro-iterations": "min/1000 micro-steps"}
_STACKS = {
    "sfttrainer": "trl", "trl": "trl", "ms-swift": "ms-swift", "hf trainer": "trainer", "torchtune": "torchtune",
    "peft+custom loop": "peft-loop", "plain loop": "transformers-loop",
}  # fmt: skip
"""Words of a framework, the first that fits; any other is its own name."""
_KERNELS = ("foak", "liger", "unsloth", "compile", "scattermoe")


def is_published(header: Mapping[str, Any]) -> bool:
    """Whether a file with these columns is one of these."""
    return set(COLUMNS) <= set(header)


def converted(rows: Sequence[Row], known: Sequence[Row]) -> list[dict[str, str]]:
    """Rows in the schema of ``tables/throughput.csv``.

    Args:
        rows: as read.
        known: rows that are known in full.
    """
    in_full = {row["case_id"]: row for row in known}
    found = []
    for row in rows:
        mine = _converted(row)
        other = in_full.get(mine["case_id"])
        found.append({**mine, **other} if other is not None and other["value"] == mine["value"] else mine)
    return found


def _converted(row: Row) -> dict[str, str]:
    framework, micro_batch = row["framework"].lower(), row["micro_batch_size"]
    kind, mean = _lengths(row["seq_note"])
    single = row["n_gpus"] == "1"
    return {
        "case_id": row["case_id"].removeprefix("T-"),
        "source": f"{row['source_repo_or_paper']}@{row['source_commit_or_version']}:{row['source_path_or_table']}",
        "model": row["model_id"],
        "method": row["method"],
        "rank": row["rank"] if row["rank"].isdecimal() else "",
        "targets": "",
        "modules_to_save": "",
        "lora_dropout": "",
        "adapter_dtype": "",
        "weights_dtype": _DTYPES.get(row["base_dtype"], ""),
        "autocast": "",
        "quant": _QUANT.get(row["quant"], row["quant"]),
        "kbit_prepare": "",
        "optimizer": "",
        "micro_batch": micro_batch,
        "seq_len": row["seq_len"],
        "seq_kind": kind,
        "tokens_per_step": f"{mean * int(micro_batch):g}" if mean and micro_batch.isdecimal() else "",
        "grad_accum": _accumulation(row),
        "checkpointing": _CHECKPOINTING.get(row["grad_checkpointing"], row["grad_checkpointing"]),
        "attention": row["attention_impl"],
        "loss": "",
        "kernels": ";".join(k for k in _KERNELS if k in framework) or "none",
        "stack": next((name for word, name in _STACKS.items() if word in framework), framework),
        "torch_version": row["torch_version"],
        "n_gpus": row["n_gpus"],
        "sharding": "none" if single and row["parallelism"] in ("none", "") else row["parallelism"],
        "offload": "",
        "gpu": _GPUS.get(row["gpu_model"].lower(), ""),
        "value": row["throughput_value"],
        "unit": "s/step" if row["throughput_unit"].startswith("s/iter") else _unit(row["throughput_unit"]),
        "scope": row["throughput_scope"],
        "wall_time_s": "",
        "steps": _first_number(row["steps_or_samples"], r"steps?\b"),
        "note": "; ".join(text for text in (row["seq_note"], row["notes"]) if text),
        "checked_on": "",
    }


def _unit(text: str) -> str:
    return _UNITS.get(text, text)


def _lengths(note: str) -> tuple[str, float | None]:
    """The kind of lengths that a note speaks of, and their mean where it gives one."""
    text = note.lower()
    if "padding-free" in text:
        return "padding_free", None
    if "padded to longest in batch" in text and not text.startswith("max"):
        return "padded", None
    if text.startswith(("fixed: packed", "packed")):
        return "packed", None
    if text.startswith("fixed"):
        return "fixed", None
    mean = re.search(r"mean ([\d.]+) tok/sample", text)
    return ("mean_known", float(mean[1])) if mean else ("max_not_reached", None)


def _accumulation(row: Row) -> str:
    """Micro-steps of a step, where the batches say it."""
    sizes = row["global_batch_size"], row["micro_batch_size"], row["n_gpus"]
    if not all(size.isdecimal() and int(size) for size in sizes):
        return ""
    whole, micro_batch, n_gpus = map(int, sizes)
    return str(whole // (micro_batch * n_gpus)) if whole % (micro_batch * n_gpus) == 0 else ""


def _first_number(text: str, unit: str) -> str:
    found = re.match(rf"(\d+) {unit}", text)
    return found[1] if found else ""
