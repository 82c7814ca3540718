"""``CUDA_VISIBLE_DEVICES`` as the CUDA driver reads it.

References:
    CUDA Programming Guide, "CUDA Environment Variables"; NVIDIA MIG User Guide, "CUDA Device Enumeration";
    ``torch.cuda._parse_visible_devices``, whose authors held it against driver 525 (pytorch/pytorch#92315).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

_NUMBER = re.compile(r"\s*([+-]?\d{1,18})", re.ASCII)
"""The driver reads a number as C's ``strtoul`` does: ``"1gpu"`` is 1; digits are those of ASCII."""
_HIDE_ALL = ("", "NoDevFiles")
"""Written by people and by Slurm to hide everything; not worth a note."""
_MANY_INSTANCES = 570
"""First driver that shows a program more than one MIG instance."""


class Listed(Protocol):
    """What the selection looks at."""

    @property
    def uuid(self) -> str:
        """``GPU-...`` or ``MIG-...``."""

    @property
    def parent_uuid(self) -> str | None:
        """UUID of the GPU a MIG instance is part of."""

    @property
    def mig_ids(self) -> tuple[int, int] | None:
        """GPU instance and compute instance of a MIG instance."""

    @property
    def speed(self) -> tuple[int, ...]:
        """Sorts faster devices higher."""


@dataclass(frozen=True)
class Selection:
    """Devices CUDA would see.

    Attributes:
        positions: places in the list that was given, in CUDA's order.
        notes: what could not be told, and entries that were ignored.
    """

    positions: list[int]
    notes: list[str]


def select(devices: Sequence[Listed], environment: Mapping[str, str], *, driver: str | None = None) -> Selection:
    """Which devices a CUDA program would see, and in which order.

    Args:
        devices: in NVML's order, which is that of PCI addresses; MIG instances follow each other.
        environment: ``CUDA_VISIBLE_DEVICES`` and ``CUDA_DEVICE_ORDER`` are read.
        driver: version of the driver, which decides how many MIG instances a program sees; None for a recent one.

    Of a GPU that is cut up into MIG instances, a program without ``CUDA_VISIBLE_DEVICES`` may see fewer; here all are
    listed, since each can be chosen by its UUID.
    """
    notes: list[str] = []
    gpus = _in_cuda_order(devices, environment)
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return Selection([position for gpu in gpus for position in gpu], notes)
    entries = _entries(wanted, notes)
    if any(isinstance(e, int) for e in entries) and _speeds_matter(devices, environment):
        notes.append(
            "the GPUs differ, and CUDA numbers the fastest first by a rule of its own; "
            "set CUDA_DEVICE_ORDER=PCI_BUS_ID for the order of nvidia-smi"
        )
    positions: list[int] = []
    for entry in entries:
        found = _find(entry, devices, gpus)
        if found is None:
            notes.append(_ignored(str(entry)))
            break
        if found in positions:
            notes.append(_twice(str(entry)))
            return Selection([], notes)
        if devices[found].parent_uuid and not str(entry).startswith("MIG-"):
            notes.append(
                f"CUDA_VISIBLE_DEVICES: {str(entry)!r} is a GPU cut up into MIG instances, of which CUDA takes the "
                "first; name another by its MIG UUID"
            )
        positions.append(found)
    return Selection(_without_masked_instances(positions, devices, driver, notes), notes)


def _ignored(entry: str) -> str:
    return f"CUDA_VISIBLE_DEVICES: {entry!r} names no device; it and what follows is ignored"


def _twice(entry: str) -> str:
    return f"CUDA_VISIBLE_DEVICES: {entry!r} comes twice; CUDA then shows no device"


def _entries(wanted: str, notes: list[str]) -> list[int | str]:
    """Indices or UUIDs up to the first entry of another kind than the first; none at all when one comes twice."""
    kind = next((k for k in ("GPU-", "MIG-") if wanted.startswith(k)), None)
    entries: list[int | str] = []
    for text in wanted.split(","):
        entry: int | str | None
        if kind:
            entry = text if text.startswith(kind) else None
        else:
            number = _NUMBER.match(text)
            entry = int(number[1]) if number else None
        if entry is None or (isinstance(entry, int) and entry < 0):
            if entry is None and text.strip() not in _HIDE_ALL:
                notes.append(_ignored(text))
            break
        if entry in entries:
            notes.append(_twice(text))
            return []
        entries.append(entry)
    return entries


def _in_cuda_order(devices: Sequence[Listed], environment: Mapping[str, str]) -> list[list[int]]:
    """Positions grouped by physical GPU, in the order of CUDA's indices."""
    gpus: dict[str, list[int]] = {}
    for position, device in enumerate(devices):
        gpus.setdefault(device.parent_uuid or device.uuid, []).append(position)
    if not _speeds_matter(devices, environment):
        return list(gpus.values())
    return sorted(gpus.values(), key=lambda gpu: devices[gpu[0]].speed, reverse=True)


def _speeds_matter(devices: Sequence[Listed], environment: Mapping[str, str]) -> bool:
    return environment.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID" and len({d.speed for d in devices}) > 1


def _find(entry: int | str, devices: Sequence[Listed], gpus: list[list[int]]) -> int | None:
    """Position of the device an entry names, None if there is none or several."""
    if isinstance(entry, int):
        return gpus[entry][0] if entry < len(gpus) else None
    if entry.startswith("GPU-"):
        named = {devices[gpu[0]].parent_uuid or devices[gpu[0]].uuid: gpu[0] for gpu in gpus}
    else:
        named = {d.uuid: i for i, d in enumerate(devices) if d.parent_uuid}
        # Drivers before 470 had no other name, and the Programming Guide still gives this one.
        named |= {f"MIG-{d.parent_uuid}/{d.mig_ids[0]}/{d.mig_ids[1]}": i for i, d in enumerate(devices) if d.mig_ids}
    found = {position for name, position in named.items() if name.startswith(entry)}
    return found.pop() if len(found) == 1 else None


def _without_masked_instances(
    positions: list[int], devices: Sequence[Listed], driver: str | None, notes: list[str]
) -> list[int]:
    """Leaves out what CUDA does not show beside a MIG instance."""
    instances = [p for p in positions if devices[p].parent_uuid]
    branch = (driver or "").partition(".")[0]
    if instances and branch.isdigit() and int(branch) < _MANY_INSTANCES:
        kept = instances[:1]
        rule = f"driver {driver} shows a program one MIG instance and nothing beside it"
    else:
        first = {_memory_of(devices[p]): p for p in reversed(positions)}
        kept = [p for p in positions if first[_memory_of(devices[p])] == p]
        rule = "CUDA shows a program one compute instance of a GPU instance"
    left_out = [devices[p].uuid for p in positions if p not in kept]
    if left_out:
        notes.append(f"{rule}: {', '.join(left_out)} left out")
    return kept


def _memory_of(device: Listed) -> tuple[str, int]:
    """What owns a device's memory: compute instances of one GPU instance share theirs."""
    return (device.parent_uuid, device.mig_ids[0]) if device.parent_uuid and device.mig_ids else (device.uuid, -1)
