"""From a row of published measurements to the job it measured, and which of the job's figures it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from vramcalc import tables
from vramcalc.accuracy.memory.unpublished_lengths import PEFT_METAMATHQA
from vramcalc.accuracy.published_rows import DTYPES, Reason, Row, adapters_known, adapters_of, require
from vramcalc.errors import DoesNotFit, VramcalcError
from vramcalc.inputs import catalog
from vramcalc.inputs.release_dates import UNKNOWN
from vramcalc.inputs.releases import BITSANDBYTES_CHECKED, PEFT_CHECKED, minor_release, release_of
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.memory.estimate import Estimate
from vramcalc.memory.snapshots import snapshots
from vramcalc.units import MIB

_OPTIMIZERS = {
    "adamw_torch_foreach": "adamw_torch",
    "adamw_torch": "adamw_torch",
    "adamw_torch_fused": "adamw_torch_fused",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adafactor": "adafactor",
}
TRAINERS = {"transformers-loop": False, "peft-loop": False, "trainer": True, "trl": True}
"""Loops of the Hugging Face stack, and whether Trainer runs them: two parameter groups, clipping, the loss kept."""
_KERNELS = {"": "none", "none": "none", "foak": "fms_acceleration", "foak;liger": "fms_acceleration"}
_LOSSES = {"": "full", "full": "full", "unsloth": "fused_cross_entropy", "liger": "fused_linear"}
_ATTENTION = {"eager": "eager", "sdpa": "sdpa", "flash2": "flash_attention_2"}

_VERSIONS: dict[str, tuple[str, Callable[[tuple[int, int]], object]]] = {
    "transformers": ("transformers_version", release_of),
    "peft": ("peft_version", lambda minor: PEFT_CHECKED[0] <= minor <= PEFT_CHECKED[1]),
    "bitsandbytes": ("bnb_version", lambda minor: BITSANDBYTES_CHECKED[0] <= minor <= BITSANDBYTES_CHECKED[1]),
}
"""Columns of releases, and what tells those that are modelled."""

_PEAKS = {"phase:forward_peak": "forward", "phase:optimizer_step_peak": "optimizer step"}
"""Peaks within a phase, and how the names of its instants begin."""
_SNAPSHOTS = {
    "phase:after_load": "loaded",
    "phase:after_lora_attach": "loaded",
    "phase:after_first_forward": "step0.forward",
    "phase:after_first_backward": "step0.backward",
    "phase:after_first_optimizer_step": "step0.zero_grad",
    "allocated_avg_step_end": "step1.optimizer",
    "allocated_end_of_train": "step1.zero_grad",
}
"""What is allocated between two phases; after the first step without its gradients, as the loop drops them before."""
METRICS = (
    *("allocated_max", "reserved_max", "process_used", "device_used", "oom"),
    *_PEAKS,
    *_SNAPSHOTS,
)
"""Figures that are predicted."""

_FIRST_SEGMENT_BYTES = 2 * MIB
"""PEFT's benchmark subtracts what is reserved before the model is loaded, the segment of one small tensor."""


def measured(found: Estimate, row: Row, *, attached_later: bool = False) -> int:
    """The predicted figure of a row's metric. [B]

    Args:
        found: the estimate of the row's job.
        row: whose metric counts.
        attached_later: the run has a figure of its own for the moment when adapters had been attached, so that what
            was loaded before is the base model alone.
    """
    metric = row["metric"]
    if metric == "phase:after_load" and attached_later:
        return snapshots(found.walks)["base loaded"] + found.walks.unsplit_bytes
    less = _FIRST_SEGMENT_BYTES if row["stack"] == "peft-loop" else 0
    match metric:
        case "allocated_max":
            return found.block_bytes - less
        case "reserved_max":
            return found.reserved_bytes - less
        case "process_used" | "device_used":
            return reserved_on_its_gpu(found) + found.context.n_bytes
        case "oom":
            return found.process_bytes
    if metric in _PEAKS:
        return max(i.n_bytes for i in found.instants if i.name.startswith(_PEAKS[metric])) + found.walks.unsplit_bytes
    at, moment = snapshots(found.walks), _SNAPSHOTS[metric]
    # Gradients that are dropped at the start of the next step are still there.
    alive = at.get(moment, at[moment.replace("zero_grad", "optimizer")])
    return alive + found.walks.unsplit_bytes - less


def reserved_on_its_gpu(found: Estimate) -> int:
    """Peak of what is reserved where the GPU sets a limit: torch gives cached blocks back before it runs out. [B]"""
    if found.gpu is None or found.process_bytes <= found.gpu.usable_bytes:
        return found.reserved_bytes
    try:
        return found.walks.replay_within(found.gpu.usable_bytes - found.context.n_bytes).peak_reserved_bytes
    except DoesNotFit:
        return found.reserved_bytes


def capacity_bytes(row: Row) -> int:
    """Memory of the GPU a row was measured on. [B]"""
    return catalog.gpu(row["gpu"]).usable_bytes


def settings_of(row: Row) -> dict[str, Any]:
    """What :func:`vramcalc.estimate` has to be told about a row.

    Raises:
        Reason: something about the run is unknown or not modelled.
    """
    _refuse(row)
    trainer = TRAINERS[row["stack"]]
    pinned = "pinned to memory-efficient" in row["note"]
    settings: dict[str, Any] = {
        "gpu": catalog.gpu(row["gpu"]).gpu_id if row["gpu"] else None,
        "micro_batch_size": int(row["micro_batch"]),
        "seq_len": int(row["seq_len"]),
        "gradient_accumulation_steps": int(row["grad_accum"] or 1),
        # Where the flavour is unknown: the peaks of both were within about a megabyte on the rows there are.
        "gradient_checkpointing": {"full": "non_reentrant"}.get(row["checkpointing"], row["checkpointing"]),
        "optim": _OPTIMIZERS[row["optimizer"]],
        "max_grad_norm": 1.0 if trainer else 0.0,
        "dtype": DTYPES[row["weights_dtype"]],
        "autocast": DTYPES.get(row["autocast"]),
        "attn_implementation": _ATTENTION[row["attention"]],
        "sdpa_kernel": "efficient" if pinned else "auto",
        "repeats_kv": pinned,
        "use_cache": row["use_cache"] == "1",
        "keeps_outputs": "next_forward" if row["keeps_outputs"] == "1" else "no" if trainer else "step",
        "zero_grad": "start" if row["zero_grad"] == "begin" else "end",
        "decay_groups": trainer,
        "outputs_to_float32": trainer,
        "loss": _LOSSES[row["loss"]],
        "fused_kernels": _KERNELS[row["kernels"]],
        **_releases(row),
        **(_of_peft_loop(row) if row["stack"] == "peft-loop" else {}),
    }
    return settings if row["method"] == "full" else settings | _of_adapters(row)


def _releases(row: Row) -> dict[str, str]:
    """Versions that a row gives of the libraries that its run used; of transformers, else when the run was."""
    given = _given_releases(row)
    return given if "transformers" in given else {"transformers": run_on(row), **given}


def _given_releases(row: Row) -> dict[str, str]:
    given = {name: row.get(column, "") for name, (column, _) in _VERSIONS.items()}
    return {name: version for name, version in given.items() if version and _uses(name, row)}


def _uses(library: str, row: Row) -> bool:
    """Whether a run used a library: PEFT for adapters, bitsandbytes for four bits and for its own optimizers."""
    match library:
        case "peft":
            return row["method"] != "full"
        case "bitsandbytes":
            return row["method"] == "qlora" or "8bit" in row["optimizer"]
    return True


def run_on(row: Row) -> str:
    """When a run was that does not name its release: its own ``run_on``, else that of its source, else ``unknown``."""
    dates = {dated["runs"]: dated["run_on"] for dated in tables.read("run_dates")}
    return row.get("run_on") or dates.get(row.get("source", "").partition(":")[0]) or UNKNOWN


def _of_adapters(row: Row) -> dict[str, Any]:
    settings = adapters_of(row) | {"adapter_dtype": "float32" if row["adapter_dtype"] == "fp32" else "weights"}
    if row["method"] == "qlora":
        settings |= {
            "bnb_4bit_quant_type": row["quant"],
            "bnb_4bit_use_double_quant": row["double_quant"] == "1",
            "bnb_4bit_compute_dtype": DTYPES[row["weights_dtype"]],
            "prepare_model_for_kbit_training": row["kbit_prepare"] in ("1", "norms"),
            "casts_embeddings_to_bf16": row["kbit_prepare"] == "norms",
        }
    return settings


def _of_peft_loop(row: Row) -> dict[str, Any]:
    """PEFT's benchmark: padded batches sorted by length, the cache emptied every ten steps, clipping at 1.

    The mean of the lengths is what an average over steps depends on; peaks depend on the longest, and on what came
    before it.
    """
    lengths = PEFT_METAMATHQA
    averaged = row["metric"] == "allocated_avg_step_end"
    return {
        "padded": True,
        "max_grad_norm": 1.0,
        "empty_cache_steps": 10,
        "seq_len": lengths.mean_batch if averaged else lengths.longest,
        "seq_lens": None if averaged else lengths.history,
    }


def _refuse(row: Row) -> None:
    """Go through what a row may have that no estimate can be made of, the most general first."""
    checks = (
        (row["stack"] in TRAINERS, f"stack {row['stack'] or 'unknown'}"),
        (row["method"] in METHOD_CLASSES, f"method {row['method']}"),
        (row["quant"] in ("none", "nf4", "fp4", ""), f"quantisation {row['quant']}"),
        (row["n_gpus"] == "1", "several GPUs"),
        (row["sharding"] in ("none", "") and row["offload"] in ("none", ""), "sharding or offload"),
        *_releases_checked(row),
        (row["attention"] in _ATTENTION, f"attention {row['attention'] or 'unknown'}"),
        (row["kernels"] in _KERNELS, f"kernels {row['kernels']}"),
        (row["loss"] in _LOSSES, f"loss {row['loss']}"),
        (
            row["checkpointing"] in ("none", "reentrant", "non_reentrant", "full"),
            f"checkpointing {row['checkpointing']}",
        ),
        (row["optimizer"] in _OPTIMIZERS, f"optimizer {row['optimizer']}"),
        (not row["gpu"] or _gpu_known(row["gpu"]), f"GPU {row['gpu']}"),
        (row["weights_dtype"] in DTYPES, "weights dtype unknown"),
        (bool(row["micro_batch"]) and bool(row["seq_len"]), "batch or length unknown"),
        (_known_length(row), "benchmark of unknown lengths"),
        (adapters_known(row), "adapters unknown"),
        (not row["n_layers_override"], "another number of layers"),
        (row["metric"] in METRICS, f"metric {row['metric'].partition(':')[0]}"),
    )
    require(checks)
    try:
        catalog.model(row["model"])
    except VramcalcError:
        raise Reason(f"model {row['model']}") from None


def _releases_checked(row: Row) -> Iterator[tuple[object, str]]:
    """Whether the release of each library that a run used is one that is modelled."""
    for library, version in _given_releases(row).items():
        _, known = _VERSIONS[library]
        minor = minor_release(version)
        yield minor is not None and known(minor), f"{library} {'.'.join(version.split('.')[:2])}"


def _gpu_known(name: str) -> bool:
    try:
        catalog.gpu(name)
    except VramcalcError:
        return False
    return True


def _known_length(row: Row) -> bool:
    """Whether the lengths of PEFT's benchmark are those that were worked out: of Llama's tokens, four at a time."""
    if row["stack"] != "peft-loop":
        return True
    return "llama-3" in row["model"].lower() and row["micro_batch"] == str(PEFT_METAMATHQA.micro_batch_size)
