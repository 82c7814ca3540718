"""Options that commands share, and what they stand for."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vramcalc.errors import InvalidValue
from vramcalc.inputs import catalog
from vramcalc.inputs.presets import PRESETS
from vramcalc.inputs.stack import Gpu
from vramcalc.planning.fit import METHODS
from vramcalc.planning.verdict import Verdict
from vramcalc.units import parse_bytes

if TYPE_CHECKING:
    from vramcalc.inputs.machine.detect import Detection

COMMON_GPUS = ("t4", "rtx-4090", "l40s", "a100-sxm-80", "h100-sxm")
"""Shown by ``fit`` when no GPU is named and none is found."""

Model = Annotated[str, typer.Argument(help="Hugging Face id, short name, or path to a config.json.")]
Method = Annotated[str, typer.Option(help=f"One of: {', '.join(METHODS)}.")]
MethodFilter = Annotated[
    list[str] | None, typer.Option("--method", help=f"Only this method; repeatable. One of: {', '.join(METHODS)}.")
]
GpuName = Annotated[str | None, typer.Option("--gpu", help="GPU id as in 'vramcalc gpus'.")]
GpuNames = Annotated[list[str] | None, typer.Option("--gpu", help="GPU id as in 'vramcalc gpus'; repeatable.")]
GpuMemory = Annotated[str | None, typer.Option(help="Memory of the GPU in place of the table's, such as 20GiB.")]
StackName = Annotated[str, typer.Option("--stack", help=f"Recipe: {', '.join(PRESETS)}.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def known_method(name: str) -> str:
    """The method, if there is one of that name."""
    if name not in METHODS:
        raise InvalidValue("--method", name, f"one of {', '.join(METHODS)}")
    return name


def named_gpu(name: str | None, memory: str | None) -> Gpu | None:
    """A GPU by id, with another capacity when one is given."""
    if name is None:
        if memory is not None:
            raise InvalidValue("--gpu-memory", memory, "a --gpu to go with it", "name one, such as rtx-4090")
        return None
    row = catalog.gpu_row(name)
    if memory is None or row["vendor"] != "NVIDIA":
        return catalog.gpu(name)
    return Gpu(
        gpu_id=row["gpu_id"],
        name=row["name"],
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        total_bytes=parse_bytes(memory, name="--gpu-memory"),
        total_basis="given",
    )


def asked_gpus(names: list[str] | None, memory: str | None) -> tuple[list[Gpu], list[str]]:
    """Named GPUs, or those of this machine, or common ones; and what to say about them."""
    if names or memory:
        return [gpu for name in names or (None,) if (gpu := named_gpu(name, memory))], []
    detection = detection_here()
    if not detection.devices:
        why = f"{detection.problem}; showing {', '.join(COMMON_GPUS)} (name others with --gpu)"
        return [catalog.gpu(name) for name in COMMON_GPUS], [*detection.notes, why]
    notes = [*detection.notes, *([detection.problem] if detection.problem else [])]
    notes += [f"{device.gpu.gpu_id} {device.index}: {note}" for device in detection.devices for note in device.notes]
    return [device.gpu for device in detection.devices], notes


def detection_here() -> "Detection":
    """What NVML says of this machine."""
    from vramcalc.inputs.machine.detect import detect_gpus

    return detect_gpus()


def first_detected() -> Gpu:
    """The GPU a CUDA program would use first."""
    detection = detection_here()
    if not detection.devices:
        raise InvalidValue("--gpu", None, "a GPU", f"{detection.problem}; name one, such as rtx-4090")
    return detection.devices[0].gpu


def summary_of(v: Verdict) -> dict[str, Any]:
    """The figures of a verdict that scripts read first."""
    e = v.estimate
    return {
        "model": e.job.model.name,
        "method": e.job.method.kind,
        "micro_batch_size": e.job.training.micro_batch_size,
        "seq_len": e.job.training.seq_len,
        "stack": e.job.stack.name,
        "allocated_bytes": e.allocated_bytes,
        "reserved_bytes": e.reserved_bytes,
        "process_bytes": e.process_bytes,
        "warnings": list(e.warnings),
    }


def exit_with(ok: bool) -> None:
    """Status 1 where the answer is no."""
    if not ok:
        raise typer.Exit(1)
