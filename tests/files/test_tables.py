"""Every row of every shipped table is read back, has a source and a date, and agrees with what is counted from it."""

from __future__ import annotations

import datetime
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

import vramcalc
from vramcalc import tables
from vramcalc.errors import DataError, InvalidValue, UnknownName, Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.stack import ModelSpec, OptimizerName, TrainingSpec
from vramcalc.memory.context import capability_of, documented, readings
from vramcalc.shadow.engine.tape import ITEMSIZE
from vramcalc.units import GIB, MIB

KEYS = {
    "models": "hf_id",
    "gpus": "gpu_id",
    "runtime": "reading_id",
    "optimizers": "optimizer",
    "measurements": "case_id",
    "prices": "provider region gpu_id gpu_count instance tier",
    "price_gpus": "gpu_name memory_gb provider instance",
    "claims": "claim_id",
    "traces": "trace_id",
    "transformers_releases": "release",
    "run_dates": "runs",
    "method_fields": "runs",
    "matrices": "hf_id",
    "throughput": "case_id",
}
"""Columns that tell a row from the others."""
SOURCED = {
    "nvml_total_mib": "nvml_source",
    "torch_total_mib": "torch_source",
    "bf16_dense_tflops": "tflops_source",
    "link_gb_s": "link_source",
    "memory_bandwidth_gb_s": "base_source",
    "memory_gb": "base_source",
    "fp32_tflops": "base_source",
}
MODELS, GPUS, OPTIMIZERS = tables.read("models"), tables.read("gpus"), tables.read("optimizers")
SUPPORTED = [row for row in MODELS if row["model_type"] in FAMILIES]
REFUSED = [row for row in MODELS if row["model_type"] not in FAMILIES]


def key_of(table: str, row: tables.Row) -> str:
    return " ".join(row[column] for column in KEYS[table].split())


def names_of(row: tables.Row, *columns: str) -> list[str]:
    return [row[columns[0]], *(name for column in columns[1:] for name in row[column].split())]


# -- every row ---------------------------------------------------------------------------------------------------------


def test_every_shipped_table_is_tested_here() -> None:
    assert {path.stem for path in tables.directory().glob("*.csv")} == set(KEYS)


@pytest.mark.parametrize("table", KEYS)
def test_every_row_has_a_source_and_a_date_not_in_the_future(table: str) -> None:
    for row in tables.read(table):
        assert row.get("source") or row.get("base_source") or row.get("versions"), key_of(table, row)
        assert datetime.date(2026, 1, 1) <= tables.checked_on(row) <= datetime.date.today(), key_of(table, row)


@pytest.mark.parametrize("table", KEYS)
def test_ids_are_unique_and_cells_are_trimmed(table: str) -> None:
    rows = tables.read(table)
    assert len({key_of(table, row).lower() for row in rows}) == len(rows) > 0
    assert [cell for row in rows for cell in row.values() if cell != cell.strip()] == []


@pytest.mark.parametrize(
    ("rows", "columns"),
    [(MODELS, ("hf_id", "alias", "also")), (OPTIMIZERS, ("optimizer", "also"))],
    ids=["models", "optimizers"],
)
def test_a_name_stands_for_one_row(rows: tuple[tables.Row, ...], columns: tuple[str, ...]) -> None:
    named = Counter(name.lower() for row in rows for name in names_of(row, *columns))
    assert [name for name, n in named.items() if n > 1] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1,2\n3\n", "row 3: expected 2 fields"),
        (b"a,b\n1,2,3\n", "row 2: expected 2 fields"),
        (b"a,b\n\xff,2\n", "UTF-8"),
        (None, "No such file"),
    ],
    ids=["short row", "long row", "not text", "missing"],
)
def test_a_broken_table_is_a_data_error_with_its_path(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "models.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        tables.read_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["", "2026-13-01", "yesterday"])
def test_a_date_that_is_none_is_a_data_error(text: str) -> None:
    with pytest.raises(DataError, match="YYYY-MM-DD"):
        tables.checked_on({"checked_on": text})


# -- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", SUPPORTED, ids=lambda row: row["alias"])
def test_counted_parameters_are_the_tables_exact_total(row: tables.Row) -> None:
    spec = catalog.model(row["hf_id"])
    assert spec.params_total == int(row["params_total"])
    assert vramcalc.estimate(spec, "full", seq_len=8).trainable_params == int(row["params_total"])


@pytest.mark.parametrize("row", SUPPORTED, ids=lambda row: row["alias"])
def test_a_supported_row_is_read_back_under_each_of_its_names(row: tables.Row) -> None:
    spec = catalog.model(row["hf_id"])
    for name in names_of(row, "hf_id", "alias", "also"):
        same = [catalog.model(other).replace(name=spec.name) for other in (name, name.upper())]
        assert same == [spec, spec]
    for field in ModelSpec.model_fields.keys() & row.keys() - {"attention_bias"}:
        value = getattr(spec, field)
        assert row[field] == ("" if value is None else str(value).lower() if isinstance(value, bool) else str(value))
    attention = "q,k,v" if spec.model_type == "qwen2" else "q,k,v,o" if spec.attention_bias else ""
    assert row["attention_bias"] == ("+".join(filter(None, (attention, "mlp" * spec.mlp_bias))) or "none")


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row["hf_id"])
def test_another_architecture_is_refused_by_name_with_those_supported(row: tables.Row) -> None:
    for name in names_of(row, "hf_id", "alias", "also"):
        with pytest.raises(Unsupported) as caught:
            catalog.model(name)
        message = str(caught.value)
        assert row["hf_id"] in message
        assert row["architecture"] in message
        assert f"supported: {', '.join(FAMILIES)}" in message


def test_models_that_can_be_named_are_those_supported() -> None:
    assert catalog.model_names() == [row["alias"] for row in SUPPORTED]


# -- GPUs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GPUS, ids=lambda row: row["gpu_id"])
def test_every_quantity_of_a_gpu_has_a_source(row: tables.Row) -> None:
    assert [q for q, source in SOURCED.items() if row[q] and not row[source]] == []


@pytest.mark.parametrize("row", GPUS, ids=lambda row: row["gpu_id"])
def test_capacity_is_a_little_below_what_the_box_says(row: tables.Row) -> None:
    on_the_box = float(row["memory_gb"]) * GIB
    for column in ("nvml_total_mib", "torch_total_mib"):
        if row[column]:
            assert 0.92 < int(row[column]) * MIB / on_the_box <= 1
    if row["nvml_total_mib"] and row["torch_total_mib"]:
        assert int(row["torch_total_mib"]) <= int(row["nvml_total_mib"])


@pytest.mark.parametrize("row", GPUS, ids=lambda row: row["gpu_id"])
def test_a_gpu_is_read_back_or_refused_by_name(row: tables.Row) -> None:
    known = row["torch_total_mib"] or row["nvml_total_mib"]
    if row["vendor"] != "NVIDIA":
        with pytest.raises(Unsupported, match=row["gpu_id"]):
            catalog.gpu(row["gpu_id"])
        return
    gpu = catalog.gpu(row["gpu_id"].upper())
    assert (gpu.gpu_id, gpu.name, gpu.architecture) == (row["gpu_id"], row["name"], row["architecture"])
    assert ".".join(map(str, gpu.capability)) == row["compute_capability"]
    assert (gpu.total_bytes == int(known) * MIB) == bool(row["torch_total_mib"])
    assert ("torch's is not known" in gpu.total_basis) != bool(row["torch_total_mib"])


def test_where_torch_is_unknown_no_gpu_of_the_table_has_less_than_is_assumed() -> None:
    """The estimate stays on the safe side of every pair that is known."""
    pairs = [r for r in GPUS if r["vendor"] == "NVIDIA" and r["nvml_total_mib"] and r["torch_total_mib"]]
    (unknown, *_) = [r for r in GPUS if r["vendor"] == "NVIDIA" and r["nvml_total_mib"] and not r["torch_total_mib"]]
    assumed = catalog.gpu(unknown["gpu_id"]).total_bytes / (int(unknown["nvml_total_mib"]) * MIB)
    least = min(int(r["torch_total_mib"]) / int(r["nvml_total_mib"]) for r in pairs)
    assert least - 0.005 < assumed <= least


# -- the CUDA context --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", tables.read("runtime"), ids=lambda row: row["reading_id"])
def test_a_reading_is_within_the_context_of_each_card_that_it_may_be_of(row: tables.Row) -> None:
    size, rounding = (float(row[column]) * GIB for column in ("context_gib", "rounding_gib"))
    assert 0 < rounding < 0.02 * GIB < size < GIB
    assert row["source"]
    for name in row["gpus"].split():
        card = next(r for r in GPUS if r["gpu_id"] == name)
        context = documented(card["architecture"], capability_of(name))
        assert context.basis == "calibrated"
        assert context.low_bytes - 1 <= size - rounding < size + rounding <= context.high_bytes + 1
        assert float(row["capacity_gib"]) * GIB == pytest.approx(float(card["memory_gb"]) * GIB, rel=0.1)


@pytest.mark.parametrize("gpu_id", [row["gpu_id"] for row in GPUS if row["vendor"] == "NVIDIA"])
def test_a_generation_without_a_reading_is_said_to_be_assumed_and_spans_them_all(gpu_id: str) -> None:
    architecture = next(row["architecture"] for row in GPUS if row["gpu_id"] == gpu_id)
    found = documented(architecture, capability_of(gpu_id))
    assert 0 < found.low_bytes < found.n_bytes < found.high_bytes < GIB
    known = {generation[0] for reading in readings() for generation in reading.generations}
    assert found.basis == ("calibrated" if architecture in known else "assumed")
    if found.basis == "assumed":
        assert found.low_bytes <= min(r.n_bytes for r in readings())
        assert found.high_bytes >= max(r.n_bytes for r in readings())


def test_a_difference_of_figures_is_what_the_message_says() -> None:
    """In use, less allocated, less unallocated: those rows whose note holds the three."""
    for row in tables.read("runtime"):
        found = re.fullmatch(
            r"([\d.]+)(?: in use)? - ([\d.]+)(?: allocated)? - ([\d.]+) MiB(?: unallocated)?(;.*)?", row["note"]
        )
        if found is not None:
            used, allocated, rest = map(float, found.groups()[:3])
            assert used - allocated - rest / 1024 == pytest.approx(float(row["context_gib"]), abs=0.006)


# -- optimizers --------------------------------------------------------------------------------------------------------

BY_OPTIMIZER = {name: row for row in OPTIMIZERS for name in names_of(row, "optimizer", "also")}
SMALL, BLOCK = 4096, 256
ODD_SIZES = ModelSpec(
    name="odd sizes",
    model_type="llama",
    hidden_size=128,
    intermediate_size=251,
    num_hidden_layers=5,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=32,
    vocab_size=1001,
    max_position_embeddings=128,
)
"""Norms are small tensors and k_proj is just none; some matrices are a multiple of a block, some are not."""


def bytes_by_table(row: tables.Row, module: str, shape: tuple[int, ...], dtype: str) -> float:
    """State of one parameter by the row's number, its formula, and its rules for small tensors and embeddings."""
    n, name = math.prod(shape), row["optimizer"]
    if row["bytes_by_shape"]:
        assert row["bytes_by_shape"] == "4*(1/rows + 1/cols)"
        return 4 * n * (sum(1 / d for d in shape) if len(shape) == 2 else 1)
    moments = round(float(row[f"bytes_per_{dtype}_param"]))
    if "bnb_8bit" in name or name == "lion_8bit":
        if n < SMALL or "embed_tokens" in module:
            return 4 * moments * n
        return n * moments + 4 * moments * math.ceil(n / BLOCK)
    if name.startswith("adamw_torch_") and (n < SMALL or n % BLOCK):
        return 2 * ITEMSIZE[dtype] * n
    return n * float(row[f"bytes_per_{dtype}_param"])


def counted_bytes(estimate: vramcalc.Estimate) -> dict[str, int]:
    """State by parameter, without step counts and code books, which do not grow with it."""
    found: Counter[str] = Counter()
    for row in estimate.rows:
        if row.group == "optimizer" and row.what != "step" and "code book" not in row.what:
            found[row.module] += math.prod(row.shape) * ITEMSIZE[row.dtype] * row.count
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("optim", get_args(OptimizerName))
def test_states_that_are_counted_agree_with_the_table(optim: str, dtype: str) -> None:
    estimate = vramcalc.estimate(ODD_SIZES, "full", optim=optim, dtype=dtype, autocast=None, seq_len=16)
    row, counted = BY_OPTIMIZER[optim], counted_bytes(estimate)
    weights = [r for r in estimate.rows if r.group == "parameters" and r.what == "weight"]
    expected = {w.module: w.count * bytes_by_table(row, w.module, w.shape, w.dtype) for w in weights}
    if optim.startswith("paged"):
        assert estimate.paged_bytes > 0
        assert sum(counted.values()) + estimate.paged_bytes == pytest.approx(sum(expected.values()))
    else:
        assert {module: counted.get(module, 0) for module in expected} == pytest.approx(expected)


@pytest.mark.parametrize("row", OPTIMIZERS, ids=lambda row: row["optimizer"])
def test_an_optimizer_has_a_number_per_dtype_or_a_formula(row: tables.Row) -> None:
    numbers = [row["bytes_per_float32_param"], row["bytes_per_bfloat16_param"]]
    assert all(numbers) != bool(row["bytes_by_shape"])
    assert [n for n in numbers if n and not 0 <= float(n) <= 12] == []


def test_the_table_knows_every_optimizer_that_is_modelled_and_that_trainer_takes() -> None:
    from transformers.training_args import OptimizerNames

    own = {"adamw_torch_loop", "adamw_bnb_32bit", "sgd_momentum", "paged_adamw", "lion"}
    assert set(get_args(OptimizerName)) <= BY_OPTIMIZER.keys()
    assert BY_OPTIMIZER.keys() == {name.value for name in OptimizerNames} | own


@pytest.mark.parametrize("name", sorted(BY_OPTIMIZER.keys() - set(get_args(OptimizerName))))
def test_an_optimizer_of_the_table_that_is_not_modelled_is_refused_or_an_alias(name: str) -> None:
    try:
        alias = TrainingSpec(optim=name).optim  # type: ignore[arg-type]
    except (InvalidValue, Unsupported, UnknownName) as err:
        message = str(err)
        assert name in message
        assert [known for known in get_args(OptimizerName) if f"'{known}'" not in message] == []
    else:
        assert BY_OPTIMIZER[alias] is BY_OPTIMIZER[name]


REAL: dict[str, tuple[str, dict[str, Any]]] = {
    "adamw_torch": ("torch.optim.AdamW", {}),
    "sgd": ("torch.optim.SGD", {}),
    "sgd_momentum": ("torch.optim.SGD", {"momentum": 0.9}),
    "adagrad": ("torch.optim.Adagrad", {}),
    "rmsprop": ("torch.optim.RMSprop", {}),
    "adafactor": (
        "transformers.optimization.Adafactor",
        {"lr": 1e-3, "scale_parameter": False, "relative_step": False},
    ),
    "adamw_bnb_8bit": ("bitsandbytes.optim.AdamW8bit", {}),
    "paged_adamw_32bit": ("bitsandbytes.optim.AdamW32bit", {}),
    "lion_32bit": ("bitsandbytes.optim.Lion32bit", {}),
    "lion_8bit": ("bitsandbytes.optim.Lion8bit", {}),
    "rmsprop_bnb": ("bitsandbytes.optim.RMSprop32bit", {}),
    "rmsprop_bnb_8bit": ("bitsandbytes.optim.RMSprop8bit", {}),
    "ademamix_8bit": ("bitsandbytes.optim.AdEMAMix8bit", {}),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", REAL)
def test_the_table_agrees_with_a_step_of_the_real_optimizer(name: str, dtype: str) -> None:
    path, arguments = REAL[name]
    module, _, cls = path.rpartition(".")
    state = state_after_step(partial(getattr(import_module(module), cls), **arguments), dtype)
    counted = sum(t.nbytes for what, t in state.items() if t.ndim and not what.startswith("qmap"))
    row = BY_OPTIMIZER[name]
    assert counted == (bytes_by_table(row, "", SHAPE, dtype) if row["bytes_by_shape"] else per_param(row, dtype))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["adamw_torch_8bit", "adamw_torch_4bit"])
def test_the_table_agrees_with_a_step_of_torchao(name: str, dtype: str) -> None:
    import torch

    torchao = pytest.importorskip("torchao.optim")
    make = {"adamw_torch_8bit": torchao.AdamW8bit, "adamw_torch_4bit": torchao.AdamW4bit}[name]
    with torch.compiler.set_stance("force_eager"):
        state = state_after_step(partial(make, block_size=BLOCK), dtype)
    moments = [state["exp_avg"], state["exp_avg_sq"]]
    assert sum(m.codes.nbytes + m.scale.nbytes for m in moments) == per_param(BY_OPTIMIZER[name], dtype)


SHAPE = (64, 128)


def per_param(row: tables.Row, dtype: str) -> float:
    return float(row[f"bytes_per_{dtype}_param"]) * math.prod(SHAPE)


def state_after_step(make: Callable[[Any], Any], dtype: str) -> dict[str, Any]:
    import torch

    parameter = torch.nn.Parameter(torch.ones(SHAPE, dtype=getattr(torch, dtype)))
    parameter.grad = torch.ones_like(parameter)
    optimizer = make([parameter])
    optimizer.step()
    return {what: t for what, t in optimizer.state[parameter].items() if torch.is_tensor(t)}


def test_a_row_measured_says_so_and_one_not_measured_does_too() -> None:
    for row in OPTIMIZERS:
        assert bool(re.match("state after one step", row["source"])) != ("not measured" in row["note"]), row[
            "optimizer"
        ]
