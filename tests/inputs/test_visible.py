"""The rules of ``CUDA_VISIBLE_DEVICES``, and their agreement with torch's reading of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nvml.stub import UUIDS

from vramcalc.inputs.machine.visible_devices import Selection, select


@dataclass(frozen=True)
class Gpu:
    uuid: str
    parent_uuid: str | None = None
    mig_ids: tuple[int, int] | None = None
    speed: tuple[int, ...] = (1,)


EIGHT = [Gpu(uuid) for uuid in UUIDS]
# GPU 0 is whole; GPU 1 is cut into two GPU instances, the second of them into two compute instances.
CUT = [
    Gpu(UUIDS[0]),
    Gpu("MIG-aa232436-d5a6-5e39-b527-16f9b223cc46", UUIDS[1], (1, 0)),
    Gpu("MIG-3b12da37-7fa2-596c-8655-62dab88f0b64", UUIDS[1], (2, 0)),
    Gpu("MIG-3e209540-03e2-5edb-8798-51d4967218c9", UUIDS[1], (2, 1)),
]
WHOLE, FIRST, SECOND, SHARING = (d.uuid for d in CUT)


def mask(devices: list[Gpu], value: str | None, driver: str | None = None, **environment: str) -> Selection:
    return select(devices, environment | ({} if value is None else {"CUDA_VISIBLE_DEVICES": value}), driver=driver)


@pytest.mark.parametrize("wanted", ["\N{FULLWIDTH DIGIT ZERO}", "\N{ARABIC-INDIC DIGIT ONE}"])
def test_digits_of_other_scripts_are_no_numbers_to_a_driver(wanted: str) -> None:
    found = mask(EIGHT, f"{wanted},1")
    assert found.positions == []
    assert f"{wanted!r} names no device" in found.notes[0]


# -- laws --------------------------------------------------------------------------------------------------------------

NUMBERS = ["0", "1", "7", "8", " 3", "4 ", "+2", "-0", "-1", "01", "1gpu", "9" * 12]
NAMES = [
    "GPU-",
    "GPU-9",
    "GPU-9e",
    UUIDS[1],
    f" {UUIDS[1]}",
    UUIDS[0][:-1],
    "GPU-eee1",
    "GPU-zz",
    "gpu-9e8d35e3",
    "MIG-1",
]
TOKENS = st.sampled_from([*NUMBERS, *NAMES, "", " ", "one", "NoDevFiles"])


@settings(deadline=None)
@given(st.lists(TOKENS, max_size=5).map(",".join))
def test_every_mask_is_read_as_torch_reads_it(value: str) -> None:
    assert mask(EIGHT, value).positions == _torch_positions(value)


def _torch_positions(value: str) -> list[int]:
    """What ``torch.cuda._device_count_nvml`` counts."""
    cuda = pytest.importorskip("torch.cuda")
    with mock.patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": value}):
        parsed = cuda._parse_visible_devices()
    if parsed and isinstance(parsed[0], str):
        return [] if parsed[0].startswith("MIG-") else cuda._transform_uuid_to_ordinals(parsed, list(UUIDS))
    out_of_range = next((i for i, index in enumerate(parsed) if index >= len(UUIDS)), len(parsed))
    return parsed[:out_of_range]


@settings(deadline=None)
@example("9" * 5000)
@given(st.text("0123456789,-+ \tGPUMIxé²", max_size=20))
def test_no_mask_selects_a_device_twice_or_one_that_is_not_there(value: str) -> None:
    for devices in (EIGHT, CUT, []):
        positions = mask(devices, value).positions
        assert len(set(positions)) == len(positions)
        assert all(0 <= p < len(devices) for p in positions)


@settings(deadline=None)
@given(st.permutations(range(8)), st.integers(1, 8))
def test_indices_and_uuids_of_equal_gpus_select_the_same_in_the_order_written(order: list[int], count: int) -> None:
    chosen = order[:count]
    assert mask(EIGHT, ",".join(map(str, chosen))).positions == chosen
    assert mask(EIGHT, ",".join(UUIDS[i] for i in chosen)).positions == chosen


def test_without_a_mask_everything_is_listed() -> None:
    assert mask(EIGHT, None) == Selection(list(range(8)), [])
    assert mask(CUT, None) == Selection([0, 1, 2, 3], [])


# -- NVIDIA's own examples ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "positions"),
    [("2,1", [2, 1]), ("0,2,-1,1", [0, 2]), ("", []), (UUIDS[3], [3]), ("GPU-9e8d35e3", [1])],
)
def test_examples_of_the_programming_guide(value: str, positions: list[int]) -> None:
    assert mask(EIGHT, value) == Selection(positions, [])


# -- what is said ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", " ", "-1", "0,-1", "NoDevFiles", "0,", "3,1"])
def test_a_mask_that_says_what_it_means_needs_no_note(value: str) -> None:
    assert mask(EIGHT, value).notes == []


@pytest.mark.parametrize(
    ("value", "positions", "entry"),
    [
        ("0,8,1", [0], "8"),
        ("0,one,1", [0], "one"),
        (f"0,{UUIDS[1]}", [0], UUIDS[1]),
        (f"{UUIDS[0]},1", [0], "1"),
        (f"{UUIDS[0]}, {UUIDS[1]}", [0], f" {UUIDS[1]}"),
        ("GPU-eee1,GPU-9", [3], "GPU-9"),
        ("GPU-ffff", [], "GPU-ffff"),
        ("MIG-1", [], "MIG-1"),
    ],
)
def test_the_list_stops_at_the_first_entry_that_names_no_single_device(
    value: str, positions: list[int], entry: str
) -> None:
    found = mask(EIGHT, value)
    assert found.positions == positions
    assert found.notes == [f"CUDA_VISIBLE_DEVICES: {entry!r} names no device; it and what follows is ignored"]


@pytest.mark.parametrize(
    ("value", "entry"),
    [("0,0", "0"), ("0,1,8,1", "1"), (f"{UUIDS[1]},{UUIDS[1]}", UUIDS[1]), (f"{UUIDS[1]},GPU-9e8d", "GPU-9e8d")],
)
def test_a_device_named_twice_hides_all(value: str, entry: str) -> None:
    found = mask(EIGHT, value)
    assert found == Selection([], [f"CUDA_VISIBLE_DEVICES: {entry!r} comes twice; CUDA then shows no device"])


# -- order -------------------------------------------------------------------------------------------------------------

SLOW_FIRST = [Gpu(UUIDS[0], speed=(10,)), Gpu(UUIDS[1], speed=(30,)), Gpu(UUIDS[2], speed=(30,))]


def test_the_fastest_comes_first_and_equals_keep_their_order() -> None:
    assert mask(SLOW_FIRST, None).positions == [1, 2, 0]
    assert mask(SLOW_FIRST, None, CUDA_DEVICE_ORDER="FASTEST_FIRST").positions == [1, 2, 0]
    assert mask(SLOW_FIRST, None, CUDA_DEVICE_ORDER="PCI_BUS_ID").positions == [0, 1, 2]


@pytest.mark.parametrize(
    ("value", "order", "positions", "doubtful"),
    [
        ("0", "FASTEST_FIRST", [1], True),
        ("2", "FASTEST_FIRST", [0], True),
        ("0", "PCI_BUS_ID", [0], False),
        (UUIDS[0], "FASTEST_FIRST", [0], False),
    ],
)
def test_an_index_counts_in_cuda_order_and_that_is_doubtful_among_different_gpus(
    value: str, order: str, positions: list[int], doubtful: bool
) -> None:
    found = mask(SLOW_FIRST, value, CUDA_DEVICE_ORDER=order)
    assert found.positions == positions
    assert bool(found.notes) == doubtful
    assert all("set CUDA_DEVICE_ORDER=PCI_BUS_ID" in note for note in found.notes)


# -- MIG ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [SECOND, f"MIG-{UUIDS[1]}/2/0", "MIG-3b"])
def test_an_instance_goes_by_its_uuid_its_beginning_and_the_form_of_old_drivers(value: str) -> None:
    assert mask(CUT, value) == Selection([2], [])


@pytest.mark.parametrize("value", ["MIG-3", f"MIG-{UUIDS[1]}/9/0", "MIG-", WHOLE.replace("GPU", "MIG")])
def test_an_instance_that_is_ambiguous_or_unknown_is_none(value: str) -> None:
    assert mask(CUT, value).positions == []


@pytest.mark.parametrize("value", ["1", UUIDS[1]])
def test_a_gpu_cut_up_stands_for_its_first_instance(value: str) -> None:
    found = mask(CUT, value)
    assert found.positions == [1]
    assert "name another by its MIG UUID" in found.notes[0]


@pytest.mark.parametrize(
    ("value", "driver", "positions", "left_out"),
    [
        (f"{FIRST},{SECOND}", "570.86.15", [1, 2], None),
        (f"{FIRST},{SECOND}", None, [1, 2], None),
        (f"{FIRST},{SECOND}", "535.104.05", [1], SECOND),
        (f"{SHARING},{FIRST},{SECOND}", "570.86.15", [3, 1], SECOND),
        ("0,1", "570.86.15", [0, 1], None),
        ("0,1", "535.104.05", [1], WHOLE),
        ("0", "535.104.05", [0], None),
    ],
)
def test_instances_beside_each_other_are_seen_as_the_driver_allows(
    value: str, driver: str | None, positions: list[int], left_out: str | None
) -> None:
    """MIG User Guide: one instance before driver 570, since then one compute instance of each GPU instance."""
    found = mask(CUT, value, driver)
    assert found.positions == positions
    said = [note for note in found.notes if note.endswith("left out")]
    assert len(said) == (left_out is not None)
    assert all(str(left_out) in note for note in said)
