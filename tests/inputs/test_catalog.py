"""Models and GPUs by name: the table first, then files, then the hub; a name that nothing goes by offers near ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from configs import CONFIGS, write_config

from vramcalc import tables
from vramcalc.errors import AmbiguousName, BadConfig, InvalidValue, UnknownName, Unsupported
from vramcalc.inputs import catalog, model_names
from vramcalc.inputs.gpu_names import counted, meant
from vramcalc.inputs.hf_config import to_spec
from vramcalc.units import MIB

LLAMA = catalog.model("meta-llama/Llama-3.1-8B")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory that is also the user's home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-8B",
        "meta-llama/Llama-3.1-8B-Instruct",
        "meta-llama/Meta-Llama-3.1-8B",
        "llama-3.1-8b",
        "Llama-3.1-8B",
        "META-LLAMA/LLAMA-3.1-8B",
    ],
)
def test_a_model_goes_by_its_id_those_of_its_variants_and_a_short_name_in_any_case(name: str) -> None:
    assert catalog.model(name).replace(name=LLAMA.name) == LLAMA
    assert (LLAMA.hidden_size, LLAMA.num_key_value_heads, LLAMA.params_total) == (4096, 8, 8_030_261_248)


@pytest.mark.parametrize(
    ("name", "alias"),
    [
        ("llama3.1:8b", "llama-3.1-8b"),
        ("Llama 3.1 8B", "llama-3.1-8b"),
        ("qwen2.5:7b-instruct", "qwen2.5-7b"),
        ("gemma2:9b", "gemma-2-9b"),
        ("qwen3_8b", "qwen3-8b"),
        ("unsloth/Llama-3.2-1B-Instruct", "llama-3.2-1b"),
        ("unsloth/Meta-Llama-3.1-8B-Instruct", "llama-3.1-8b"),
        ("NousResearch/Meta-Llama-3-8B-Instruct", "llama-3-8b"),
        ("https://huggingface.co/Qwen/Qwen2.5-7B-Instruct/tree/main", "qwen2.5-7b"),
        ("hf.co/google/gemma-2-9b-it?a=b", "gemma-2-9b"),
    ],
)
def test_a_model_goes_by_tags_addresses_mirrors_and_plain_words(name: str, alias: str) -> None:
    found = catalog.model(name)
    assert found.replace(name="") == catalog.model(alias).replace(name="")


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("unsloth/Llama-3.2-1B-Instruct", "unsloth/Llama-3.2-1B-Instruct"),
        ("https://huggingface.co/Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B-Instruct"),
        ("llama-3.1-8b", "meta-llama/Llama-3.1-8B"),
        ("llama3.1:8b", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_a_hub_id_is_answered_under_the_name_that_was_asked_for(asked: str, answered: str) -> None:
    assert catalog.model(asked).name == answered


@pytest.mark.parametrize("row", tables.read("models"), ids=lambda row: row["alias"])
def test_every_name_of_the_table_means_its_own_row_alone(row: tables.Row) -> None:
    for name in model_names.names(row):
        assert model_names.meant(name, tables.read("models")) == [row]


@pytest.mark.parametrize(("name", "n"), [("llama3", 2), ("llama3.1", 3), ("mistral:7b", 3), ("mixtral", 2)])
def test_a_name_of_several_models_lists_them_with_their_size(name: str, n: int) -> None:
    with pytest.raises(AmbiguousName, match=r"may mean .* B\): name one$") as caught:
        catalog.model(name)
    assert len(caught.value.near) == n


@pytest.mark.parametrize(
    "name", ["7b", "llama", "instruct", "a/b/llama-3.1-8b", "someone/llama-3.1-8b", "llama-3.1-8bx"]
)
def test_too_little_or_a_name_of_strangers_means_no_model(name: str) -> None:
    assert model_names.meant(name, tables.read("models")) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("unsloth/llama-3-8b-bnb-4bit", "is meta-llama/Meta-Llama-3-8B as bitsandbytes stores it in four bits; what"),
        ("unsloth/Qwen2.5-7B-Instruct-unsloth-bnb-4bit", "four bits, with layers that Unsloth leaves in 16; what"),
    ],
)
def test_a_copy_in_four_bits_names_its_base_and_the_method(name: str, says: str) -> None:
    with pytest.raises(Unsupported, match=says) as caught:
        catalog.model(name)
    assert "with method qlora" in str(caught.value)


def test_a_spec_is_itself() -> None:
    assert catalog.model(LLAMA) is LLAMA
    gpu = catalog.gpu("t4")
    assert catalog.gpu(gpu) is gpu


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "./config.json",
        "renamed.json",
        ".",
        "./",
        "folder",
        "folder/",
        "folder/config.json",
        "~/folder",
        "a/b",
    ],
)
def test_a_model_goes_by_the_path_of_its_configuration_or_of_the_folder(here: Path, family: str, name: str) -> None:
    for folder in (here, here / "folder", here / "a/b"):
        folder.mkdir(parents=True, exist_ok=True)
        write_config(folder / "config.json", CONFIGS[family])
    write_config(here / "renamed.json", CONFIGS[family])
    expected = to_spec(CONFIGS[family], "").replace(name="")
    assert catalog.model(name).replace(name="") == expected
    assert catalog.model(str(here / name) if name[0] != "~" else name).replace(name="") == expected
    assert catalog.model(Path(name)).replace(name="") == expected


def test_the_table_answers_before_the_file_system(here: Path) -> None:
    folder = here / "meta-llama" / "Llama-3.1-8B"
    folder.mkdir(parents=True)
    write_config(folder / "config.json", CONFIGS["qwen3"])
    assert catalog.model("meta-llama/Llama-3.1-8B") == LLAMA
    assert catalog.model("./meta-llama/Llama-3.1-8B").model_type == "qwen3"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("llama-3.1-8", "llama-3.1-8b"),
        ("lama-3.1-8b", "llama-3.1-8b"),
        ("Qwen25_7B", "qwen2.5-7b"),
        ("mistral-nemmo", "mistral-nemo"),
    ],
)
def test_an_unknown_model_offers_near_names_the_best_first(name: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        catalog.model(name)
    assert caught.value.near[0] == near
    message = str(caught.value)
    assert message.startswith(f"no model named '{name}'; did you mean '{near}'")
    assert message.endswith("'vramcalc models' lists them; a path to a config.json works too")


@pytest.mark.parametrize(
    "name", ["no such thing", "a/b/c", "a /b", "/b", "a/", "\0", "x\0y", "\n", "x" * 300, "http://a/b"]
)
def test_a_name_that_is_none_is_refused_without_a_traceback(here: Path, name: str) -> None:
    with pytest.raises((UnknownName, BadConfig)) as caught:
        catalog.model(name)
    assert "config.json" in str(caught.value)


def test_no_offer_is_made_of_a_model_that_would_be_refused() -> None:
    refused = {r["alias"] for r in tables.read("models") if r["model_type"] not in catalog.SUPPORTED}
    for alias in sorted(refused):
        with pytest.raises(UnknownName) as caught:
            catalog.model(f"{alias}zz")
        assert not refused & set(caught.value.near)


@pytest.mark.parametrize(
    "name", ["./nothing", "../nothing", "~/nothing", "/no/thing", "nothing.json", "~nobody/nothing"]
)
def test_a_path_to_nothing_is_named(here: Path, name: str) -> None:
    with pytest.raises(
        BadConfig, match=r"does not exist: expected a config\.json, or a folder that holds one"
    ) as caught:
        catalog.model(name)
    assert os.path.expanduser(name).removeprefix("./") in str(caught.value)


@pytest.mark.parametrize("value", [None, "", 5, True, b"llama-3.1-8b", [], {"hidden_size": 1}], ids=repr)
def test_what_is_no_name_is_refused_with_what_is(value: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^model = .*: expected a Hugging Face id, .*'vramcalc models' lists them"):
        catalog.model(value)
    with pytest.raises(InvalidValue, match=r"^gpu = .*: expected a GPU's id such as 'rtx-4090'; 'vramcalc gpus' lists"):
        catalog.gpu(value)


# -- GPUs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "total_mib", "capability"),
    [("t4", 15095, (7, 5)), ("RTX-4090", 24563, (8, 9)), ("a100-sxm-80", 81222, (8, 0)), ("h100-sxm", 81089, (9, 0))],
)
def test_a_gpu_goes_by_its_id_in_any_case(name: str, total_mib: int, capability: tuple[int, int]) -> None:
    gpu = catalog.gpu(name)
    assert (gpu.gpu_id, gpu.total_bytes, gpu.capability) == (name.lower(), total_mib * MIB, capability)
    assert gpu.usable_bytes == gpu.total_bytes


@pytest.mark.parametrize(
    ("name", "gpu_id"),
    [
        ("3090", "rtx-3090"),
        ("rtx4090", "rtx-4090"),
        ("RTX 4090", "rtx-4090"),
        ("RTX 3090 24GB", "rtx-3090"),
        ("3090ti", "rtx-3090-ti"),
        ("4070 Ti Super", "rtx-4070-ti-super"),
        ("RTX 4060 Ti 16GB", "rtx-4060-ti-16"),
        ("RTX 3060 12GB", "rtx-3060-12"),
        ("NVIDIA GeForce RTX 3090", "rtx-3090"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80"),
        ("NVIDIA A100 80GB PCIe", "a100-pcie-80"),
        ("a100-80", "a100-sxm-80"),
        ("A100 80GB", "a100-sxm-80"),
        ("nvidia-a100-80gb", "a100-sxm-80"),
        ("A100-PCIE-40GB", "a100-pcie-40"),
        ("H100_SXM5", "h100-sxm"),
        ("H100-80GB", "h100-sxm"),
        ("H100 80GB HBM3", "h100-sxm"),
        ("H200 141GB", "h200"),
        ("Tesla T4", "t4"),
        ("nvidia-tesla-t4", "t4"),
        ("V100-32GB", "v100-sxm2-32"),
        ("Tesla V100-SXM2-32GB", "v100-sxm2-32"),
        ("RTX A6000", "a6000"),
        ("RTX 6000 Ada", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx-pro-6000"),
        ("GH200", "gh200-96"),
        ("NVIDIA A10G", "a10g"),
        ("B200", "b200"),
        ("gpu:a10g", "a10g"),
        ("1xL4", "l4"),
    ],
)
def test_a_gpu_goes_by_what_drivers_clouds_and_people_call_it(name: str, gpu_id: str) -> None:
    assert catalog.gpu_row(name)["gpu_id"] == gpu_id


@pytest.mark.parametrize("row", tables.read("gpus"), ids=lambda row: row["gpu_id"])
def test_a_gpu_of_the_table_goes_by_its_own_name(row: tables.Row) -> None:
    assert row["gpu_id"] in meant(row["name"], tables.read("gpus"))
    assert meant(row["gpu_id"], tables.read("gpus")) == [row["gpu_id"]]


@pytest.mark.parametrize(
    "name",
    ["rtx", "24GB", "80", "6000", "4060", "p100", "h20", "GTX 1080 Ti", "RTX 4090 Laptop GPU", "RTX 4060 Ti 8GB",
     "M3 Max", "nvidia", "h800-80", "", "x" * 10_000],
)  # fmt: skip
def test_too_little_or_another_name_means_no_gpu(name: str) -> None:
    assert meant(name, tables.read("gpus")) == []


@pytest.mark.parametrize(
    ("name", "n"), [("a100", 4), ("Tesla A100", 4), ("a100_sxm4", 2), ("h100", 3), ("V100", 2), ("8xA100", 4)]
)
def test_a_name_of_several_gpus_lists_them_with_their_memory(name: str, n: int) -> None:
    with pytest.raises(AmbiguousName) as caught:
        catalog.gpu(name)
    assert len(caught.value.near) == n
    for gpu_id in caught.value.near:
        assert f"{gpu_id} ({float(catalog.gpu_row(gpu_id)['memory_gb']):g} GB)" in str(caught.value)
    assert str(caught.value).endswith(": name one")


@pytest.mark.parametrize(
    "text", ["8xA100-80GB", "8 x A100-80GB", "A100-80GB:8", "gpu:a100-80gb:8", "--gres=gpu:a100-80gb:8", "A100 80GB x8",
             "a100-80gb x 8"],
)  # fmt: skip
def test_several_gpus_are_read_in_every_form_and_refused_by_name(text: str) -> None:
    assert counted(text)[1] == 8
    with pytest.raises(Unsupported, match=r"is 8 GPUs; jobs on one GPU are modelled so far: name a100-sxm-80"):
        catalog.gpu(text)


@pytest.mark.parametrize("name", ["RTX 4090", "mi300x", "RTX4090", "gb200 nvl72", "l4", "h100-sxm"])
def test_a_name_with_figures_in_it_is_one_gpu(name: str) -> None:
    assert counted(name) == (name, 1)


@pytest.mark.parametrize(
    ("name", "near"), [("rtx409", "rtx-4090"), ("h100-smx", "h100-sxm"), ("a100-smx-80", "a100-sxm-80")]
)
def test_an_unknown_gpu_offers_near_ones(name: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        catalog.gpu(name)
    assert near in caught.value.near
    assert str(caught.value).endswith("'vramcalc gpus' lists them.")


def test_a_gpu_of_another_maker_is_refused_with_a_way_out() -> None:
    with pytest.raises(Unsupported, match=r"mi300x is AMD's; only NVIDIA's .*; 'vramcalc gpus' lists them"):
        catalog.gpu("mi300x")


def test_every_gpu_in_the_table_can_be_named() -> None:
    assert catalog.gpu_names() == [row["gpu_id"] for row in tables.read("gpus")]
