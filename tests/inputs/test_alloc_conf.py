"""What ``PYTORCH_ALLOC_CONF`` means: the same as to torch itself, and where it is followed."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command import run
from hypothesis import given
from hypothesis import strategies as st

from vramcalc import estimate, verdict
from vramcalc.errors import InvalidValue, UnknownName, Unsupported, VramcalcError
from vramcalc.inputs import catalog
from vramcalc.inputs.alloc_conf import ENVIRONMENT, INTERVALS, AllocatorSettings, parse, read
from vramcalc.inputs.stack import Stack
from vramcalc.units import MIB

MODEL = "qwen2.5-0.5b"
_LIBC10 = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
_DIVISIONS = _LIBC10._ZN3c1016CachingAllocator26AcceleratorAllocatorConfig24roundup_power2_divisionsEm
_DIVISIONS.restype, _DIVISIONS.argtypes = ctypes.c_size_t, [ctypes.c_size_t]


@pytest.fixture(autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    yield
    torch._C._accelerator_setAllocatorSettings("expandable_segments:False")


def divisions_of_torch(text: str) -> tuple[int, ...]:
    """What torch's own parser makes of ``roundup_power2_divisions``, by range of sizes."""
    torch._C._accelerator_setAllocatorSettings(text)
    return tuple(_DIVISIONS(MIB << interval) for interval in range(INTERVALS))


# -- as torch reads it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", AllocatorSettings()),
        ("expandable_segments:True", AllocatorSettings(expandable_segments=True)),
        ("expandable_segments:True,expandable_segments:False", AllocatorSettings()),
        (" max_split_size_mb : 128 , ", AllocatorSettings(max_split_size_bytes=128 * MIB)),
        ("max_split_size_mb:20", AllocatorSettings(max_split_size_bytes=20 * MIB)),
        ("max_non_split_rounding_mb:64", AllocatorSettings(max_non_split_rounding_bytes=64 * MIB)),
        ("garbage_collection_threshold:0.8", AllocatorSettings(garbage_collection_threshold=0.8)),
        ("roundup_power2_divisions:4", AllocatorSettings(roundup_power2_divisions=(4,) * 16)),
        ("backend:native,large_segment_size_mb:20,per_process_memory_fraction:1.0", AllocatorSettings()),
    ],
)
def test_a_text_is_the_settings_it_names(text: str, expected: AllocatorSettings) -> None:
    assert parse(text) == expected


@pytest.mark.parametrize(
    "value",
    [
        "1",
        "16",
        "[256:1,512:2,>:8]",
        "[>:8]",
        "[]",
        "[4:2,1:4]",
        "[256:2,>:4,512:8]",
        "[131072:2]",
        "[1:0,2:4,>:0]",
        "4,roundup_power2_divisions:[4:2]",
        "[64:8,256:4,1024:4,>:1]",
    ],
)
def test_divisions_by_size_are_those_of_torchs_own_parser(value: str) -> None:
    text = f"roundup_power2_divisions:{value}"
    assert parse(text).divisions == divisions_of_torch(text)


_POWERS = st.integers(0, 17).map(lambda n: str(1 << n))
_ENTRIES = st.tuples(st.one_of(_POWERS, st.just(">")), st.one_of(_POWERS, st.just("0"))).map(":".join)


@given(st.lists(_ENTRIES, max_size=6))
def test_any_list_of_divisions_is_read_as_torch_reads_it(entries: list[str]) -> None:
    text = f"roundup_power2_divisions:[{','.join(entries)}]"
    assert parse(text).divisions == divisions_of_torch(text)


@pytest.mark.parametrize(
    "text",
    [
        "max_split_size_mb:19",
        "max_split_size_mb:x",
        "max_non_split_rounding_mb:19",
        "large_segment_size_mb:10",
        "garbage_collection_threshold:0",
        "garbage_collection_threshold:1",
        "garbage_collection_threshold:nan",
        "garbage_collection_threshold:x",
        "roundup_power2_divisions:3",
        "roundup_power2_divisions:0",
        "roundup_power2_divisions:[100:2]",
        "roundup_power2_divisions:[256:3]",
        "roundup_power2_divisions:[256]",
        "roundup_power2_divisions:[256:1",
        "expandable_segments:true",
        "expandable_segments:1",
        "pinned_use_background_threads:yes",
        "expandable_segments",
        "max_split_size_mb=128",
        ",",
    ],
)
def test_what_torch_refuses_is_refused(text: str) -> None:
    with pytest.raises(Exception, match=r"."):
        torch._C._accelerator_setAllocatorSettings(text)
    with pytest.raises(InvalidValue):
        parse(text)


# -- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "parts"),
    [
        ("max_split_size_mb:10", InvalidValue, ("max_split_size_mb = '10'", "at least 20", "leave the key out")),
        ("max_split_size_mb:-5", InvalidValue, ("'-5'", "at least 20", "leave the key out")),
        ("max_split_size_mb:20x", InvalidValue, ("'20x'", "at least 20", "leave the key out")),
        ("max_split_size_mb:30;x:1", InvalidValue, ("max_split_size_mb:30;x:1", "key:value", "write it as")),
        ("expandable_segments:true", InvalidValue, ("'true'", "True or False", "leave the key out")),
        ("garbage_collection_threshold:1.5", InvalidValue, ("'1.5'", "between 0 and 1", "leave the key out")),
        ("roundup_power2_divisions:[256:3]", InvalidValue, ("'3'", "a power of two", "or 0")),
        ("pinned_num_register_threads:256", InvalidValue, ("'256'", "at most 128", "leave the key out")),
        ("backend:jemalloc", InvalidValue, ("'jemalloc'", "native or cudaMallocAsync", "leave the key out")),
        ("max_split_size:128", UnknownName, ("'max_split_size'", "did you mean 'max_split_size_mb'", "torch takes")),
        ("backend:cudaMallocAsync", Unsupported, ("cudaMallocAsync", "CUDA's own pool", "use backend:native")),
        ("large_segment_size_mb:32", Unsupported, ("large_segment_size_mb:32", "not replayed", "default of 20")),
        ("per_process_memory_fraction:0.5", Unsupported, ("0.5", "not replayed", "leave it out")),
        ("throw_on_cudamalloc_oom:True", Unsupported, ("throw_on_cudamalloc_oom", "not replayed", "leave it out")),
    ],
)
def test_what_is_refused_is_told_with_the_value_what_was_expected_and_a_way_out(
    text: str, kind: type[VramcalcError], parts: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as caught:
        Stack(alloc_conf=text)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("release_lock_on_cudamalloc:True", "release_lock_on_cudamalloc"),
        ("pinned_num_register_threads:8", "pinned_num_register_threads"),
        ("pinned_reserve_segment_size_mb:64,throw_on_cudamalloc_oom:False", "pinned_reserve_segment_size_mb"),
        ("garbage_collection_threshold:0.8", "garbage_collection_threshold"),
        ("max_non_split_rounding_mb:64", "max_non_split_rounding_mb"),
    ],
)
def test_what_changes_no_byte_is_taken_and_said(text: str, named: str) -> None:
    (note,) = read(text).notes
    assert named in note
    found, usual = (estimate(MODEL, seq_len=64, alloc_conf=conf) for conf in (text, None))
    assert note in found.warnings
    assert found.reserved_bytes == usual.reserved_bytes


# -- where it is followed --------------------------------------------------------------------------------------------


def test_the_text_and_the_switch_of_expandable_segments_are_one_setting() -> None:
    by_text, by_switch = (
        estimate(MODEL, seq_len=64, **setting)
        for setting in ({"alloc_conf": "expandable_segments:True"}, {"expandable_segments": True})
    )
    assert by_text.reserved_bytes == by_switch.reserved_bytes == by_text.reserved_expandable_bytes
    both = Stack(alloc_conf="expandable_segments:True", expandable_segments=True)
    assert both.allocator == AllocatorSettings(expandable_segments=True)


def test_a_text_against_the_switch_is_refused() -> None:
    with pytest.raises(InvalidValue) as caught:
        Stack(alloc_conf="expandable_segments:False", expandable_segments=True)
    for part in ("expandable_segments:False", "expandable_segments=True", "leave one of them out"):
        assert part in str(caught.value)


def test_reserved_follows_the_text_and_the_recipe_names_it() -> None:
    usual = estimate(MODEL, "full", seq_len=512)
    coarse = estimate(MODEL, "full", seq_len=512, alloc_conf="roundup_power2_divisions:2")
    assert coarse.allocated_bytes == usual.allocated_bytes
    assert coarse.reserved_bytes > usual.reserved_bytes
    assert "PYTORCH_ALLOC_CONF=roundup_power2_divisions:2" in str(coarse)


def test_a_verdict_under_pressure_follows_the_text() -> None:
    usual, coarse = (
        estimate(MODEL, "full", seq_len=512, alloc_conf=conf) for conf in (None, "roundup_power2_divisions:2")
    )
    room = usual.reserved_bytes - 2 * MIB + usual.context.n_bytes
    device = catalog.gpu("a100-sxm-40").replace(total_bytes=room)
    assert usual.block_bytes < room < coarse.block_bytes
    assert (verdict(usual, device).status, verdict(coarse, device).status) == ("tight", "does not fit")


@pytest.mark.parametrize("name", ENVIRONMENT)
@pytest.mark.parametrize(
    "command", [("estimate", MODEL), ("fit", MODEL, "--gpu", "l4"), ("max", MODEL, "--gpu", "l4", "--limit", "1")]
)
def test_a_shell_that_sets_the_variable_is_told_once_that_it_is_not_read(
    monkeypatch: pytest.MonkeyPatch, name: str, command: tuple[str, ...]
) -> None:
    for other in ENVIRONMENT:
        monkeypatch.delenv(other, raising=False)
    plain = run(*command, "--seq-len" if command[0] != "max" else "--rank", "8")
    monkeypatch.setitem(os.environ, name, "roundup_power2_divisions:2")
    told = run(*command, "--seq-len" if command[0] != "max" else "--rank", "8")
    assert told.out == plain.out
    assert [line for line in told.err.splitlines() if name in line and "--alloc-conf" in line] == told.err.splitlines()
    assert plain.err == ""
    assert run(*command, "--alloc-conf", "max_split_size_mb:64").err == ""
