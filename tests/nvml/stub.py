"""The stand-in for NVML: compiles it, describes machines to it, and runs detection or the command on them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
MIB = 1 << 20
NOT_TOLD = (1 << 64) - 1
"""What NVML gives for a process's memory where it cannot tell, as under WSL."""
UUIDS = (
    "GPU-9942190a-aa31-4ff1-4aa9-c388d80f85f1",
    "GPU-9e8d35e3-a134-0fdd-0e01-23811fdbd293",
    "GPU-e429a63e-c61c-4795-b757-5132caeb8e70",
    "GPU-eee1dfbc-0a0f-6ad8-5ff6-dc942a8b9d98",
    "GPU-bbcd6503-5150-4e92-c266-97cc4390d04e",
    "GPU-472ea263-58d7-410d-cc82-f7fdece5bd28",
    "GPU-e56257c4-947f-6a5b-7ec9-0f45567ccf4e",
    "GPU-1c20e77d-1c1a-d9ed-fe37-18b8466a78ad",
)


class Card(NamedTuple):
    """A product: what NVML says of it, with the capacity torch reports as total less reserved."""

    name: str
    capability: str
    cores: int
    total_mib: int
    torch_mib: int
    ecc: int | None = None
    mig: int | None = None


T4 = Card("Tesla T4", "7.5", 2560, 15360, 14913, ecc=1)
RTX_3090 = Card("NVIDIA GeForce RTX 3090", "8.6", 10496, 24576, 24259)
RTX_4090 = Card("NVIDIA GeForce RTX 4090", "8.9", 16384, 24564, 24080, ecc=0)
A100 = Card("NVIDIA A100-SXM4-40GB", "8.0", 6912, 40960, 40506, ecc=1, mig=0)
H100 = Card("NVIDIA H100 80GB HBM3", "9.0", 16896, 81559, 81089, ecc=1, mig=0)


def machine(*gpus: str, driver: str = "580.159.04", init_error: int = 0) -> str:
    """Description of a machine."""
    return "\n".join([f"driver {driver}", f"init_error {init_error}", *gpus, ""])


def gpu(card: Card, index: int = 0, *instances: str, used_mib: int = 0, processes: Any = (), **changes: object) -> str:
    """Description of a GPU; ``changes`` replace lines, None leaves one out."""
    lines: dict[str, object] = {
        "name": card.name,
        "uuid": UUIDS[index],
        "pci": f"00000000:{index + 1:02X}:00.0",
        "memory": _memory(card.total_mib, card.total_mib - card.torch_mib, used_mib),
        "capability": card.capability,
        "cores": card.cores,
        "ecc": card.ecc,
        "mig": 1 if instances else card.mig,
    } | changes
    return "\n".join(["gpu", *_lines(lines, processes), *instances])


def mig(
    profile: str,
    total_mib: int,
    number: int,
    ids: tuple[int, int],
    used_mib: int = 0,
    processes: Any = (),
    **changes: object,
) -> str:
    """Description of a MIG instance; ``number`` makes its UUID and is its slot."""
    lines: dict[str, object] = {
        "name": f"NVIDIA A100-SXM4-40GB MIG {profile}",
        "uuid": mig_uuid(number),
        "memory": _memory(total_mib, 0, used_mib),
        "slot": number,
        "ids": f"{ids[0]} {ids[1]}",
    } | changes
    return "\n".join(["instance", *_lines(lines, processes)])


def mig_uuid(number: int) -> str:
    return f"MIG-{number}c6d4f1e-42e4-5de3-91c7-45d71c87eb3f"


def _memory(total_mib: int, reserved_mib: int, used_mib: int) -> str:
    return f"{total_mib * MIB} {reserved_mib * MIB} {(total_mib - reserved_mib - used_mib) * MIB}"


def _lines(lines: dict[str, object], processes: Any) -> list[str]:
    told = [f"{key} {value}" for key, value in lines.items() if value is not None]
    return told + [f"process {pid} {used if used == NOT_TOLD else used * MIB}" for pid, used in processes]


class Library:
    """A compiled stand-in, and the programs that run on it."""

    def __init__(self, folder: Path, *flags: str) -> None:
        compiler = shutil.which("cc")
        if compiler is None or not sys.platform.startswith("linux"):
            pytest.skip("the stand-in for libnvidia-ml.so.1 needs a C compiler (cc) and Linux")
        source, library = HERE / "nvml_stub.c", folder / "libnvidia-ml.so.1"
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", *flags, "-o", library, source], check=True
        )
        self._folder = folder
        self._description = folder / "machine.txt"
        self._worker = subprocess.Popen(
            [sys.executable, HERE / "worker.py"],
            env=self._environment({}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the process that :meth:`detect` asks."""
        return self._worker.pid

    def detect(self, described: str, **environment: str) -> dict[str, Any]:
        """What ``detect_gpus`` finds on a machine."""
        self._description.write_text(described)
        assert self._worker.stdin
        assert self._worker.stdout
        print(json.dumps([str(self._description), environment]), file=self._worker.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._worker.stdout.readline())
        assert "raised" not in found, found["raised"]
        return found

    def run(self, described: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """A Python command on a machine."""
        self._description.write_text(described)
        return subprocess.run(
            [sys.executable, *command], env=self._environment(environment), capture_output=True, text=True, check=False
        )

    def close(self) -> None:
        assert self._worker.stdin
        self._worker.stdin.close()
        self._worker.wait()

    def _environment(self, changes: dict[str, str]) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CUDA_", "NVML_"))}
        paths = {"LD_LIBRARY_PATH": str(self._folder), "NVML_STUB_MACHINE": str(self._description)}
        return inherited | paths | changes
