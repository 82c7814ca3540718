"""Models and GPUs by name."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

from vramcalc import tables
from vramcalc.errors import AmbiguousName, HubMissing, HubOffline, InvalidValue, UnknownName, Unsupported, shown
from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.gpu_names import counted, meant
from vramcalc.inputs.hf_config import read_config, to_spec
from vramcalc.inputs.model_names import copied_in_four_bits, names, without_address
from vramcalc.inputs.model_names import meant as meant_models
from vramcalc.inputs.stack import Gpu, ModelSpec
from vramcalc.units import MIB

_MODELS_REMEDY = "'vramcalc models' lists them; a path to a config.json works too"

SUPPORTED = tuple(FAMILIES)
"""Values of ``model_type`` that there is a family for."""

_TORCH_SHARE = 0.9816
"""torch reports up to 1.8 % less than NVML in the pairs of the table; that much is taken where only NVML's is known."""


# -- models ------------------------------------------------------------------------------------------------------------


@cache
def _model_rows() -> dict[str, tables.Row]:
    """Rows of the model table by every name they go by, in lower case."""
    return {name.lower(): row for row in tables.read("models") for name in names(row)}


def model_names() -> list[str]:
    """Short names of the models in the table whose family is supported."""
    return [row["alias"] for row in tables.read("models") if row["model_type"] in SUPPORTED]


def model(name: str | os.PathLike[str] | ModelSpec) -> ModelSpec:
    """A model by Hugging Face id or address, short name, tag such as ``llama3.1:8b``, or path to a ``config.json``.

    A path may be that of its folder. The table answers first, then the file system, the names that the table's models
    may go by, the local hub cache, and the hub. A spec is itself.

    Raises:
        UnknownName: nothing goes by that name; near names are offered.
        AmbiguousName: several models do; they are listed with their size.
        InvalidValue: no name at all.
        Unsupported: the architecture has no family here, or the weights are a copy in four bits.
        BadConfig: a configuration that cannot be read as a model.
        HubError: the hub gave none; its subclasses say why.
    """
    if isinstance(name, ModelSpec):
        return name
    if isinstance(name, os.PathLike):
        return read_config(Path(os.path.expanduser(name)))
    if not isinstance(name, str) or not name:
        raise InvalidValue("model", name, "a Hugging Face id, a short name or a path", _MODELS_REMEDY)
    name = without_address(name)
    row = _model_rows().get(name.lower())
    if row is not None:
        return _from_row(row, name)
    path = os.path.expanduser(name)
    if os.path.exists(path) or name.endswith(".json") or name.startswith((".", "/", "~")):
        return read_config(Path(path))
    found = meant_models(name, tables.read("models"))
    if len(found) == 1:
        return _from_row(found[0], name)
    if found := [row for row in found if row["model_type"] in SUPPORTED]:
        raise AmbiguousName(name, {row["alias"]: f"{int(row['params_total']) / 1e9:.1f} B" for row in found})
    _refuse_a_copy_in_four_bits(name)
    unknown = UnknownName("model", name, _supported_names(), _MODELS_REMEDY)
    if not _looks_like_hub_id(name):
        raise unknown
    return _from_hub(name, unknown.near)


def _refuse_a_copy_in_four_bits(name: str) -> None:
    base = copied_in_four_bits(name)
    found = meant_models(base, tables.read("models")) if base else []
    if len(found) == 1:
        some = ", with layers that Unsloth leaves in 16" if "-unsloth-" in name.lower() else ""
        raise Unsupported(
            f"{name} is {found[0]['hf_id']} as bitsandbytes stores it in four bits{some}; what reading such a copy "
            f"leaves behind is not modelled: name {found[0]['alias']} with method qlora, which quantises as it loads"
        )


def _supported_names() -> list[str]:
    return [n for row in tables.read("models") if row["model_type"] in SUPPORTED for n in names(row)]


def _from_hub(name: str, near: list[str]) -> ModelSpec:
    from vramcalc.inputs.hub import fetch_config

    try:
        return to_spec(fetch_config(name), name)
    except (HubMissing, HubOffline) as err:
        offer = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise type(err)(f"{err}{offer}") from err


def _looks_like_hub_id(name: str) -> bool:
    owner, slash, repository = name.partition("/")
    return bool(slash and owner and repository and "/" not in repository and not any(c.isspace() for c in name))


def _from_row(row: tables.Row, name: str) -> ModelSpec:
    """The model of a row; hub ids are answered under the name that was asked for."""
    if row["model_type"] not in SUPPORTED:
        raise Unsupported(
            f"{row['hf_id']} is a {row['architecture']} (model_type {row['model_type']!r}), which is not modelled; "
            f"supported: {', '.join(SUPPORTED)}; 'vramcalc models' lists them"
        )
    config: dict[str, Any] = {"model_type": row["model_type"], "architectures": [row["architecture"]]}
    for field in (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
    ):
        config[field] = int(row[field])
    for field in ("num_local_experts", "num_experts_per_tok"):
        if row[field]:
            config[field] = int(row[field])
    biases = row["attention_bias"].split("+")
    config |= {"attention_bias": "q,k,v,o" in biases, "mlp_bias": "mlp" in biases}
    config["tie_word_embeddings"] = row["tie_word_embeddings"] == "true"
    config["sliding_window"] = int(row["sliding_window"]) if row["sliding_window"] else None
    return to_spec(config, name if "/" in name else row["hf_id"])


# -- GPUs --------------------------------------------------------------------------------------------------------------


@cache
def _gpu_rows() -> dict[str, tables.Row]:
    return {row["gpu_id"]: row for row in tables.read("gpus")}


def gpu_names() -> list[str]:
    """Ids of all GPUs in the table."""
    return list(_gpu_rows())


def gpu_row(name: str) -> tables.Row:
    """A GPU's row by id, or by another name that says which one it is.

    Raises:
        UnknownName: no GPU goes by that name.
        AmbiguousName: several may; they are listed with their memory.
        Unsupported: several GPUs are asked for.
        InvalidValue: no id at all.
    """
    if not isinstance(name, str) or not name:
        raise InvalidValue("gpu", name, "a GPU's id such as 'rtx-4090'", "'vramcalc gpus' lists them")
    rows = _gpu_rows()
    if (row := rows.get(name.lower())) is not None:
        return row
    kind, n = counted(name)
    found = [rows[gpu_id] for gpu_id in meant(kind, rows.values())]
    if len(found) > 1:
        raise AmbiguousName(kind, {row["gpu_id"]: f"{float(row['memory_gb']):g} GB" for row in found})
    if not found:
        raise UnknownName("GPU", kind, rows, "'vramcalc gpus' lists them.")
    if n != 1:
        raise Unsupported(f"{shown(name)} is {n} GPUs; jobs on one GPU are modelled so far: name {found[0]['gpu_id']}")
    return found[0]


def gpu(name: str | Gpu) -> Gpu:
    """A GPU by id, such as ``rtx-4090`` or ``h100-sxm``, or as drivers and clouds call it; a spec is itself.

    Raises:
        UnknownName: no GPU goes by that name.
        AmbiguousName: several may.
        InvalidValue: no id at all.
        Unsupported: the device is not NVIDIA's, or several are asked for.
    """
    if isinstance(name, Gpu):
        return name
    row = gpu_row(name)
    if row["vendor"] != "NVIDIA":
        raise Unsupported(
            f"{row['gpu_id']} is {row['vendor']}'s; only NVIDIA's CUDA allocator and kernels are modelled; "
            "'vramcalc gpus' lists them"
        )
    total, basis = _capacity_bytes(row)
    return Gpu(
        gpu_id=row["gpu_id"],
        name=row["name"],
        architecture=row["architecture"],
        compute_capability=row["compute_capability"],
        total_bytes=total,
        total_basis=basis,
    )


def _capacity_bytes(row: tables.Row) -> tuple[int, str]:
    if row["torch_total_mib"]:
        return int(row["torch_total_mib"]) * MIB, "as torch reports it"
    return int(int(row["nvml_total_mib"]) * MIB * _TORCH_SHARE), "1.8 % below NVML's total, torch's is not known"
