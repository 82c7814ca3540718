"""The command line: every setting has an option, JSON keeps its field names, the exit status is an answer."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import Ran, process, run
from configs import CONFIGS, write_config

import vramcalc
from vramcalc import estimate
from vramcalc.cli.terminal import painted
from vramcalc.inputs import catalog
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.inputs.stack import LoRA, Stack, TrainingSpec
from vramcalc.planning.fit import METHODS
from vramcalc.units import GIB

COMMANDS = ("fit", "estimate", "max")
SMALL = ("llama-3.2-1b", "--seq-len", "64")
"""A job that takes 3 to 14 GiB, by method."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_config(tmp_path_factory.mktemp("tiny") / "config.json", CONFIGS["llama"])


def is_one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


# -- options -----------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, tuple[str, Any]] = {
    "micro_batch_size": ("--micro-batch-size 3", 3),
    "seq_len": ("--seq-len 77", 77),
    "gradient_accumulation_steps": ("--gradient-accumulation-steps 4", 4),
    "gradient_checkpointing": ("--gradient-checkpointing non-reentrant", "non_reentrant"),
    "optim": ("--optimizer adamw_bnb_8bit", "adamw_bnb_8bit"),
    "max_grad_norm": ("--max-grad-norm 0", 0.0),
    "padded": ("--padded", True),
    "seq_lens": ("--seq-lens 77,12,50", [77, 12, 50]),
    "rank": ("--rank 5", 5),
    "init_r": ("--init-r 20", 20),
    "target_r": ("--target-r 5", 5),
    "tinit": ("--tinit 200", 200),
    "tfinal": ("--tfinal 500", 500),
    "deltaT": ("--deltaT 10", 10),
    "beta1": ("--beta1 0.5", 0.5),
    "beta2": ("--beta2 0.5", 0.5),
    "orth_reg_weight": ("--orth-reg-weight 0.1", 0.1),
    "total_step": ("--total-step 5000", 5000),
    "update_and_allocate": ("--no-update-and-allocate", False),
    "lora_alpha": ("--lora-alpha 7.5", 7.5),
    "lora_dropout": ("--lora-dropout 0.1", 0.1),
    "target_modules": ("--target-modules q_proj,v_proj", ["q_proj", "v_proj"]),
    "modules_to_save": ("--modules-to-save lm_head", ["lm_head"]),
    "bnb_4bit_quant_type": ("--bnb-4bit-quant-type fp4", "fp4"),
    "bnb_4bit_use_double_quant": ("--no-bnb-4bit-use-double-quant", False),
    "bnb_4bit_compute_dtype": ("--bnb-4bit-compute-dtype fp32", "float32"),
    "cuda": ("--cuda 12.6", "12.6"),
    "dtype": ("--dtype float32", "float32"),
    "autocast": ("--autocast none", None),
    "adapter_dtype": ("--adapter-dtype weights", "weights"),
    "prepare_model_for_kbit_training": ("--no-prepare-model-for-kbit-training", False),
    "casts_embeddings_to_bf16": ("--casts-embeddings-to-bf16", True),
    "attn_implementation": ("--attn-implementation eager", "eager"),
    "sdpa_kernel": ("--sdpa-kernel math", "math"),
    "repeats_kv": ("--repeats-kv", True),
    "loss": ("--loss chunked", "chunked"),
    "fused_kernels": ("--fused-kernels fms_acceleration", "fms_acceleration"),
    "use_cache": ("--use-cache", True),
    "keeps_outputs": ("--keeps-outputs step", "step"),
    "outputs_to_float32": ("--no-outputs-to-float32", False),
    "zero_grad": ("--zero-grad start", "start"),
    "zero_grad_set_to_none": ("--no-zero-grad-set-to-none", False),
    "passes_attention_mask": ("--no-passes-attention-mask", False),
    "bnb_embeddings_32bit": ("--no-bnb-embeddings-32bit", False),
    "decay_groups": ("--no-decay-groups", False),
    "expandable_segments": ("--expandable-segments", True),
    "alloc_conf": ("--alloc-conf max_split_size_mb:64", "max_split_size_mb:64"),
    "empty_cache_steps": ("--empty-cache-steps 2", 2),
}
"""Every field but the versions, an option that sets it to something unusual, and what that is in Python."""

PROMPTS: dict[str, tuple[str, Any]] = {
    "num_virtual_tokens": ("--num-virtual-tokens 7", 7),
    "prefix_projection": ("--prefix-projection", True),
    "encoder_hidden_size": ("--encoder-hidden-size 48", 48),
    "encoder_reparameterization_type": ("--encoder-reparameterization-type MLP", "MLP"),
}
"""The same of methods with virtual tokens."""

NEEDED = {
    "fused_kernels": (
        "--dtype bf16 --autocast bf16 --no-prepare-model-for-kbit-training --target-modules q_proj",
        {
            "dtype": "bfloat16",
            "autocast": "bfloat16",
            "prepare_model_for_kbit_training": False,
            "target_modules": ["q_proj"],
        },
    ),
}
"""Options that another one does not go without, and what they are in Python."""

VERSIONS = ("torch", "transformers", "peft", "bitsandbytes")
SPECS = (TrainingSpec, *METHOD_CLASSES.values(), Stack)


def fields() -> set[str]:
    return {name for spec in SPECS for name in spec.model_fields} - {"kind", "name", "quantization"}


def method_with(field: str) -> str:
    """QLoRA, or the first method that has a setting which QLoRA does not have."""
    return next((m for m in ("qlora", *METHOD_CLASSES) if field in METHOD_CLASSES[m].model_fields), "qlora")


def test_every_field_of_the_method_the_training_and_the_recipe_is_tested() -> None:
    assert {*OPTIONS, *PROMPTS, *VERSIONS} == fields()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_has_an_option(command: str) -> None:
    shown = run(command, "--help").out
    missing = [name for name in fields() if f"--{name.replace('_', '-')}" not in shown]
    assert missing == []


@pytest.mark.parametrize("field", OPTIONS)
def test_an_option_does_what_the_setting_does_in_python(tiny: Path, field: str) -> None:
    option, value = OPTIONS[field]
    (more, settings), method = NEEDED.get(field, ("", {})), method_with(field)
    found = run("estimate", tiny, "--method", method, "--json", *option.split(), *more.split()).json
    expected = estimate(str(tiny), method, **{**settings, field: value}).to_dict()
    assert found == json.loads(json.dumps({**expected, "verdict": None}))
    usual = estimate(str(tiny), method, **settings).to_dict()
    part = next(p for p in ("training", "method", "stack") if field in expected[p])
    assert found[part][field] != usual[part][field]


@pytest.mark.parametrize("field", VERSIONS)
def test_only_releases_that_were_checked_are_modelled(tiny: Path, field: str) -> None:
    checked = Stack.model_fields[field].default
    assert run("estimate", tiny, "--json", f"--{field}", f"{checked}.1").json["stack"][field] == checked
    answer = run("estimate", tiny, f"--{field}", "1.0")
    assert (answer.status, answer.out) == (2, "")
    assert re.search(rf"{field} = '1\.0': expected .*{re.escape(checked)}.*: the memory of no other", answer.err)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("--optim sgd", "--optimizer sgd"),
        ("--target-modules .*q_proj", "--target-modules q_proj"),
        ("--dtype bf16", "--dtype bfloat16"),
        ("--no-padded", ""),
        ("--stack peft-loop --empty-cache-steps 10", "--stack peft-loop"),
    ],
)
def test_two_spellings_of_one_setting(tiny: Path, one: str, other: str) -> None:
    answers = [run("estimate", tiny, "--json", *options.split()).json for options in (one, other)]
    for answer in answers:
        answer["method"].pop("target_modules")
    assert answers[0] == answers[1]


def test_none_takes_a_setting_of_the_recipe_away(tiny: Path) -> None:
    stack = run("estimate", tiny, "--json", "--stack", "peft-loop", "--empty-cache-steps", "none").json["stack"]
    assert stack["empty_cache_steps"] is None


@pytest.mark.parametrize("method", METHODS)
def test_options_of_a_method_need_that_method(tiny: Path, method: str) -> None:
    own = set(METHOD_CLASSES[method].model_fields)
    # How the base model is stored goes with every method that leaves it frozen.
    for field in {name for spec in METHOD_CLASSES.values() for name in spec.model_fields} - {"kind", "quantization"}:
        beside = "--prefix-projection " if (method, field) == ("prefix_tuning", "encoder_hidden_size") else ""
        option = beside + {**OPTIONS, **PROMPTS}[field][0]
        answer = run("estimate", tiny, "--method", method, *option.split())
        assert answer.status == (0 if field in own else 2), field


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_options_of_virtual_tokens_do_what_the_settings_do_in_python(tiny: Path, method: str) -> None:
    own = {field: given for field, given in PROMPTS.items() if field in METHOD_CLASSES[method].model_fields}
    options = " ".join(option for option, _ in own.values())
    found = run("estimate", tiny, "--method", method, "--json", *options.split()).json["method"]
    assert {field: found[field] for field in own} == {field: value for field, (_, value) in own.items()}
    expected = estimate(str(tiny), method, **{field: value for field, (_, value) in own.items()}).to_dict()
    assert found == json.loads(json.dumps(expected["method"]))


def test_fit_gives_each_method_the_options_it_has(tiny: Path) -> None:
    answer = run("fit", tiny, "--gpu", "t4", "--rank", "4", "--json")
    assert [v["method"] for v in answer.json] == ["full", "lora", "qlora"]
    usual = run("fit", tiny, "--gpu", "t4", "--json").json
    assert [a["allocated_bytes"] < b["allocated_bytes"] for a, b in zip(answer.json, usual, strict=True)] == [
        False,
        True,
        True,
    ]


def test_fit_refuses_an_option_that_no_method_has(tiny: Path) -> None:
    answer = run("fit", tiny, "--gpu", "t4", "--method", "full", "--rank", "4")
    assert (answer.status, answer.out) == (2, "")
    assert "'rank'" in answer.err


# -- JSON --------------------------------------------------------------------------------------------------------------

GPU = {
    "gpu_id",
    "name",
    "architecture",
    "compute_capability",
    "total_bytes",
    "total_basis",
    "free_bytes",
    "uuid",
}
VERDICT = {
    "status",
    "gpu",
    "gpu_uuid",
    "usable_bytes",
    "needed_bytes",
    "needed_low_bytes",
    "needed_high_bytes",
    "probability",
    "probability_as_is",
    "probability_giving_back",
    "probability_out_of_memory",
    "headroom_bytes",
    "reason",
}
SUMMARY = {
    "model",
    "method",
    "micro_batch_size",
    "seq_len",
    "stack",
    "allocated_bytes",
    "reserved_bytes",
    "process_bytes",
    "warnings",
}
INSTANT = {"name", "n_bytes"}
JSON: dict[str, set[str]] = {
    "estimate": {
        "model",
        "method",
        "training",
        "stack",
        "gpu",
        "compute_capability",
        "total_params",
        "trainable_params",
        "allocated_bytes",
        "block_bytes",
        "reserved_bytes",
        "reserved_expandable_bytes",
        "context_bytes",
        "context_basis",
        "process_bytes",
        *(f"{n}_{end}_bytes" for n in ("allocated", "block", "reserved", "process") for end in ("low", "high")),
        "level",
        "unchecked",
        "calibration",
        "paged_bytes",
        "peak",
        "runner_up",
        "instants",
        "groups",
        "rows",
        "warnings",
        "verdict",
    },
    "estimate.gpu": GPU,
    "estimate.peak": INSTANT,
    "estimate.runner_up": INSTANT,
    "estimate.instants": INSTANT,
    "estimate.rows": {
        "group",
        "module",
        "what",
        "shape",
        "dtype",
        "count",
        "n_bytes",
        "layers",
        "why",
        "basis",
    },
    "estimate.verdict": {*VERDICT, "remedies"},
    "estimate.verdict.remedies": {"change", "settings", "saves_bytes", "status", "needed_bytes"},
    "fit": {*SUMMARY, *VERDICT},
    "max": {*SUMMARY, *VERDICT, "setting", "value", "comfortable", "limited_by", "guarantee"},
    "models": {
        "alias",
        "hf_id",
        "also",
        "params_total",
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "max_position_embeddings",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "sliding_window",
        "num_local_experts",
        "num_experts_per_tok",
    },
    "gpus": {"detected", "known"},
    "gpus.detected": {"driver_version", "problem", "notes", "devices", "hidden"},
    "gpus.known": {
        "gpu_id",
        "name",
        "architecture",
        "compute_capability",
        "nvml_total_bytes",
        "torch_total_bytes",
        "usable_bytes",
    },
}
"""The fields of every answer: a contract with the programs that read them. Those of the specs are the specs' own."""

GROUPS = {"parameters", "gradients", "optimizer", "activations", "temporaries", "workspace", "context"}


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    commands: dict[str, tuple[str, ...]] = {
        "estimate": (*SMALL, "--gpu", "t4", "--gpu-memory", "2GiB"),
        "fit": (*SMALL, "--gpu", "t4"),
        "max": (*SMALL[:1], "--gpu", "rtx-4090", "--limit", "2"),
        "models": (),
        "gpus": (),
    }
    return {name: run(name, *arguments, "--json").json for name, arguments in commands.items()}


SOFT_CAPS = {"attn_logit_softcapping", "final_logit_softcapping"}
"""Fields of the one family that has them."""


@pytest.mark.parametrize("place", JSON)
def test_json_has_the_documented_fields_and_no_others(answers: dict[str, Any], place: str) -> None:
    command, *path = place.split(".")
    found = answers[command]
    for part in path:
        found = found[part]
    for each in found if isinstance(found, list) else [found]:
        assert set(each) == JSON[place] | (SOFT_CAPS if each.get("model_type") == "gemma2" else set())
    assert found


def test_json_of_an_estimate_holds_its_inputs_in_full(answers: dict[str, Any]) -> None:
    found = answers["estimate"]
    assert set(found["training"]) == set(TrainingSpec.model_fields)
    assert set(found["stack"]) == set(Stack.model_fields)
    assert set(found["method"]) == set(LoRA.model_fields)
    assert set(found["groups"]) <= GROUPS
    assert {row["group"] for row in found["rows"]} <= GROUPS


def numbers(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Every number with the name of its field."""
    if isinstance(value, dict):
        return [n for key, v in value.items() for n in numbers(v, key)]
    if isinstance(value, list):
        return [n for v in value for n in numbers(v, name)]
    return [(name, value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


@pytest.mark.parametrize("command", ["estimate", "fit", "max", "models", "gpus"])
def test_bytes_and_counts_in_json_are_whole_numbers(answers: dict[str, Any], command: str) -> None:
    found = numbers(answers[command])
    reals = {"lora_alpha", "lora_dropout", "max_grad_norm", "level", "probability"}
    reals |= SOFT_CAPS
    reals |= {f"probability_{part}" for part in ("as_is", "giving_back", "out_of_memory")}
    assert {name for name, n in found if not isinstance(n, int)} <= reals
    assert found


def test_json_of_fit_agrees_with_that_of_estimate(tiny: Path) -> None:
    (fitted,) = run("fit", tiny, "--gpu", "l4", "--method", "lora", "--json").json
    estimated = run("estimate", tiny, "--gpu", "l4", "--json").json
    for name in ("allocated_bytes", "reserved_bytes", "process_bytes", "model", "warnings"):
        assert fitted[name] == estimated[name]
    assert {**{name: fitted[name] for name in VERDICT}, "remedies": []} == estimated["verdict"]


def test_without_a_gpu_there_is_no_verdict(tiny: Path) -> None:
    answer = run("estimate", tiny, "--json")
    assert (answer.status, answer.json["verdict"], answer.json["gpu"]) == (0, None, None)


# -- exit status -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (("estimate", *SMALL), 0),
        (("estimate", *SMALL, "--gpu", "rtx-4090"), 0),
        (("estimate", *SMALL, "--gpu", "t4", "--gpu-memory", "2GiB"), 1),
        (("fit", *SMALL, "--gpu", "rtx-4090"), 0),
        (("fit", *SMALL, "--gpu", "t4", "--gpu-memory", "2GiB"), 1),
        (("fit", *SMALL, "--gpu", "t4", "--method", "full", "--gpu-memory", "8GiB"), 1),
        (("fit", *SMALL, "--gpu", "t4", "--gpu-memory", "8GiB"), 0),
        (("max", SMALL[0], "--gpu", "rtx-4090", "--limit", "2"), 0),
        (("max", SMALL[0], "--gpu", "t4", "--gpu-memory", "2GiB"), 1),
        (("max", SMALL[0], "--of", "seq-len", "--gpu", "t4", "--gpu-memory", "2GiB"), 1),
        (("models",), 0),
        (("gpus", "--known"), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_the_exit_status_says_whether_something_fits(arguments: tuple[str, ...], status: int) -> None:
    answer = run(*arguments)
    assert answer.status == status
    assert answer.out == "" if arguments[0] == "max" and status else answer.out
    assert run(*arguments, "--json").status == status


def test_where_nothing_fits_the_largest_is_an_answer_on_stderr() -> None:
    answer = run("max", SMALL[0], "--gpu", "t4", "--gpu-memory", "2GiB")
    assert is_one_line(answer.err)
    assert "even micro_batch_size 1 does not fit t4" in answer.err
    assert "2.00 GiB usable" in answer.err
    assert "vramcalc estimate" in answer.err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("frob", "'frob'. See 'vramcalc --help'."),
        ("estimate", "Missing argument 'model'. See 'vramcalc estimate --help'."),
        ("estimate {} extra", "(extra). See 'vramcalc estimate --help'."),
        ("estimate {} --seq-leng 3", "No such option: --seq-leng"),
        ("estimate {} --seq-len", "'--seq-len' requires an argument"),
        ("estimate {} --padded=yes", "'--padded' does not take a value"),
        ("estimate {} --seq-len 0", "seq_len = 0: expected at least 1"),
        ("estimate {} --seq-len 1.5", "--seq-len = '1.5': expected a whole number"),
        ("estimate {} --seq-len much", "--seq-len = 'much': expected a whole number"),
        ("estimate {} --max-grad-norm much", "--max-grad-norm = 'much': expected a number"),
        ("estimate {} --max-grad-norm nan", "max_grad_norm = nan: expected a finite number"),
        ("estimate {} --lora-dropout inf", "lora_dropout = inf: expected a finite number"),
        ("estimate {} --optimizer adam", "optim = 'adam': expected one of 'adamw_torch_fused'"),
        ("estimate {} --method lore", "--method = 'lore': expected one of full, lora, qlora"),
        ("fit {} --gpu t4 --method lore", "--method = 'lore': expected one of full, lora, qlora"),
        ("max {} --gpu t4 --method lore", "--method = 'lore': expected one of full, lora, qlora"),
        ("estimate {} --stack trl", "no stack named 'trl'; did you mean 'trl-sft'"),
        ("estimate {} --gpu rtx-4900", "no GPU named 'rtx-4900'; did you mean 'rtx-4090'"),
        ("estimate {} --gpu mi300x", "mi300x is AMD's"),
        ("estimate {} --gpu mi300x --gpu-memory 20GiB", "mi300x is AMD's"),
        ("estimate {} --gpu a100", "'a100' may mean a100-pcie-40 (40 GB), a100-sxm-40 (40 GB), "),
        ("estimate {} --gpu 8xL40", "'8xL40' is 8 GPUs; jobs on one GPU are modelled so far: name l40"),
        ("estimate {} --gpu t4 --gpu-memory 24", "--gpu-memory = '24': expected a unit behind so small a number"),
        ("estimate {} --gpu t4 --gpu-memory much", "--gpu-memory = 'much': expected a number of bytes"),
        ("estimate {} --gpu t4 --gpu-memory -1", "--gpu-memory = '-1': expected a number of bytes"),
        ("estimate {} --gpu-memory 20GiB", "--gpu-memory = '20GiB': expected a --gpu to go with it; name one"),
        ("fit {} --gpu-memory 20GiB", "--gpu-memory = '20GiB': expected a --gpu to go with it; name one"),
        ("max {} --gpu t4 --of rank", "--of = 'rank': expected micro-batch-size or seq-len"),
        ("max {} --gpu t4 --limit 0", "limit = 0: expected a whole number, at least 1"),
        ("max {} --gpu t4 --limit many", "--limit = 'many': expected a whole number"),
        ("max {} --gpu t4 --micro-batch-size 2", "expected no value, as it is what is searched for; use limit="),
        ("estimate no-such-model", "no model named 'no-such-model'"),
        ("fit no-such-model", "no model named 'no-such-model'"),
        ("models --gpu", "No such option: --gpu"),
    ],
)
def test_bad_input_is_status_2_and_one_line_on_stderr(tiny: Path, line: str, says: str) -> None:
    answer = run(*line.format(tiny).split())
    assert (answer.status, answer.out) == (2, "")
    assert is_one_line(answer.err)
    assert answer.err.startswith("vramcalc: ")
    assert says in answer.err


# -- what is printed ---------------------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version") == Ran(0, f"vramcalc {vramcalc.__version__}\n", "")


def test_without_a_command_the_help_is_printed() -> None:
    answer = run()
    assert answer == run("--help") == run("-h")
    assert answer.status == 0
    for command in (*COMMANDS, "gpus", "models"):
        assert f"\n  {command} " in answer.out


def test_fit_takes_gpus_and_methods_in_the_order_given(tiny: Path) -> None:
    arguments = ("--gpu", "t4", "--gpu", "l4", "--method", "qlora", "--method", "full")
    found = run("fit", tiny, *arguments, "--json").json
    assert [(v["method"], v["gpu"]) for v in found] == [
        ("qlora", "t4"),
        ("qlora", "l4"),
        ("full", "t4"),
        ("full", "l4"),
    ]


def test_given_memory_takes_the_place_of_the_tables(tiny: Path) -> None:
    found = run("estimate", tiny, "--gpu", "rtx-3070", "--gpu-memory", "7.5GiB", "--json").json
    assert found["verdict"]["usable_bytes"] == found["gpu"]["total_bytes"] == 15 * GIB // 2
    assert found["gpu"]["total_basis"] == "given"


@pytest.mark.parametrize("gpu", catalog.gpu_names())
def test_every_gpu_that_is_listed_can_be_named(tiny: Path, gpu: str) -> None:
    listed = {g["gpu_id"]: g["usable_bytes"] for g in run("gpus", "--known", "--json").json["known"]}
    answer = run("estimate", tiny, "--gpu", gpu, "--json")
    if listed.get(gpu):
        assert answer.json["verdict"]["usable_bytes"] == listed[gpu]
    elif gpu in listed:
        assert "--gpu-memory" in answer.err
    else:
        assert "only NVIDIA's" in answer.err


def test_every_model_that_is_listed_can_be_named_by_all_its_names() -> None:
    for model in run("models", "--json").json:
        specs = [catalog.model(name) for name in (model["alias"], model["hf_id"], *model["also"])]
        assert {spec.params_total for spec in specs} == {model["params_total"]}


def test_every_listed_model_has_a_line() -> None:
    lines = run("models").out.splitlines()
    for model in run("models", "--json").json:
        (line,) = [line for line in lines if line.split()[:2] == [model["alias"], model["hf_id"]]]
        assert line.split()[2:] == [model["model_type"], f"{model['params_total']:,}"]


def test_every_listed_gpu_has_a_line() -> None:
    lines = run("gpus", "--known").out.splitlines()
    for gpu in run("gpus", "--known", "--json").json["known"]:
        (line,) = [line for line in lines if line.split()[:1] == [gpu["gpu_id"]]]
        assert line.endswith(f"{gpu['usable_bytes'] / GIB:.2f} GiB" if gpu["usable_bytes"] else "unknown")


# -- as a process ------------------------------------------------------------------------------------------------------


def on_a_terminal(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status and what a terminal is sent."""
    ours, theirs = pty.openpty()
    inherited = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    with subprocess.Popen(
        [sys.executable, "-m", "vramcalc", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**inherited, "TERM": "xterm-256color", **environment},
    ) as child:
        os.close(theirs)
        sent = b""
        # A terminal whose last writer has gone answers with an error where a file ends.
        try:
            while chunk := os.read(ours, 4096):
                sent += chunk
        except OSError:
            pass
    os.close(ours)
    return child.returncode, sent.decode().replace("\r\n", "\n")


TOO_LARGE = ("estimate", *SMALL, "--gpu", "t4", "--gpu-memory", "2GiB")


def test_colours_are_for_terminals() -> None:
    piped = process(*TOO_LARGE)
    status, coloured = on_a_terminal(*TOO_LARGE)
    assert piped.status == status == 1
    assert "\x1b" not in piped.out
    assert coloured.count("\x1b[31m\x1b[1mdoes not fit\x1b[0m") == piped.out.count("does not fit") > 1
    assert re.sub(r"\x1b\[\d+m", "", coloured) == piped.out
    assert on_a_terminal(*TOO_LARGE, NO_COLOR="1") == (status, piped.out)


@pytest.mark.parametrize(("status", "colour"), [("fits", 32), ("tight", 33), ("does not fit", 31)])
def test_each_verdict_has_its_colour(status: str, colour: int) -> None:
    coloured = f"\x1b[{colour}m\x1b[1m{status}\x1b[0m"
    for text in (f"  lora  t4  2.00 GiB  {status}", f"t4: {status}, 62 %. 2.00 GiB needed: 1.00 GiB to spare."):
        assert painted(text) == text.replace(status, coloured)
    assert painted(f"seq_len 4 {status} here, {status}") == f"seq_len 4 {status} here, {status}"


def test_a_reader_that_goes_away_does_not_change_the_exit_status() -> None:
    for arguments, status in ((("models",), 0), (TOO_LARGE, 1)):
        reading, writing = os.pipe()
        os.close(reading)
        answer = process(*arguments, stdout=writing)
        os.close(writing)
        assert (answer.status, answer.err) == (status, "")


def test_python_has_nothing_to_warn_about() -> None:
    answer = process(*SMALL, "--gpu", "l4", python=("-W", "error", "-X", "dev", "-m", "vramcalc", "estimate"))
    assert (answer.status, answer.err) == (0, "")


BARE = """
import socket, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ImportError(f"{{name}} is not here")

def no_network(*args, **kwargs):
    raise OSError("no network")

sys.meta_path.insert(0, Blocked())
socket.socket.connect = socket.getaddrinfo = no_network
from vramcalc.__main__ import (main)
try:
    main()
finally:
    print(*sorted({{name.split(".")[0] for name in sys.modules}}), file=sys.stderr)
"""
OPTIONAL = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "huggingface_hub", "matplotlib", "rich"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("estimate", *SMALL, "--json"),
        ("estimate", *SMALL, "--gpu", "t4", "--gpu-memory", "4GiB"),
        ("fit", *SMALL, "--gpu", "t4"),
        ("fit", *SMALL),
        ("max", SMALL[0], "--gpu", "rtx-4090", "--limit", "2"),
        ("models",),
        ("gpus",),
    ],
    ids=" ".join,
)
def test_no_network_and_no_optional_library_is_needed(arguments: tuple[str, ...]) -> None:
    bare = process(*arguments, python=("-c", BARE.format(blocked=OPTIONAL)))
    usual = run(*arguments)
    assert (bare.status, bare.out) == (usual.status, usual.out)


def test_an_estimate_imports_nothing_it_does_not_need() -> None:
    answer = process("estimate", *SMALL, python=("-c", BARE.format(blocked=OPTIONAL)))
    loaded = set(answer.err.split())
    assert {"vramcalc", "typer", "pydantic"} <= loaded
    assert loaded.isdisjoint({"numpy", "pynvml", "yaml", *OPTIONAL})
