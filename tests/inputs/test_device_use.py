"""Memory in use, through the real ``pynvml`` on a stand-in for ``libnvidia-ml.so.1``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from nvml.stub import H100, MIB, NOT_TOLD, UUIDS, Library, gpu, machine, mig, mig_uuid

ASK = """
import os, sys
from vramcalc.inputs.machine.device_use import (DeviceUse, Polled)
path = os.environ["NVML_STUB_MACHINE"]
text = open(path).read().replace("SELF", str(os.getpid()))
open(path, "w").write(text)
use = DeviceUse(sys.argv[1])
with Polled(use, every_s=0) as polled:
    pass
print(*use.now(), polled.peak_bytes, polled.samples >= 1)
use.close()
"""


@pytest.fixture(scope="module")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    library = Library(tmp_path_factory.mktemp("nvml"))
    yield library
    library.close()


def ask(nvml: Library, described: str, uuid: str = UUIDS[0]) -> list[str]:
    done = nvml.run(described, "-c", ASK, uuid)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_process_is_told_apart_from_the_device(nvml: Library) -> None:
    described = machine(gpu(H100, 0, used_mib=900, processes=[(1, 300), ("SELF", 500)]))
    assert ask(nvml, described) == [str(500 * MIB), str(900 * MIB), str(900 * MIB), "True"]


@pytest.mark.parametrize("processes", [[], [(1, 300)], [("SELF", NOT_TOLD)]], ids=["none", "others", "not told"])
def test_where_the_process_is_not_told_the_device_still_is(nvml: Library, processes: list[tuple[object, int]]) -> None:
    described = machine(gpu(H100, 0, used_mib=900, processes=processes))
    assert ask(nvml, described)[:2] == ["None", str(900 * MIB)]


def test_what_nvml_does_not_say_is_none_and_never_nothing(nvml: Library) -> None:
    assert ask(nvml, machine(gpu(H100, 0, memory=None, process_error=4))) == ["None", "None", "None", "False"]


def test_a_slice_of_a_gpu_is_asked_by_its_own_name(nvml: Library) -> None:
    slices = (mig("3g.40gb", 40000, 0, (1, 0), used_mib=7), mig("1g.10gb", 9984, 3, (3, 0), used_mib=11))
    assert ask(nvml, machine(gpu(H100, 0, *slices)), mig_uuid(3))[1] == str(11 * MIB)


def test_an_unknown_gpu_is_an_error_that_names_it(nvml: Library) -> None:
    done = nvml.run(machine(gpu(H100, 0)), "-c", ASK, UUIDS[1])
    assert f"DetectionError: NVML has no GPU {UUIDS[1]}" in done.stderr
    assert "nvidia-smi -L" in done.stderr


def test_a_job_that_would_run_on_a_gpu_knows_it_without_its_uuid(nvml: Library, tmp_path: Path) -> None:
    script = "from vramcalc.profiling.in_a_process import place\np = place('cuda')\n"
    script += "print(p.gpu.model_dump_json(), p.uuid, p.driver)"
    done = nvml.run(machine(gpu(H100, 0), gpu(H100, 1)), "-c", script, CUDA_VISIBLE_DEVICES="1")
    assert done.returncode == 0, done.stderr
    told, uuid, driver = done.stdout.rsplit(maxsplit=2)
    assert (uuid, driver) == (UUIDS[1], "580.159.04")
    assert UUIDS[1] not in told
    assert '"gpu_id":"h100-sxm"' in told
    assert '"free_bytes":null' in told
