"""Bad input is a typed error that says what was given, what was expected and what to do; never a number or a traceback.

What works but surprises is a warning that travels with the result.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from configs import CONFIGS, write_config

import vramcalc
from vramcalc.cli import main as cli
from vramcalc.errors import (
    BadConfig,
    DataError,
    DetectionError,
    DoesNotFit,
    HubError,
    InvalidValue,
    UnknownName,
    Unsupported,
    VramcalcError,
)
from vramcalc.inputs.stack import FullFineTuning, Gpu, LoRA, ModelSpec, QLoRA, Spec, Stack, TrainingSpec

MODEL = "qwen2.5-0.5b"
NAN, INF = float("nan"), float("inf")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """The command in this process: exit status, stdout, stderr."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))

    def command(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vramcalc", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return command


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """Broken configurations, by name."""
    llama = CONFIGS["llama"]
    write_config(tmp_path / "no-hidden-size.json", {k: v for k, v in llama.items() if k != "hidden_size"})
    write_config(tmp_path / "negative.json", {**llama, "hidden_size": -4096})
    write_config(tmp_path / "text.json", {**llama, "hidden_size": "4096"})
    write_config(tmp_path / "heads.json", {**llama, "num_attention_heads": 33})
    return tmp_path


# -- inputs that other estimators answer with a number or a traceback --------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """An input: as keywords, as options, the error, and what its message says."""

    settings: dict[str, Any]
    options: str
    error: type[VramcalcError]
    says: str
    option_says: str = ""


def size(name: str, value: Any, option: str, expected: str) -> Bad:
    says = f"{name} = {value!r}: expected {expected}"
    spelled = f"--{name.replace('_', '-')}"
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return Bad(
        {name: value},
        f"{spelled}={option}",
        InvalidValue,
        says,
        says if is_whole else f"{spelled} = {option!r}: expected",
    )


SIZES = [
    size("micro_batch_size", -1, "-1", "at least 1"),
    size("micro_batch_size", 0, "0", "at least 1"),
    size("micro_batch_size", 1.5, "1.5", "a whole number"),
    size("micro_batch_size", True, "True", "a whole number"),
    size("micro_batch_size", "2", "two", "a whole number"),
    size("micro_batch_size", 10**12, "1000000000000", "at most 1,048,576"),
    size("seq_len", 0, "0", "at least 1"),
    size("seq_len", -5, "-5", "at least 1"),
    size("seq_len", NAN, "nan", "a whole number"),
    size("seq_len", INF, "inf", "a whole number"),
    size("seq_len", 10**9, "1000000000", "at most 16,777,216"),
    size("rank", 0, "0", "at least 1"),
    size("rank", -8, "-8", "at least 1"),
    size("rank", NAN, "nan", "a whole number"),
    size("rank", 10**7, "10000000", "at most 1,048,576"),
]
NAMES = [
    Bad(
        {"optim": "foo"},
        "--optimizer=foo",
        InvalidValue,
        "optim = 'foo': expected one of 'adamw_torch_fused', 'adamw_torch'",
    ),
    Bad(
        {"dtype": "bf17"},
        "--dtype=bf17",
        InvalidValue,
        "dtype = 'bf17': expected one of 'float32', 'bfloat16' or 'float16'",
    ),
]


@pytest.mark.parametrize("bad", [*SIZES, *NAMES], ids=lambda bad: bad.options)
def test_a_bad_setting_is_refused_with_its_value_and_what_is_expected(bad: Bad) -> None:
    with pytest.raises(bad.error) as caught:
        vramcalc.estimate(MODEL, "lora", **bad.settings)
    assert str(caught.value).startswith(bad.says)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("command", ["estimate", "fit", "max"])
@pytest.mark.parametrize("bad", [*SIZES, *NAMES], ids=lambda bad: bad.options)
def test_a_bad_option_is_status_2_and_one_line_on_stderr(run: Run, bad: Bad, command: str) -> None:
    of = "seq-len" if "micro-batch-size" in bad.options else "micro-batch-size"
    extra = {"estimate": ["--method=lora"], "fit": ["--gpu=t4"], "max": ["--gpu=t4", f"--of={of}"]}[command]
    status, out, err = run(command, MODEL, bad.options, *extra)
    assert (status, out) == (2, "")
    assert err.startswith(f"vramcalc: {bad.option_says or bad.says}")
    assert err.count("\n") == 1


NOT_PLAIN = ["1_000", "\N{FULLWIDTH DIGIT FOUR}", "\N{ARABIC-INDIC DIGIT FOUR}"]
"""Numbers to Python's ``int`` and ``float``, and to nobody else."""


@pytest.mark.parametrize("value", NOT_PLAIN)
@pytest.mark.parametrize(
    "option",
    ["--seq-len", "--seq-lens", "--rank", "--lora-dropout", "--max-grad-norm", "--transformers", "--gpu-memory"],
)
def test_a_number_is_written_with_the_digits_of_every_tool(run: Run, option: str, value: str) -> None:
    given = f"{option}=5.{value}" if option == "--transformers" else f"{option}={value}"
    status, out, err = run("estimate", MODEL, "--gpu=t4", given)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert value in err
    assert "expected" in err


@pytest.mark.parametrize("value", NOT_PLAIN)
def test_numbers_of_other_commands_are_written_so_too(run: Run, value: str) -> None:
    plan = ["plan", MODEL, "--gpu=l4", "--tokens-per-example=8"]
    for arguments in (
        [*plan, f"--examples={value}"],
        [*plan, "--examples=8", f"--price={value}"],
        [*plan, "--examples=8", f"--measured-step-s={value}"],
        ["max", MODEL, "--gpu=t4", f"--limit={value}"],
        ["campaign", "hopper", "--dry-run", f"--minutes={value}"],
    ):
        status, out, err = run(*arguments)
        assert (status, out, value in err) == (2, "", True)


def test_one_bad_option_among_good_ones_prints_no_json(run: Run) -> None:
    status, out, err = run("estimate", MODEL, "--json", "--rank=8", "--seq-len=0")
    assert (status, out, err.count("\n")) == (2, "", 1)


CONFIG_ERRORS = {
    "no-hidden-size": "the configuration lacks hidden_size: expected whole numbers",
    "negative": "hidden_size = -4096: expected a whole number of at least 1",
    "text": "hidden_size = '4096': expected a whole number of at least 1",
    "heads": "num_attention_heads = 33: expected a divisor of hidden_size (64)",
}


@pytest.mark.parametrize("name", CONFIG_ERRORS)
def test_a_bad_configuration_is_refused_with_its_value_expectation_and_remedy(
    run: Run, configs: Path, name: str
) -> None:
    path = str(configs / f"{name}.json")
    message = f"{path}: {CONFIG_ERRORS[name]}; correct the file or fetch it again"
    with pytest.raises(BadConfig) as caught:
        vramcalc.estimate(path)
    assert str(caught.value) == message
    assert run("estimate", path) == (2, "", f"vramcalc: {message}\n")


def test_an_unknown_repository_is_an_error_of_the_hub(run: Run) -> None:
    status, out, err = run("estimate", "no-such-org/no-such-model")
    assert (status, out) == (2, "")
    assert err.startswith("vramcalc: no-such-org/no-such-model is not in the table nor in the local cache, and ")
    assert err.endswith("or give a path to its config.json\n")


UNKNOWN = [
    (["estimate", "llama-3.1-8"], "no model named 'llama-3.1-8'; did you mean 'llama-3.1-8b'"),
    (["estimate", MODEL, "--stack=trl"], "no stack named 'trl'; did you mean 'trl-sft'?"),
    (["estimate", MODEL, "--method=vera"], "--method = 'vera': expected one of full, lora, qlora"),
    (["fit", MODEL, "--method=vera"], "--method = 'vera': expected one of full, lora, qlora"),
    (["max", MODEL, "--gpu=t4", "--of=rank"], "--of = 'rank': expected micro-batch-size or seq-len"),
    (["max", MODEL, "--gpu=t4", "--limit=0"], "limit = 0: expected a whole number, at least 1"),
    (["estimate", MODEL, "--seqlen=4"], "No such option: --seqlen (Possible options: --seq-len, --seq-lens)"),
    (["estimat", MODEL], "No such command 'estimat'. Did you mean 'estimate'?"),
    (["estimate"], "Missing argument"),
    (["estimate", MODEL, "again"], "Got unexpected extra argument"),
    (["estimate", MODEL, "--gpu=mi300x"], "mi300x is AMD's; only NVIDIA's CUDA allocator and kernels are modelled"),
    (["estimate", MODEL, "--gpu=h100"], "'h100' may mean h100-pcie (80 GB), h100-sxm (80 GB) or h100-nvl (94 GB)"),
    (["estimate", MODEL, "--gpu=h100-80gb:4"], "'h100-80gb:4' is 4 GPUs; jobs on one GPU are modelled so far"),
    (["estimate", MODEL, "--gpu-memory=20GiB"], "--gpu-memory = '20GiB': expected a --gpu to go with it"),
    (["estimate", MODEL, "--gpu=t4", "--gpu-memory=lots"], "--gpu-memory = 'lots': expected a number of bytes"),
    (["estimate", MODEL, "--gpu=t4", "--gpu-memory=-5GiB"], "--gpu-memory = '-5GiB': expected a number of bytes"),
    (["estimate", MODEL, "--gpu=t4", "--gpu-memory=" + "9" * 400], "--gpu-memory = '999"),
    (["estimate", MODEL, "--method=full", "--rank=8"], "no setting of full named 'rank'"),
    (["estimate", MODEL, "--target-modules=nope"], "target_modules = ['nope']: expected names or a pattern that match"),
    (["estimate", MODEL, "--target-modules=("], "target_modules = '('"),
    (["estimate", "gpt2"], "openai-community/gpt2 is a GPT2LMHeadModel (model_type 'gpt2'), which is not modelled"),
]


@pytest.mark.parametrize(("arguments", "says"), UNKNOWN, ids=lambda v: " ".join(v)[:60] if isinstance(v, list) else "")
def test_what_does_not_exist_is_status_2_and_one_line_on_stderr(run: Run, arguments: list[str], says: str) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"vramcalc: {says}")
    assert err.count("\n") == 1


def test_the_installed_command_ends_with_status_2_and_no_traceback() -> None:
    command = [sys.executable, "-m", "vramcalc", "estimate", MODEL, "--seq-len=0"]
    done = subprocess.run(command, capture_output=True, check=False, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("vramcalc: seq_len = 0: expected at least 1")
    assert done.stderr.count("\n") == 1


# -- types and ranges of every field -----------------------------------------------------------------------------------

SPECS: dict[str, Spec] = {
    "full": FullFineTuning(),
    "lora": LoRA(),
    "qlora": QLoRA(),
    "training": TrainingSpec(),
    "stack": Stack(),
    "model": ModelSpec(
        name="small",
        model_type="llama",
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=512,
        max_position_embeddings=128,
    ),
    "gpu": Gpu(
        gpu_id="small",
        name="small",
        architecture=None,
        compute_capability="8.0",
        total_bytes=1 << 30,
        total_basis="given",
    ),
}
FIELDS = [(spec, name) for spec in SPECS for name in type(SPECS[spec]).model_fields]


@pytest.mark.parametrize(("spec", "field"), FIELDS, ids=[f"{s}.{f}" for s, f in FIELDS])
def test_no_field_takes_what_is_none_of_its_kind(spec: str, field: str) -> None:
    """A number is neither a boolean nor a string, a switch is no number, and nothing is infinite or a bare object."""
    value = getattr(SPECS[spec], field)
    wrong: list[Any] = [NAN, INF, -INF, object(), {}, b"8", 1 + 2j]
    if not isinstance(value, bool):
        wrong += [True, False]
    if isinstance(value, (bool, int, float)):
        wrong += ["8", "true", "", [8]]
    if isinstance(value, (bool, str)):
        wrong += [0, 1, 8]
    for other in wrong:
        with pytest.raises(InvalidValue) as caught:
            SPECS[spec].replace(**{field: other})
        assert (caught.value.name, caught.value.value is other) == (field, True)
        assert str(caught.value).startswith(f"{field} = {repr(other)[:60]}")
        assert ": expected " in str(caught.value)


NUMBERS = [(s, f) for s, f in FIELDS if type(getattr(SPECS[s], f)) in (int, float)]


@pytest.mark.parametrize(("spec", "field"), NUMBERS, ids=[f"{s}.{f}" for s, f in NUMBERS])
def test_no_number_is_negative_and_no_count_is_absurd(spec: str, field: str) -> None:
    absurd = [-1, -(10**30)] + ([10**30] if field not in ("lora_alpha", "max_grad_norm", "total_bytes") else [])
    for number in absurd:
        with pytest.raises(
            InvalidValue, match=f"^{field} = {number}: expected (at least|at most|more than|less than) "
        ):
            SPECS[spec].replace(**{field: number})


@pytest.mark.parametrize(
    ("spec", "field", "near"),
    [
        ("lora", "ranks", "rank"),
        ("lora", "alpha", "lora_alpha"),
        ("qlora", "bnb_4bit_double_quant", "bnb_4bit_use_double_quant"),
        ("training", "batch_size", "micro_batch_size"),
        ("training", "sequence_len", "seq_len"),
        ("stack", "attention_implementation", "attn_implementation"),
        ("model", "num_layers", "num_hidden_layers"),
        ("gpu", "memory_bytes", "free_bytes"),
    ],
)
def test_an_unknown_field_offers_near_ones(spec: str, field: str, near: str) -> None:
    with pytest.raises(UnknownName) as caught:
        SPECS[spec].replace(**{field: 8})
    assert near in caught.value.near
    assert f"no {type(SPECS[spec]).__name__} field named '{field}'; did you mean" in str(caught.value)
    assert f"'{near}'" in str(caught.value)


@pytest.mark.parametrize(
    ("keyword", "near"),
    [
        ("optimizer", "optim"),
        ("batch_size", "micro_batch_size"),
        ("seqlen", "seq_len"),
        ("lora_rank", "rank"),
        ("bnb_4bit_type", "bnb_4bit_quant_type"),
    ],
)
def test_an_unknown_keyword_offers_near_ones(keyword: str, near: str) -> None:
    with pytest.raises(UnknownName, match=f"no setting of qlora named '{keyword}'; did you mean .*'{near}'"):
        vramcalc.estimate(MODEL, "qlora", **{keyword: 8})


# -- arguments that are no specification -------------------------------------------------------------------------------

NOT_A_NAME: list[Any] = [None, 5, 1.5, True, b"lora", [], {}, object()]


ARGUMENTS = [
    (argument, value)
    for argument in ("model", "method", "stack", "training", "gpu")
    for value in NOT_A_NAME
    if value is not None or argument not in ("training", "gpu")
]


@pytest.mark.parametrize(("argument", "value"), ARGUMENTS, ids=[f"{a}-{type(v).__name__}" for a, v in ARGUMENTS])
def test_an_argument_that_is_no_name_and_no_spec_is_refused(argument: str, value: Any) -> None:
    with pytest.raises((InvalidValue, UnknownName), match=argument):
        vramcalc.estimate(**{"model": MODEL, argument: value})


@pytest.mark.parametrize("value", NOT_A_NAME, ids=lambda v: type(v).__name__)
def test_a_search_and_a_verdict_want_a_gpu(value: Any) -> None:
    for ask in (
        lambda: vramcalc.max_seq_len(MODEL, gpu=value),
        lambda: vramcalc.max_micro_batch_size(MODEL, gpu=value),
        lambda: vramcalc.verdict(vramcalc.estimate(MODEL), value),
        lambda: vramcalc.fit(MODEL, gpus=[value]),
    ):
        with pytest.raises((InvalidValue, UnknownName), match=r"(?i)gpu"):
            ask()


@pytest.mark.parametrize("name", ["kind", "name"])
def test_a_field_that_names_the_spec_itself_is_no_setting(name: str) -> None:
    with pytest.raises((InvalidValue, UnknownName), match=name):
        vramcalc.estimate(MODEL, "lora", **{name: "full"})


@pytest.mark.parametrize("field", ["micro_batch_size", "seq_len", "rank"])
@pytest.mark.parametrize(
    "value",
    [[1, 0], [-1], [1.5], [True], ["2"], [NAN], [], [10**12], [2**70], [[1], [1, 2]], "8", object()],
    ids=lambda v: repr(v)[:16],
)
def test_a_grid_takes_positive_whole_numbers_only(field: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match=f"^{field} = .*: expected "):
        vramcalc.estimate_grid(MODEL, "lora", **{field: value})


def test_axes_of_a_grid_have_to_broadcast() -> None:
    with pytest.raises(InvalidValue, match=r"\(3,\).*\(2,\).*expected shapes that broadcast"):
        vramcalc.estimate_grid(MODEL, "lora", seq_len=[8, 16, 32], rank=[4, 8])


@pytest.mark.parametrize("limit", [0, -1, True, "8", 1.5, NAN, 10**12])
@pytest.mark.parametrize("search", [vramcalc.max_micro_batch_size, vramcalc.max_seq_len])
def test_a_search_has_a_limit_that_is_a_size(search: Callable[..., Any], limit: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^(limit|micro_batch_size|seq_len) = .*: expected "):
        search(MODEL, "lora", gpu="b200", limit=limit)


# -- settings that do not go together ----------------------------------------------------------------------------------

FUSED: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "fused_kernels": "fms_acceleration",
    "dtype": "bfloat16",
    "autocast": "bfloat16",
    "loss": "fused_cross_entropy",
    "prepare_model_for_kbit_training": False,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
}

CONFLICTS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "an adapter on a head that a chunked loss passes by": (
        "lora",
        {"loss": "chunked", "target_modules": ["lm_head"]},
        "loss='chunked'",
        "take lm_head out of target_modules",
    ),
    "an adapter on a head that a fused loss passes by": (
        "lora",
        {"loss": "fused_linear", "target_modules": ["lm_head", "q_proj"]},
        "loss='fused_linear'",
        "take lm_head out of target_modules",
    ),
    "scaled float16 gradients of a whole model": (
        "full",
        {"dtype": "float16", "autocast": "float16"},
        "autocast='float16'",
        "dtype='float32'",
    ),
    "scaled float16 gradients of adapters": (
        "lora",
        {"dtype": "float16", "autocast": "float16", "adapter_dtype": "weights"},
        "autocast='float16'",
        "adapter_dtype='float32'",
    ),
    "fused kernels over a family that they do not patch": (
        "lora",
        {**FUSED, "model": "qwen2.5-7b"},
        "fused_kernels='fms_acceleration'",
        "llama, mistral",
    ),
    "fused kernels in 32 bits": ("lora", {**FUSED, "dtype": "float32"}, "fused_kernels=", "let dtype be 16 bits wide"),
    "fused kernels with a chunked loss": (
        "lora",
        {**FUSED, "loss": "chunked"},
        "fused_kernels=",
        "'fused_linear' or 'full'",
    ),
    "fused kernels and saved modules": ("lora", {**FUSED, "modules_to_save": ["norm"]}, "modules_to_save", "leave one"),
    "fused adapters on a whole four-bit MLP": (
        "qlora",
        {**FUSED, "target_modules": "all-linear"},
        "different widths",
        "leave one of them out of target_modules",
    ),
    "fused adapters over float32 inputs": (
        "qlora",
        {**FUSED, "prepare_model_for_kbit_training": True},
        "fused_kernels=",
        "prepare_model_for_kbit_training=False",
    ),
    "fused adapters over scales of one level": (
        "qlora",
        {**FUSED, "bnb_4bit_use_double_quant": False},
        "fused_kernels=",
        "bnb_4bit_use_double_quant=True",
    ),
    "fused adapters without autocast": ("qlora", {**FUSED, "autocast": None}, "fused_kernels=", "needs autocast"),
    "fused adapters in two dtypes": (
        "qlora",
        {**FUSED, "bnb_4bit_compute_dtype": "float16"},
        "fused_kernels=",
        "bnb_4bit_compute_dtype",
    ),
}


@pytest.mark.parametrize(("method", "given", "named", "remedy"), CONFLICTS.values(), ids=CONFLICTS)
def test_settings_that_do_not_go_together_are_refused_with_a_way_out(
    method: str, given: dict[str, Any], named: str, remedy: str
) -> None:
    with pytest.raises(Unsupported) as caught:
        vramcalc.estimate(**{"model": MODEL, "method": method, **given})
    assert named in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.parametrize("method", ["full", FullFineTuning()])
@pytest.mark.parametrize("setting", ["rank", "lora_dropout", "target_modules", "bnb_4bit_quant_type"])
def test_a_setting_of_another_method_is_refused(method: str | FullFineTuning, setting: str) -> None:
    with pytest.raises(UnknownName, match=f"no setting of full named '{setting}'"):
        vramcalc.estimate(MODEL, method, **{setting: 8})


BAD_TARGETS: list[Any] = [[], "", ["nope"], "nope", "(", "*", 5, [1], None, {"q_proj": 1}]


@pytest.mark.parametrize("targets", BAD_TARGETS, ids=repr)
def test_targets_that_match_nothing_or_are_no_pattern_are_refused(targets: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^target_modules = .*: expected "):
        vramcalc.estimate(MODEL, "lora", target_modules=targets)


@pytest.mark.parametrize("saved", [["nope"], ["("], "nope", 5, [1], None], ids=repr)
def test_saved_modules_that_do_not_exist_are_refused(saved: Any) -> None:
    with pytest.raises(InvalidValue, match=r"^modules_to_save = .*: expected "):
        vramcalc.estimate(MODEL, "lora", modules_to_save=saved)


# -- warnings ----------------------------------------------------------------------------------------------------------

WARNED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "rank": (
        {"rank": 129},
        {"rank": 128},
        "rank 129 is above the width of the narrowest layer (128)",
    ),
    "an absurd rank": ({"rank": 10**6}, {"rank": 8}, "rank 1,000,000 is above the width of the narrowest layer (128)"),
    "length": (
        {"seq_len": 32769},
        {"seq_len": 32768},
        "seq_len 32,769 is above the model's max_position_embeddings (32,768)",
    ),
    "bf16 weights on a T4": (
        {"gpu": "t4", "autocast": None},
        {"gpu": "t4", "dtype": "float16", "autocast": None},
        "t4 has no bfloat16 arithmetic; use float16",
    ),
    "bf16 autocast on a V100": (
        {"gpu": "v100-sxm2-16", "dtype": "float32"},
        {"gpu": "v100-sxm2-16", "dtype": "float32", "autocast": "float16"},
        "v100-sxm2-16 has no bfloat16 arithmetic; use float16",
    ),
    "bf16 on a T4, not on an A100": ({"gpu": "t4"}, {"gpu": "a100-sxm-80"}, "t4 has no bfloat16 arithmetic"),
}


@pytest.mark.parametrize(("above", "at_the_edge", "says"), WARNED.values(), ids=WARNED)
def test_what_surprises_is_a_warning_that_travels_with_the_result(
    above: dict[str, Any], at_the_edge: dict[str, Any], says: str
) -> None:
    phrase = says[re.search(" is above| has no", says).start() :][:20]  # type: ignore[union-attr]
    assert not [w for w in vramcalc.estimate(MODEL, "lora", **at_the_edge).warnings if phrase in w]
    estimate = vramcalc.estimate(MODEL, "lora", **above)
    (warning,) = [w for w in estimate.warnings if w.startswith(says)]
    assert warning in estimate.to_dict()["warnings"]
    assert warning in json.loads(estimate.to_json())["warnings"]
    assert warning in " ".join(str(estimate).split())
    assert html.escape(warning) in estimate._repr_html_()
    assert warning in vramcalc.verdict(estimate, above.get("gpu", "rtx-4090")).estimate.warnings


def test_a_rank_above_the_width_of_full_fine_tuning_is_nobodys_concern() -> None:
    assert not [w for w in vramcalc.estimate(MODEL, "full").warnings if "rank" in w]


def test_warnings_are_in_the_json_of_every_command(run: Run) -> None:
    long = ["--seq-len=40000", "--gpu=b200", "--json"]
    says = "seq_len 40,000 is above the model's max_position_embeddings (32,768)"
    for command in ("estimate", "fit", "max"):
        _, out, err = run(command, MODEL, *long)
        found = json.loads(out)
        answers = found if isinstance(found, list) else [found]
        assert [says in answer["warnings"] for answer in answers] == [True] * len(answers), command
        assert err == ""


def test_a_warning_does_not_change_the_exit_status(run: Run) -> None:
    status, out, err = run("estimate", MODEL, "--seq-len=40000")
    assert (status, err) == (0, "")
    assert "above the model's max_position_embeddings" in " ".join(out.split())


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [InvalidValue, UnknownName, Unsupported, BadConfig, HubError, DoesNotFit, DetectionError, DataError]
)
def test_one_except_catches_every_error(error: type[Exception]) -> None:
    assert issubclass(error, VramcalcError)
    assert vramcalc.VramcalcError is VramcalcError


@pytest.mark.parametrize("value", ["x" * 10**6, list(range(10**5)), 10**4000], ids=["text", "list", "number"])
@pytest.mark.parametrize("field", ["seq_len", "dtype", "target_modules", "lora_alpha"])
def test_a_message_stays_short_whatever_was_given(field: str, value: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        vramcalc.estimate(MODEL, "lora", **{field: value})
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("argument", ["model", "method", "stack", "gpu"])
def test_a_long_name_is_cut_short_in_the_message(argument: str) -> None:
    with pytest.raises(UnknownName) as caught:
        vramcalc.estimate(**{"model": MODEL, argument: "x" * 5000})
    assert len(str(caught.value)) < 600
