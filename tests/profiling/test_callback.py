"""``VramcalcCallback`` in a real ``Trainer`` run: the row says what ran, and no trouble of its own stops the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import CONFIGS
from counted_device import CountedDevice
from peft import AdaLoraConfig, IA3Config, LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import vramcalc
from vramcalc import estimate
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.stack import (
    AdaLoRA,
    FullFineTuning,
    LoRA,
    PrefixTuning,
    PromptTuning,
    PTuning,
    QLoRA,
    Stack,
    TrainingSpec,
)
from vramcalc.profiling import callback as callbacks
from vramcalc.profiling.callback import VramcalcCallback
from vramcalc.profiling.in_a_process import Place
from vramcalc.profiling.observed_recipe import method_of
from vramcalc.profiling.real.build import build, quantised_model
from vramcalc.profiling.real.libraries import build_model
from vramcalc.profiling.row_figures import as_measurement, inconsistencies
from vramcalc.profiling.rows import read_profiles

pytestmark = pytest.mark.trace
SPEC = to_spec(CONFIGS["llama"], "llama")
TARGETS = ["q_proj", "v_proj"]


def data(lengths: list[int]) -> list[dict[str, torch.Tensor]]:
    found = []
    for n in lengths:
        ids = torch.randint(SPEC.vocab_size, (n,))
        found.append({"input_ids": ids, "labels": ids, "attention_mask": torch.ones_like(ids)})
    return found


def trained(
    model: Any, folder: Path, *, steps: int = 11, lengths: list[int] | None = None, **arguments: Any
) -> tuple[VramcalcCallback, list[str]]:
    """A run of Trainer, and the lines the user saw."""
    shown: list[str] = []
    made = VramcalcCallback(folder / "rows.jsonl", show=shown.append)
    usual: dict[str, Any] = {
        "per_device_train_batch_size": 2, "max_steps": steps, "report_to": [], "use_cpu": True, "bf16": True,
        "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip
    trainer = Trainer(
        model, TrainingArguments(str(folder / "out"), **usual | arguments), train_dataset=data(lengths or [24] * 64),
        callbacks=[made],
    )  # fmt: skip
    assert trainer.train().global_step == steps
    return made, shown


def lora_model(**settings: Any) -> Any:
    config = LoraConfig(**{"r": 4, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings})
    return get_peft_model(build_model(SPEC, Stack()), config)


def test_a_row_says_what_ran(tmp_path: Path) -> None:
    made, shown = trained(
        lora_model(lora_dropout=0.1), tmp_path, gradient_accumulation_steps=2, gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False}, optim="adamw_torch", max_grad_norm=0.5,
    )  # fmt: skip
    (row,) = read_profiles(tmp_path / "rows.jsonl")
    assert row == made.row
    assert row.source == "callback"
    recipe = row.recipe
    assert recipe.model.replace(name="llama") == SPEC
    assert recipe.method == LoRA(rank=4, lora_alpha=8.0, lora_dropout=0.1, target_modules=frozenset(TARGETS))
    assert recipe.training == TrainingSpec(
        micro_batch_size=2, seq_len=24, gradient_accumulation_steps=2, gradient_checkpointing="non_reentrant",
        optim="adamw_torch", max_grad_norm=0.5,
    )  # fmt: skip
    assert recipe.stack == Stack(name="transformers-trainer", dtype="bfloat16", autocast="bfloat16")
    assert row.timing
    assert len(row.timing.steps_s) == 5
    assert row.timing.tokens_per_s == pytest.approx(2 * 2 * 24 / row.timing.step_s)
    assert inconsistencies(row) == []
    assert "first step" in shown[0]
    assert "memory is not measured on a CPU" in shown[0]
    assert row.memory is None
    assert shown[-1].endswith(f"added to {tmp_path / 'rows.jsonl'}")


def test_the_callback_is_a_name_of_the_package_and_without_its_extra_says_so(tmp_path: Path) -> None:
    assert vramcalc.VramcalcCallback is VramcalcCallback
    assert "VramcalcCallback" in dir(vramcalc)
    assert "VramcalcCallback" not in vramcalc.__all__
    (tmp_path / "transformers.py").write_text("raise ModuleNotFoundError('no', name='transformers')")
    script = "import sys; sys.path.insert(0, sys.argv[1]); from vramcalc import VramcalcCallback"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False, env=os.environ
    )
    assert "MissingExtra: VramcalcCallback runs inside transformers' Trainer, and transformers is not" in done.stderr


METHODS: dict[str, tuple[Any, dict[str, Any], type, dict[str, Any]]] = {
    "full, float32": (lambda: build_model(SPEC, Stack(dtype="float32")), {}, FullFineTuning, {"dtype": "float32"}),
    "full, no autocast": (lambda: build_model(SPEC, Stack()), {"bf16": False}, FullFineTuning, {"autocast": None}),
    "adapters in bfloat16": (
        lambda: get_peft_model(
            build_model(SPEC, Stack()), LoraConfig(r=2, target_modules=TARGETS), autocast_adapter_dtype=False
        ),
        {},
        LoRA,
        {"adapter_dtype": "weights"},
    ),
    "QLoRA": (
        lambda: build(SPEC, QLoRA(), TrainingSpec(), Stack(), "cpu"),
        {},
        QLoRA,
        {"dtype": "bfloat16", "prepare_model_for_kbit_training": True, "adapter_dtype": "float32"},
    ),
    "QLoRA, not prepared": (
        lambda: get_peft_model(
            quantised_model(SPEC, QLoRA(bnb_4bit_use_double_quant=False), Stack(), "cpu"),
            LoraConfig(r=2, target_modules=TARGETS),
        ),
        {},
        QLoRA,
        {"prepare_model_for_kbit_training": False},
    ),
    "prompt tuning": (lambda: build(SPEC, PromptTuning(num_virtual_tokens=3), TrainingSpec(), Stack(), "cpu"), {},
                      PromptTuning, {"adapter_dtype": "float32"}),
    "p-tuning": (lambda: build(SPEC, PTuning(encoder_hidden_size=8), TrainingSpec(), Stack(), "cpu"), {}, PTuning, {}),
    "prefix tuning": (lambda: build(SPEC, PrefixTuning(prefix_projection=True), TrainingSpec(), Stack(), "cpu"), {},
                      PrefixTuning, {"dtype": "bfloat16"}),
    "prefix tuning over four bits": (
        lambda: build(SPEC, PrefixTuning(quantization="nf4"), TrainingSpec(), Stack(), "cpu"), {}, PrefixTuning,
        {"prepare_model_for_kbit_training": True},
    ),
    "AdaLoRA, that nothing allocates": (
        lambda: get_peft_model(
            build_model(SPEC, Stack()), AdaLoraConfig(init_r=9, total_step=9, target_modules=TARGETS)
        ),
        {},
        AdaLoRA,
        {"adapter_dtype": "float32"},
    ),
    "eager": (lambda: build_model(SPEC, Stack(attn_implementation="eager")), {}, FullFineTuning,
              {"attn_implementation": "eager"}),
}  # fmt: skip


@pytest.mark.parametrize(("model", "arguments", "method", "stack"), METHODS.values(), ids=METHODS)
def test_the_recipe_is_read_off_the_model(
    tmp_path: Path, model: Any, arguments: dict[str, Any], method: type, stack: dict[str, Any]
) -> None:
    made, _ = trained(model(), tmp_path, steps=1, **arguments)
    assert type(made.row.recipe.method) is method
    assert {name: getattr(made.row.recipe.stack, name) for name in stack} == stack
    estimate(**as_measurement(made.row)[0])


def test_steps_of_different_lengths_are_named_one_by_one_and_padding_is_seen(tmp_path: Path) -> None:
    made, _ = trained(lora_model(), tmp_path, steps=3, lengths=[24, 24, 16, 16, 32, 32])
    assert made.row.recipe.training.seq_lens == (24, 16, 32)
    assert not made.row.recipe.training.padded
    rows = data([24] * 4)
    rows[1]["attention_mask"][-3:] = 0
    shown: list[str] = []
    again = VramcalcCallback(tmp_path / "padded.jsonl", show=shown.append)
    arguments = TrainingArguments(str(tmp_path / "out"), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    Trainer(lora_model(), arguments, train_dataset=rows, callbacks=[again]).train()
    assert again.row.recipe.training.padded
    assert again.row.recipe.stack.passes_attention_mask


def test_batches_without_a_mask_are_seen(tmp_path: Path) -> None:
    rows = [{name: row[name] for name in ("input_ids", "labels")} for row in data([24] * 4)]
    callback = VramcalcCallback(tmp_path / "unmasked.jsonl", show=[].append)
    arguments = TrainingArguments(str(tmp_path / "out"), max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    Trainer(lora_model(), arguments, train_dataset=rows, callbacks=[callback]).train()
    assert not callback.row.recipe.stack.passes_attention_mask


def test_a_short_run_has_a_row_without_speed_that_says_why(tmp_path: Path) -> None:
    made, _ = trained(lora_model(), tmp_path, steps=2)
    assert made.row.timing is None
    assert any(note.startswith("2 steps were made; speed takes 10") for note in made.row.notes)


def test_what_cannot_be_told_is_said_once_and_the_run_goes_on(tmp_path: Path) -> None:
    model = get_peft_model(build_model(SPEC, Stack()), IA3Config(task_type="CAUSAL_LM"))
    made, shown = trained(model, tmp_path)
    assert made.row is None
    (line,) = shown
    assert line.startswith("vramcalc: this run cannot be measured: ")
    assert not (tmp_path / "rows.jsonl").exists()


def test_nothing_is_left_behind_in_torch_or_in_the_model(tmp_path: Path) -> None:
    backward, model = torch.autograd.backward, lora_model()
    trained(model, tmp_path)
    assert torch.autograd.backward is backward
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_where_memory_is_counted_predicted_stands_beside_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CountedDevice() as device:
        device.start()  # a Trainer has put the model on it
        monkeypatch.setattr(callbacks, "device_named", lambda _: device)
        monkeypatch.setattr("vramcalc.profiling.in_a_process.place", lambda _: Place("cpu"))
        made, shown = trained(lora_model(), tmp_path, steps=4)
    table = shown[0].splitlines()[1:]
    assert table[0].split() == ["bytes", "predicted", "measured", "difference"]
    assert [line.split()[0] for line in table[1:]] == ["allocated_max", "reserved_max"]
    memory = made.row.memory
    assert None not in (memory.forward, memory.backward, memory.optimizer, memory.whole)
    assert memory.load is None
    assert memory.backward.allocated_bytes <= memory.whole.allocated_bytes


@pytest.mark.parametrize(
    "method",
    [
        PromptTuning(num_virtual_tokens=3),
        PTuning(),
        PTuning(encoder_hidden_size=8, quantization="fp4"),
        PrefixTuning(num_virtual_tokens=4, quantization="nf4"),
        PrefixTuning(prefix_projection=True),
        PrefixTuning(prefix_projection=True, encoder_hidden_size=8),
    ],
    ids=str,
)
def test_what_is_learned_before_the_tokens_is_read_off_peft(method: Any) -> None:
    assert method_of(build(SPEC, method, TrainingSpec(), Stack(), "cpu")) == method
