"""The GPUs of this machine, through NVML.

The only module that knows ``pynvml``; it is imported when asked. Nothing here raises: a machine without a driver is an
answer, in one line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from vramcalc import tables
from vramcalc.inputs.machine.nvml_errors import in_one_line
from vramcalc.inputs.machine.visible_devices import select
from vramcalc.inputs.stack import Gpu
from vramcalc.units import GIB, gib

_GENERATIONS = {
    (6,): "Pascal",
    (7, 0): "Volta",
    (7, 2): "Volta",
    (7, 5): "Turing",
    (8, 9): "Ada",
    (8,): "Ampere",
    (9,): "Hopper",
    (10, 3): "Blackwell Ultra",
    (10,): "Blackwell",
    (11,): "Blackwell",
    (12,): "Blackwell",
}

_NO_INSTANCE = (
    "MIG mode is on but no instance can be seen; create one with nvidia-smi mig -cgi, ask for access to one, or switch "
    "MIG off with nvidia-smi -mig 0"
)
_NO_MEMORY = "NVML does not tell its memory, as where GPU and CPU share it; give --gpu and --gpu-memory"


@dataclass(frozen=True)
class Device:
    """One GPU, or one MIG instance.

    Attributes:
        gpu: its memory and generation; ``free_bytes`` is what is free now.
        index: NVML's index of the physical GPU.
        uuid: ``GPU-...`` or ``MIG-...``.
        parent_uuid: of the physical GPU, for a MIG instance.
        mig_ids: of the GPU instance and the compute instance, for a MIG instance.
        pci_bus_id: address, None where NVML gives none.
        nvml_total_bytes: capacity as nvidia-smi shows it. [B]
        reserved_bytes: kept by the driver; 0 where an old driver does not tell, with a note. [B]
        used_bytes: taken by processes. [B]
        processes: other processes that compute on it, None where NVML does not tell.
        ecc: whether error correction is on, None where there is none.
        speed: sorts faster devices higher.
        notes: what a user should know.
    """

    gpu: Gpu
    index: int
    uuid: str
    parent_uuid: str | None
    mig_ids: tuple[int, int] | None
    pci_bus_id: str | None
    nvml_total_bytes: int
    reserved_bytes: int
    used_bytes: int
    processes: int | None
    ecc: bool | None
    speed: tuple[int, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values; field names are stable."""
        plain = {name: value for name, value in vars(self).items() if name != "speed"}
        ids = None if self.mig_ids is None else list(self.mig_ids)
        return {**plain, "gpu": self.gpu.model_dump(mode="json"), "mig_ids": ids, "notes": list(self.notes)}


@dataclass(frozen=True)
class Detection:
    """What NVML said.

    Attributes:
        devices: that a CUDA program would see, in CUDA's order.
        hidden: the others.
        driver_version: None when NVML gave no answer.
        problem: why there are no devices, or why some are missing; None when all is well.
        notes: on the selection of devices.
    """

    devices: list[Device]
    hidden: list[Device]
    driver_version: str | None
    problem: str | None
    notes: list[str]


def detect_gpus(environment: Mapping[str, str] | None = None) -> Detection:
    """GPUs of this machine, with what is free on them now.

    Args:
        environment: where ``CUDA_VISIBLE_DEVICES`` is read, by default the process's.
    """
    try:
        import pynvml
    except ImportError:
        return Detection([], [], None, "GPUs of this machine cannot be seen without nvidia-ml-py; install it", [])
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as err:
        return Detection([], [], None, in_one_line(pynvml, err), [])
    driver = None
    try:
        driver = _ask(pynvml, lambda: _text(pynvml.nvmlSystemGetDriverVersion()))
        found, problems = _all_devices(pynvml)
    except pynvml.NVMLError as err:
        return Detection([], [], driver, in_one_line(pynvml, err), [])
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
    environment = os.environ if environment is None else environment
    selection = select(found, environment, driver=driver)
    if found and problems and environment.get("CUDA_VISIBLE_DEVICES", "").strip()[:1].isdigit():
        selection.notes.append(
            "not every GPU answers: CUDA_VISIBLE_DEVICES may count others than are listed; use UUIDs"
        )
    visible = [found[i] for i in selection.positions]
    hidden = [d for i, d in enumerate(found) if i not in selection.positions]
    if not found and not problems:
        problems.append("the NVIDIA driver is loaded but there is no GPU")
    elif found and not visible:
        problems.append("CUDA_VISIBLE_DEVICES hides every GPU; unset it to see them")
    return Detection(visible, hidden, driver, "; ".join(problems) or None, selection.notes)


def _all_devices(pynvml: Any) -> tuple[list[Device], list[str]]:
    """Devices, and what is wrong with the others; a GPU that fails does not hide its neighbours."""
    found: list[Device] = []
    problems: list[str] = []
    for index in range(pynvml.nvmlDeviceGetCount()):
        for answer in _devices_of_gpu(pynvml, index):
            if isinstance(answer, Device):
                found.append(answer)
            else:
                problems.append(f"GPU {index}: {answer}")
    return found, problems


def _devices_of_gpu(pynvml: Any, index: int) -> Iterator[Device | str]:
    """A GPU, or its MIG instances when it is cut up; a string says what is wrong with one."""
    try:
        physical = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = _text(pynvml.nvmlDeviceGetUUID(physical))
        mode = _ask(pynvml, lambda: pynvml.nvmlDeviceGetMigMode(physical)[0])
        cut = mode == pynvml.NVML_DEVICE_MIG_ENABLE
        handles = list(_instances(pynvml, physical)) if cut else [physical]
    except pynvml.NVMLError as err:
        yield in_one_line(pynvml, err)
        return
    if not handles:
        yield _NO_INSTANCE
    for handle in handles:
        try:
            device = _device(pynvml, handle, physical, index, uuid if cut else None)
        except pynvml.NVMLError as err:
            yield in_one_line(pynvml, err)
        else:
            yield device or _NO_MEMORY


def _instances(pynvml: Any, physical: Any) -> Iterator[Any]:
    """Handles of the MIG instances this user has access to."""
    for slot in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(physical)):
        with suppress(pynvml.NVMLError_NotFound, pynvml.NVMLError_NoPermission):
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(physical, slot)


class Memory(NamedTuple):
    """Memory of a device as NVML tells it; ``reserved`` is None where the driver does not. [B]"""

    total: int
    reserved: int | None
    free: int

    @property
    def used(self) -> int:
        """What processes take. [B]"""
        # NVML's own field counts what is reserved in some releases of the driver and not in others.
        return max(0, self.total - (self.reserved or 0) - self.free)


def memory_of(pynvml: Any, handle: Any) -> Memory | None:
    """Memory by the second version of NVML's struct, by the first on drivers before 510, None where neither tells."""
    untold = (
        pynvml.NVMLError_FunctionNotFound,
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_ArgumentVersionMismatch,
    )
    memory = None
    with suppress(*untold):
        answer = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
        memory = Memory(answer.total, answer.reserved, answer.free)
    if memory is None:
        with suppress(*untold):
            answer = pynvml.nvmlDeviceGetMemoryInfo(handle)
            memory = Memory(answer.total, None, answer.free)
    return memory if memory and memory.total > (memory.reserved or 0) else None


def _device(pynvml: Any, handle: Any, physical: Any, index: int, parent: str | None) -> Device | None:
    """A GPU or MIG instance, None when NVML does not tell its memory; instances are asked for little else."""
    memory = memory_of(pynvml, handle)
    if memory is None:
        return None
    uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    name = _text(pynvml.nvmlDeviceGetName(handle))
    capability, told = _capability(pynvml, physical, name)
    running = _ask(pynvml, lambda: pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    ecc = _ask(pynvml, lambda: bool(pynvml.nvmlDeviceGetEccMode(physical)[0]))
    cores = _ask(pynvml, lambda: int(pynvml.nvmlDeviceGetNumGpuCores(physical))) or 0
    basis = "NVML: total less what the driver reserves" if memory.reserved is not None else "NVML: total"
    gpu = Gpu(
        gpu_id=_table_id(name) or uuid,
        name=name,
        architecture=_generation(capability),
        compute_capability=".".join(map(str, capability)),
        total_bytes=memory.total - (memory.reserved or 0),
        total_basis=basis,
        free_bytes=memory.free,
        uuid=uuid,
    )
    return Device(
        gpu=gpu,
        index=index,
        uuid=uuid,
        parent_uuid=parent,
        mig_ids=_ask(pynvml, lambda: _mig_ids(pynvml, handle)) if parent else None,
        pci_bus_id=_ask(pynvml, lambda: _text(pynvml.nvmlDeviceGetPciInfo(physical).busId)),
        nvml_total_bytes=memory.total,
        reserved_bytes=memory.reserved or 0,
        used_bytes=memory.used,
        processes=None if running is None else len(_others(running)),
        ecc=ecc,
        speed=(cores, *capability),
        notes=(*told, *_notes(capability, memory, running)),
    )


def _capability(pynvml: Any, physical: Any, name: str) -> tuple[tuple[int, ...], list[str]]:
    """Compute capability, of a known product from the table where NVML does not tell it, which a note then says."""
    try:
        return tuple(pynvml.nvmlDeviceGetCudaComputeCapability(physical)), []
    except pynvml.NVMLError:
        row = next((row for row in tables.read("gpus") if row["gpu_id"] == _table_id(name)), None)
        if row is None or not row["compute_capability"]:
            raise
        known = row["compute_capability"]
        return tuple(map(int, known.split("."))), [f"NVML does not tell its compute capability: {known} by its name"]


def _mig_ids(pynvml: Any, handle: Any) -> tuple[int, int]:
    return pynvml.nvmlDeviceGetGpuInstanceId(handle), pynvml.nvmlDeviceGetComputeInstanceId(handle)


def _notes(capability: tuple[int, ...], memory: Memory, running: list[Any] | None) -> Iterator[str]:
    if capability < (8, 0):
        yield "no bfloat16 arithmetic: use float16 with loss scaling"
    if memory.reserved is None:
        yield "this driver does not tell what it reserves for itself; driver 510 and later do"
    others = _others(running or [])
    told = all(process.usedGpuMemory is not None for process in running or [])
    if others:
        taken = gib(sum(p.usedGpuMemory for p in others)) if told else f"up to {gib(memory.used)}"
        yield f"{len(others)} other process{'es take' if len(others) > 1 else ' takes'} {taken}"
    unseen = memory.used - sum(process.usedGpuMemory or 0 for process in running or [])
    if told and unseen > GIB:
        yield f"{gib(unseen)} are taken by what cannot be seen from here"


def _others(running: list[Any]) -> list[Any]:
    """Processes other than this one."""
    return [process for process in running if process.pid != os.getpid()]


def _ask(pynvml: Any, question: Callable[[], Any]) -> Any:
    """An answer, or None where the device, the driver or the rights do not allow one.

    Every error counts as none: under WSL, NVML says "unknown error" to what it does not support.
    """
    try:
        return question()
    except (pynvml.NVMLError, pynvml.NVMLLibraryMismatchError):
        return None


def _generation(capability: tuple[int, ...]) -> str | None:
    return _GENERATIONS.get(capability[:2]) or _GENERATIONS.get(capability[:1])


def _table_id(name: str) -> str | None:
    """The id a GPU has in the table, by the name NVML gives; older drivers leave out the maker."""
    bare = name.removeprefix("NVIDIA ")
    return next((row["gpu_id"] for row in tables.read("gpus") if row["name"].removeprefix("NVIDIA ") == bare), None)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
