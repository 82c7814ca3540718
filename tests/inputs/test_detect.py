"""Detection through the real ``pynvml`` on a stand-in for ``libnvidia-ml.so.1``, and the command on what it finds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nvml.stub import (
    A100,
    H100,
    MIB,
    NOT_TOLD,
    RTX_3090,
    RTX_4090,
    T4,
    UUIDS,
    Card,
    Library,
    gpu,
    machine,
    mig,
    mig_uuid,
)

from vramcalc import tables
from vramcalc.cli.common import COMMON_GPUS
from vramcalc.inputs.machine.detect import _generation

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, LOST, RESET, MISMATCH, UNKNOWN = 3, 4, 9, 15, 16, 18, 999

SLICES = (
    mig("3g.20gb", 20096, 0, (1, 0), used_mib=11),
    mig("1c.2g.10gb", 9984, 3, (3, 0)),
    mig("1c.2g.10gb", 9984, 4, (3, 1)),
)
CUT_A100 = machine(gpu(A100, 0, *SLICES))
BUSY_H100 = machine(gpu(H100, used_mib=79000, processes=[(4242, 70000), (4243, 9000)]))
EIGHT_H100 = machine(*(gpu(H100, i) for i in range(8)))
SMALL_FIRST = machine(gpu(RTX_3090, 0), gpu(RTX_4090, 1))


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    library = Library(tmp_path_factory.mktemp("nvml"))
    yield library
    library.close()


@pytest.fixture(scope="session")
def old_nvml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    library = Library(tmp_path_factory.mktemp("old_nvml"), "-DOLD_DRIVER")
    yield library
    library.close()


def only(found: dict[str, Any]) -> dict[str, Any]:
    (device,) = found["devices"]
    return device


def uuids(devices: list[dict[str, Any]]) -> list[str]:
    return [device["uuid"] for device in devices]


# -- laws --------------------------------------------------------------------------------------------------------------

MACHINES = {
    "eight identical": EIGHT_H100,
    "two different": SMALL_FIRST,
    "MIG": CUT_A100,
    "busy": BUSY_H100,
    "no device": machine(),
    "driver mismatch": machine(init_error=MISMATCH),
    "lost GPU": machine(gpu(H100, 0), gpu(H100, 1, handle_error=LOST)),
    "no permission": machine(init_error=NO_PERMISSION),
}


@pytest.mark.parametrize("described", MACHINES.values(), ids=MACHINES)
@pytest.mark.parametrize("mask", [None, "", "0", "9", UUIDS[1], mig_uuid(3)])
def test_every_device_is_either_visible_or_hidden_and_an_empty_list_has_a_reason(
    nvml: Library, described: str, mask: str | None
) -> None:
    everything = nvml.detect(described)
    found = nvml.detect(described, **({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}))
    assert sorted(uuids(found["devices"] + found["hidden"])) == sorted(uuids(everything["devices"]))
    assert found["devices"] or found["problem"]
    assert "\n" not in (found["problem"] or "")


@pytest.mark.parametrize("described", MACHINES.values(), ids=MACHINES)
def test_memory_adds_up_on_every_device(nvml: Library, described: str) -> None:
    for device in nvml.detect(described)["devices"]:
        assert (
            device["nvml_total_bytes"] == device["reserved_bytes"] + device["used_bytes"] + device["gpu"]["free_bytes"]
        )
        assert device["gpu"]["total_bytes"] == device["nvml_total_bytes"] - device["reserved_bytes"]


@pytest.mark.parametrize("described", MACHINES.values(), ids=MACHINES)
def test_nvml_is_shut_down_afterwards(nvml: Library, described: str) -> None:
    assert not nvml.detect(described)["left_initialised"]


@pytest.mark.parametrize("row", [r for r in tables.read("gpus") if r["vendor"] == "NVIDIA"], ids=lambda r: r["gpu_id"])
def test_generations_are_those_of_the_table(row: tables.Row) -> None:
    assert _generation(tuple(map(int, row["compute_capability"].split(".")))) == row["architecture"]


# -- machines ----------------------------------------------------------------------------------------------------------


def test_eight_identical_gpus_are_listed_in_nvml_order(nvml: Library) -> None:
    found = nvml.detect(EIGHT_H100)
    assert uuids(found["devices"]) == list(UUIDS)
    assert [d["index"] for d in found["devices"]] == list(range(8))
    assert [d["pci_bus_id"] for d in found["devices"]] == [f"00000000:0{i}:00.0" for i in range(1, 9)]
    assert (found["driver_version"], found["problem"], found["notes"]) == ("580.159.04", None, [])


@pytest.mark.parametrize("card", [T4, RTX_3090, A100, H100], ids=lambda c: c.name)
def test_capacity_of_an_idle_gpu_is_that_of_torch(nvml: Library, card: Card) -> None:
    device = only(nvml.detect(machine(gpu(card))))
    assert device["gpu"]["total_bytes"] == device["gpu"]["free_bytes"] == card.torch_mib * MIB
    assert device["nvml_total_bytes"] == card.total_mib * MIB
    assert (device["used_bytes"], device["processes"]) == (0, 0)


@pytest.mark.parametrize("name", ["NVIDIA A100-SXM4-40GB", "A100-SXM4-40GB"])
def test_a_known_product_goes_by_its_id_with_or_without_the_maker(nvml: Library, name: str) -> None:
    device = only(nvml.detect(machine(gpu(A100, name=name))))
    assert (device["gpu"]["gpu_id"], device["gpu"]["name"]) == ("a100-sxm-40", name)
    assert (device["gpu"]["architecture"], device["gpu"]["compute_capability"]) == ("Ampere", "8.0")


def test_an_unknown_product_goes_by_its_uuid(nvml: Library) -> None:
    device = only(nvml.detect(machine(gpu(T4, name="GRID T4-16Q"))))
    assert (device["gpu"]["gpu_id"], device["gpu"]["name"]) == (UUIDS[0], "GRID T4-16Q")


@pytest.mark.parametrize(("ecc", "said"), [(1, True), (0, False), (None, None)])
def test_ecc_is_on_off_or_absent(nvml: Library, ecc: int | None, said: bool | None) -> None:
    assert only(nvml.detect(machine(gpu(RTX_4090, ecc=ecc))))["ecc"] is said


@pytest.mark.parametrize(("capability", "lacks"), [("7.0", True), ("7.5", True), ("8.0", False), ("12.0", False)])
def test_gpus_before_ampere_are_said_to_lack_bfloat16(nvml: Library, capability: str, lacks: bool) -> None:
    notes = only(nvml.detect(machine(gpu(T4, capability=capability))))["notes"]
    assert notes == (["no bfloat16 arithmetic: use float16 with loss scaling"] if lacks else [])


def test_of_two_different_gpus_the_faster_comes_first_as_in_cuda(nvml: Library) -> None:
    found = nvml.detect(SMALL_FIRST)
    assert uuids(found["devices"]) == [UUIDS[1], UUIDS[0]]
    assert [d["index"] for d in found["devices"]] == [1, 0]
    assert uuids(nvml.detect(SMALL_FIRST, CUDA_DEVICE_ORDER="PCI_BUS_ID")["devices"]) == [UUIDS[0], UUIDS[1]]


def test_cuda_index_is_not_nvml_index(nvml: Library) -> None:
    found = nvml.detect(SMALL_FIRST, CUDA_VISIBLE_DEVICES="0")
    assert only(found)["index"] == 1
    assert uuids(found["hidden"]) == [UUIDS[0]]
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in found["notes"][0]


# -- MIG ---------------------------------------------------------------------------------------------------------------


def test_each_mig_instance_is_a_device_with_its_own_memory(nvml: Library) -> None:
    found = nvml.detect(CUT_A100)
    assert uuids(found["devices"]) == [mig_uuid(0), mig_uuid(3), mig_uuid(4)]
    first = found["devices"][0]
    assert (first["parent_uuid"], first["mig_ids"], first["index"]) == (UUIDS[0], [1, 0], 0)
    assert (first["nvml_total_bytes"], first["gpu"]["free_bytes"]) == (20096 * MIB, 20085 * MIB)
    assert first["gpu"]["gpu_id"] == mig_uuid(0)
    assert (first["gpu"]["compute_capability"], first["ecc"], first["pci_bus_id"]) == ("8.0", True, "00000000:01:00.0")
    assert found["problem"] is None


@pytest.mark.parametrize("mask", [mig_uuid(4), f"MIG-{UUIDS[0]}/3/1", mig_uuid(4)[:8]])
def test_a_mig_instance_is_chosen_by_uuid_by_its_old_name_and_by_an_unambiguous_beginning(
    nvml: Library, mask: str
) -> None:
    assert uuids(nvml.detect(CUT_A100, CUDA_VISIBLE_DEVICES=mask)["devices"]) == [mig_uuid(4)]


@pytest.mark.parametrize(("driver", "seen"), [("580.95.05", [0, 3]), ("535.104.05", [0])])
def test_the_driver_decides_how_many_mig_instances_a_program_sees(nvml: Library, driver: str, seen: list[int]) -> None:
    mask = ",".join(map(mig_uuid, (0, 3, 4)))
    found = nvml.detect(machine(gpu(A100, 0, *SLICES), driver=driver), CUDA_VISIBLE_DEVICES=mask)
    assert uuids(found["devices"]) == [mig_uuid(i) for i in seen]
    assert mig_uuid(4) in found["notes"][0]


def test_mig_mode_without_instances_is_said_with_what_to_do(nvml: Library) -> None:
    found = nvml.detect(machine(gpu(A100, 0, mig=1), gpu(A100, 1)))
    assert only(found)["uuid"] == UUIDS[1]
    assert re.match(r"GPU 0: MIG mode is on but no instance .* nvidia-smi mig -cgi", found["problem"])


def test_an_instance_of_somebody_else_does_not_hide_mine(nvml: Library) -> None:
    theirs = mig("1g.5gb", 4864, 0, (7, 0), handle_error=NO_PERMISSION)
    found = nvml.detect(machine(gpu(A100, 0, theirs, mig("1g.5gb", 4864, 1, (8, 0)))))
    assert only(found)["uuid"] == mig_uuid(1)
    assert found["problem"] is None


# -- busy --------------------------------------------------------------------------------------------------------------


def test_what_other_processes_take_is_counted_and_said(nvml: Library) -> None:
    device = only(nvml.detect(BUSY_H100))
    assert device["gpu"]["free_bytes"] == (H100.torch_mib - 79000) * MIB
    assert (device["used_bytes"], device["processes"]) == (79000 * MIB, 2)
    assert device["notes"] == ["2 other processes take 77.15 GiB"]


def test_this_process_is_not_among_the_others(nvml: Library) -> None:
    described = machine(gpu(H100, used_mib=5000, processes=[(nvml.pid, 3000), (1, 2000)]))
    device = only(nvml.detect(described))
    assert (device["processes"], device["notes"]) == (1, ["1 other process takes 1.95 GiB"])


def test_processes_of_a_mig_instance_are_its_own(nvml: Library) -> None:
    quiet, busy = mig("1g.5gb", 4864, 0, (7, 0)), mig("1g.5gb", 4864, 1, (8, 0), used_mib=2048, processes=[(1, 2048)])
    found = nvml.detect(machine(gpu(A100, 0, quiet, busy, processes=[(1, 2048)])))
    assert [d["processes"] for d in found["devices"]] == [0, 1]
    assert [d["notes"] for d in found["devices"]] == [[], ["1 other process takes 2.00 GiB"]]


@pytest.mark.parametrize(
    ("lines", "count", "note"),
    [
        ({"processes": []}, 0, "3.91 GiB are taken by what cannot be seen from here"),
        ({"process_error": UNKNOWN}, None, "3.91 GiB are taken by what cannot be seen from here"),
        ({"processes": [(1, 1000)]}, 1, "2.93 GiB are taken by what cannot be seen from here"),
        ({"processes": [(1, NOT_TOLD)]}, 1, "1 other process takes up to 3.91 GiB"),
    ],
    ids=["another container", "not supported under WSL", "only some", "memory not told under WSL"],
)
def test_memory_without_a_known_owner_is_said(nvml: Library, lines: dict[str, Any], count: int, note: str) -> None:
    device = only(nvml.detect(machine(gpu(RTX_3090, used_mib=4000, **lines))))
    assert device["processes"] == count
    assert device["notes"][-1] == note


# -- what does not work ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("described", "problem"),
    [
        (machine(), "the NVIDIA driver is loaded but there is no GPU"),
        (machine(init_error=DRIVER_NOT_LOADED), "installed but not loaded; load it with modprobe nvidia"),
        (machine(init_error=MISMATCH), "driver and NVML library are of different versions; reboot"),
        (machine(init_error=NO_PERMISSION), "no permission .* check the rights on /dev/nvidia"),
        (machine(init_error=UNKNOWN), "does not answer .* restart the container"),
        (machine(init_error=23), r"NVML: error 23; see what nvidia-smi says"),
        (machine(gpu(H100, handle_error=LOST)), "GPU 0: the GPU has fallen off the bus; reboot"),
        (machine(gpu(H100, handle_error=RESET)), "GPU 0: .*nvidia-smi --gpu-reset"),
        (machine(gpu(H100, handle_error=NO_PERMISSION)), "GPU 0: no permission"),
        (machine(gpu(H100, capability=None, name="NVIDIA Z9000")), "GPU 0: NVML: Not Supported"),
    ],
)
def test_a_problem_is_one_line_with_what_to_do(nvml: Library, described: str, problem: str) -> None:
    found = nvml.detect(described)
    assert found["devices"] == []
    assert re.search(problem, found["problem"])


def test_a_lost_gpu_does_not_hide_its_neighbours(nvml: Library) -> None:
    found = nvml.detect(machine(gpu(H100, 0), gpu(H100, 1, handle_error=LOST), gpu(H100, 2)))
    assert [d["index"] for d in found["devices"]] == [0, 2]
    assert found["problem"].startswith("GPU 1: the GPU has fallen off the bus")
    assert found["notes"] == []


@pytest.mark.parametrize(("mask", "doubtful"), [("0", True), (UUIDS[0], False)])
def test_an_index_is_doubtful_when_a_gpu_is_lost(nvml: Library, mask: str, doubtful: bool) -> None:
    found = nvml.detect(machine(gpu(H100, 0), gpu(H100, 1, handle_error=LOST)), CUDA_VISIBLE_DEVICES=mask)
    assert only(found)["index"] == 0
    assert [note.endswith("use UUIDs") for note in found["notes"]] == [True] * doubtful


@pytest.mark.parametrize("memory", [None, "0 0 0"], ids=["not supported", "zero"])
def test_a_gpu_that_shares_the_memory_of_the_machine_is_said_to(nvml: Library, memory: str | None) -> None:
    jetson = gpu(H100, name="Orin (nvgpu)", capability="8.7", memory=memory, mig=None, ecc=None)
    found = nvml.detect(machine(jetson))
    assert found["devices"] == []
    assert re.match("GPU 0: NVML does not tell its memory.*--gpu-memory", found["problem"])


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
def test_questions_that_a_platform_refuses_cost_their_answers_only(nvml: Library, error: int) -> None:
    described = machine(gpu(RTX_3090, pci=None, cores=None, process_error=error))
    device = only(nvml.detect(described))
    assert (device["ecc"], device["processes"], device["pci_bus_id"]) == (None, None, None)
    assert device["gpu"]["free_bytes"] == RTX_3090.torch_mib * MIB


@pytest.mark.parametrize("error", [NOT_SUPPORTED, NO_PERMISSION, UNKNOWN])
def test_a_known_gpu_of_which_nvml_tells_its_memory_alone_is_shown_in_part(nvml: Library, error: int) -> None:
    found = nvml.detect(machine(gpu(H100, 0, optional_error=error, process_error=error), gpu(T4, 1)))
    partly, whole = sorted(found["devices"], key=lambda device: device["index"])
    assert (partly["gpu"]["gpu_id"], partly["gpu"]["compute_capability"]) == ("h100-sxm", "9.0")
    assert partly["gpu"]["free_bytes"] == H100.torch_mib * MIB
    assert partly["notes"][0] == "NVML does not tell its compute capability: 9.0 by its name"
    assert not any("compute capability" in note for note in whole["notes"])
    assert found["problem"] is None


def test_an_old_driver_has_no_reserved_memory_and_no_processes(old_nvml: Library) -> None:
    device = only(old_nvml.detect(machine(gpu(RTX_3090, used_mib=100), driver="470.57.02")))
    assert device["gpu"]["free_bytes"] == (RTX_3090.torch_mib - 100) * MIB
    assert device["gpu"]["total_bytes"] == device["nvml_total_bytes"] == RTX_3090.total_mib * MIB
    assert (device["reserved_bytes"], device["processes"]) == (0, None)
    assert device["notes"] == ["this driver does not tell what it reserves for itself; driver 510 and later do"]


# -- the command -------------------------------------------------------------------------------------------------------

FIT = ("-m", "vramcalc", "fit", "llama-3.2-1b", "--json")


def test_gpus_prints_json_on_stdout_and_nothing_else(nvml: Library) -> None:
    done = nvml.run(SMALL_FIRST, "-m", "vramcalc", "gpus", "--json", CUDA_VISIBLE_DEVICES=UUIDS[0])
    detected = json.loads(done.stdout)["detected"]
    assert (done.returncode, done.stderr) == (0, "")
    assert (uuids(detected["devices"]), uuids(detected["hidden"])) == ([UUIDS[0]], [UUIDS[1]])
    assert set(only(detected)) == {
        *("gpu", "index", "uuid", "parent_uuid", "mig_ids", "pci_bus_id", "nvml_total_bytes", "reserved_bytes"),
        *("used_bytes", "processes", "ecc", "notes"),
    }


def test_gpus_prints_a_line_per_device(nvml: Library) -> None:
    done = nvml.run(BUSY_H100, "-m", "vramcalc", "gpus")
    assert (done.returncode, done.stderr) == (0, "")
    assert "NVIDIA driver 580.159.04" in done.stdout
    assert re.search(
        rf"NVIDIA H100 80GB HBM3 +79.65 GiB +2.04 GiB +0.46 GiB +on +{UUIDS[0]} +2 other processes take", done.stdout
    )


@pytest.mark.parametrize(
    ("described", "mask", "status", "usable_mib"),
    [
        (machine(gpu(H100)), None, 0, [81089]),
        (BUSY_H100, None, 1, [2089]),
        (machine(gpu(A100)), None, 0, [40506]),
        (CUT_A100, mig_uuid(3), 1, [9984]),
        (CUT_A100, None, 0, [20085, 9984, 9984]),
        (SMALL_FIRST, "1", 0, [24259]),
        (SMALL_FIRST, None, 0, [24080, 24259]),
    ],
    ids=[
        "idle",
        "busy",
        "whole A100",
        "slice of it",
        "every slice",
        "the slower by CUDA's index",
        "both, the faster first",
    ],
)
def test_fit_judges_by_what_is_free_on_the_visible_devices(
    nvml: Library, described: str, mask: str | None, status: int, usable_mib: list[int]
) -> None:
    done = nvml.run(described, *FIT, **({} if mask is None else {"CUDA_VISIBLE_DEVICES": mask}))
    verdicts = json.loads(done.stdout)
    assert done.returncode == status
    assert [v["usable_bytes"] for v in verdicts] == [n * MIB for n in usable_mib] * 3
    assert all((v["headroom_bytes"] < 0) == (v["needed_bytes"] > v["usable_bytes"]) for v in verdicts)


def test_fit_says_on_stderr_who_holds_the_memory(nvml: Library) -> None:
    assert nvml.run(BUSY_H100, *FIT).stderr == "note: h100-sxm 0: 2 other processes take 77.15 GiB\n"


@pytest.mark.parametrize(
    ("described", "environment", "reason"),
    [
        (machine(), {}, "there is no GPU"),
        (machine(init_error=MISMATCH), {}, "reboot after the driver update"),
        (machine(init_error=NO_PERMISSION), {}, "check the rights"),
        (machine(gpu(H100, handle_error=LOST)), {}, "fallen off the bus"),
        (machine(gpu(A100, mig=1)), {}, "MIG mode is on"),
        (EIGHT_H100, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES hides every GPU"),
    ],
    ids=["no device", "driver mismatch", "no permission", "lost GPU", "MIG without instances", "all hidden"],
)
def test_fit_goes_on_with_named_gpus_after_one_line_on_stderr(
    nvml: Library, described: str, environment: dict[str, str], reason: str
) -> None:
    done = nvml.run(described, *FIT, "--method", "lora", **environment)
    (line,) = done.stderr.splitlines()
    assert line.startswith("note: ")
    assert reason in line
    assert done.returncode == 0
    assert [v["gpu"] for v in json.loads(done.stdout)] == list(COMMON_GPUS)


@pytest.mark.parametrize("setting", [("--seq-len", "0"), ("--method", "lore"), ("--gpu-memory", "much", "--gpu", "t4")])
def test_bad_input_is_one_line_on_stderr_whatever_the_machine(nvml: Library, setting: tuple[str, ...]) -> None:
    done = nvml.run(EIGHT_H100, *FIT, *setting)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


def test_a_library_that_cannot_be_loaded_is_no_driver(nvml: Library, tmp_path: Path) -> None:
    (tmp_path / "libnvidia-ml.so.1").touch()
    done = nvml.run(EIGHT_H100, *FIT, "--method", "lora", LD_LIBRARY_PATH=str(tmp_path))
    assert done.returncode == 0
    assert done.stderr.startswith("note: no NVIDIA driver on this machine (libnvidia-ml.so.1 not found); showing t4, ")


def test_without_pynvml_the_line_names_the_package(nvml: Library) -> None:
    program = "import sys; sys.modules['pynvml'] = None; from vramcalc.cli.main import main; main()"
    done = nvml.run(EIGHT_H100, "-c", program, *FIT[2:], "--method", "lora")
    assert done.returncode == 0
    assert "without nvidia-ml-py; install it" in done.stderr


# -- agreement with torch ----------------------------------------------------------------------------------------------


def test_torch_counts_the_same_devices_on_the_same_library(nvml: Library) -> None:
    masks = ["", "0", "7,0", "0,1,8,2", "0,0", "0,-1,1", UUIDS[3], "GPU-e4,GPU-9e8d35e3", "GPU-9", f"{UUIDS[0]},1"]
    program = f"""
import os, torch
for mask in {masks}:
    os.environ["CUDA_VISIBLE_DEVICES"] = mask
    print(torch.cuda._device_count_nvml())
"""
    counted = [int(n) for n in nvml.run(EIGHT_H100, "-c", program).stdout.split()]
    assert counted == [len(nvml.detect(EIGHT_H100, CUDA_VISIBLE_DEVICES=mask)["devices"]) for mask in masks]
    assert max(counted) > 1
