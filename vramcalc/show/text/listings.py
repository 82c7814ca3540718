"""What can be named, and what this machine has: ``vramcalc gpus`` and ``vramcalc models``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vramcalc import tables
from vramcalc.errors import Unsupported
from vramcalc.inputs import catalog
from vramcalc.show.plaintext import table
from vramcalc.units import MIB, gib

if TYPE_CHECKING:
    from vramcalc.inputs.machine.detect import Detection, Device


def known_gpus() -> list[dict[str, Any]]:
    """GPUs that can be named, as plain values; ``usable_bytes`` is None where no capacity is known."""
    return [
        {
            "gpu_id": row["gpu_id"],
            "name": row["name"],
            "architecture": row["architecture"],
            "compute_capability": row["compute_capability"],
            "nvml_total_bytes": _mib(row["nvml_total_mib"]),
            "torch_total_bytes": _mib(row["torch_total_mib"]),
            "usable_bytes": _usable(row["gpu_id"]),
        }
        for row in tables.read("gpus")
        if row["vendor"] == "NVIDIA"
    ]


def _mib(text: str) -> int | None:
    return int(text) * MIB if text else None


def _usable(gpu_id: str) -> int | None:
    try:
        return catalog.gpu(gpu_id).usable_bytes
    except Unsupported:
        return None


def known_models() -> list[dict[str, Any]]:
    """Models of the table whose family is supported, as plain values."""
    found = []
    for row in tables.read("models"):
        if row["model_type"] in catalog.SUPPORTED:
            spec = catalog.model(row["hf_id"])
            shape = spec.model_dump(mode="json", exclude={"name"})
            names = {"alias": row["alias"], "hf_id": row["hf_id"], "also": row["also"].split()}
            found.append({**names, "params_total": spec.params_total, **shape})
    return found


def detection_dict(found: Detection) -> dict[str, Any]:
    """What NVML said, as plain values."""
    return {
        "driver_version": found.driver_version,
        "problem": found.problem,
        "notes": list(found.notes),
        "devices": [d.to_dict() for d in found.devices],
        "hidden": [d.to_dict() for d in found.hidden],
    }


def models_text() -> str:
    """A line per model of the table, and the families."""
    rows = [(m["alias"], m["hf_id"], m["model_type"], f"{m['params_total']:,}") for m in known_models()]
    return (
        f"{table(rows, ('name', 'Hugging Face id', 'family', 'parameters'), right=(3,))}\n\n"
        f"Any other config.json of a family can be given by its path: {', '.join(catalog.SUPPORTED)}."
    )


def gpus_text(detection: Detection | None) -> str:
    """The GPUs of this machine, unless they were not asked for, and those of the table."""
    rows = [
        (
            g["gpu_id"],
            g["name"].removeprefix("NVIDIA "),
            g["architecture"],
            g["compute_capability"],
            gib(g["usable_bytes"]) if g["usable_bytes"] else "unknown",
        )
        for g in known_gpus()
    ]
    named = table(rows, ("id", "name", "generation", "compute", "usable"), right=(4,), wrap=28)
    parts = [
        *(_machine(detection) if detection else []),
        f"GPUs that can be named with --gpu; --gpu-memory gives what is unknown\n{named}",
    ]
    return "\n\n".join(parts)


def _machine(found: Detection) -> list[str]:
    lines = [f"NVIDIA driver {found.driver_version}"] if found.driver_version else []
    lines += [found.problem] if found.problem else []
    lines += [f"note: {note}" for note in found.notes]
    parts = ["\n".join(lines)] if lines else []
    for title, devices in (("GPUs of this machine", found.devices), ("Hidden by CUDA_VISIBLE_DEVICES", found.hidden)):
        if devices:
            headers = ("", "name", "total", "free", "reserved", "ECC", "UUID", "")
            cells = table(map(_device, devices), headers, right=(2, 3, 4), wrap=[*[None] * 7, 40])
            parts.append(f"{title}\n{cells}")
    return parts


def _device(d: Device) -> tuple[object, ...]:
    ecc = {True: "on", False: "off", None: ""}[d.ecc]
    memory = (d.nvml_total_bytes, d.gpu.free_bytes or 0, d.reserved_bytes)
    return d.index, d.gpu.name, *map(gib, memory), ecc, d.uuid, "; ".join(d.notes)
