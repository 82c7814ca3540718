"""Traces of what an estimate does not know: other models, other adapters, loops of one's own."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import peft
import pytest
import torch
from configs import CONFIGS
from torch.optim import optimizer
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config

from vramcalc.errors import Unsupported
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.stack import Stack, TrainingSpec
from vramcalc.memory.estimate import make_job
from vramcalc.profiling.trace.result import Trace
from vramcalc.profiling.trace.trace import trace, trace_custom

pytestmark = pytest.mark.trace

BATCH, SEQ = 2, 100


def gpt2() -> torch.nn.Module:
    config = GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=512, bos_token_id=0, eos_token_id=0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()


def llama() -> torch.nn.Module:
    config = AutoConfig.for_model(**CONFIGS["llama"], use_cache=False)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).train()


def batch(seq_len: int) -> dict[str, torch.Tensor]:
    ids = torch.zeros(BATCH, seq_len, dtype=torch.long)
    return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}


class Step:
    """A training step as a user writes it."""

    def __init__(self, micro_steps: int = 1, seq_len: int = SEQ, **options: Any) -> None:
        self.micro_steps, self.seq_len, self.options = micro_steps, seq_len, options
        self.optimizer: torch.optim.Optimizer | None = None

    def __call__(self, model: torch.nn.Module) -> None:
        trainable = [p for p in model.parameters() if p.requires_grad]
        if self.optimizer is None:
            self.optimizer = torch.optim.AdamW(trainable, lr=1e-4, **self.options)
        for _ in range(self.micro_steps):
            model(**batch(self.seq_len)).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def labelled(found: Trace, label: str) -> list[int]:
    """Bytes of what is alive at the peak under a label."""
    return [a.n_bytes for a in found.live_at(found.peak()[1]) if a.label == label]


def n_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_a_loop_of_ones_own_takes_what_the_recipe_takes() -> None:
    """The custom road and the road of an estimate are two: the same job must come out the same."""
    training = TrainingSpec(micro_batch_size=BATCH, seq_len=SEQ, max_grad_norm=0)
    recipe_stack = Stack(decay_groups=False)
    job, _ = make_job(to_spec(CONFIGS["llama"], "llama"), "full", training=training, stack=recipe_stack)
    recipe = trace(job.model, job.method, job.training, job.stack)
    own = trace_custom(llama, Step(fused=True))

    def large(found: Trace) -> list[int]:
        births = [found.allocations[e] for e in found.events[found.start :] if e >= 0]
        return [a.n_bytes for a in births if a.n_bytes > 2048]

    assert large(own) == large(recipe)
    assert own.peak()[0] == recipe.peak()[0]


def test_a_model_that_no_estimate_knows() -> None:
    found = trace_custom(gpt2, Step())
    count = n_parameters(gpt2())
    assert sum(labelled(found, "parameter")) == 2 * count
    assert sum(n for n in labelled(found, "optimizer") if n > 4) == 2 * 2 * count
    allocated, at = found.peak()
    assert allocated == sum(a.size for a in found.live_at(at))
    assert found.phase_at(at) == "step1.0.backward"
    assert allocated == max(found.phases.values())
    assert found.replay().peak_reserved_bytes >= allocated
    assert {name: found.versions[name] for name in ("torch", "transformers", "peft", "bitsandbytes")} == {
        name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")
    }


def test_a_batch_without_a_mask_is_no_packed_one() -> None:
    def step(model: torch.nn.Module) -> None:
        ids = torch.zeros(BATCH, 2000, dtype=torch.long)
        model(input_ids=ids, labels=ids).loss.backward()

    found = trace_custom(llama, step, steps=1)
    assert not [a for a in found.allocations if a.shape[-2:] == (2000, 2000)]


def test_parameters_are_named() -> None:
    found = trace_custom(gpt2, Step(), steps=1)
    names = {a.module for a in found.live_at(found.start) if a.label == "parameter"}
    assert names == {name for name, _ in gpt2().named_parameters()}


ADAPTERS: dict[str, Callable[[], peft.PeftConfig]] = {
    "ia3": lambda: peft.IA3Config(task_type="CAUSAL_LM"),
    "prefix": lambda: peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=10),
    "prompt": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=10),
    "loha": lambda: peft.LoHaConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]),
    "lokr": lambda: peft.LoKrConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]),
    "dora": lambda: peft.LoraConfig(task_type="CAUSAL_LM", use_dora=True, target_modules=["q_proj"]),
}


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_peft_method_that_no_estimate_knows(adapter: str) -> None:
    def adapted() -> torch.nn.Module:
        return peft.get_peft_model(llama(), ADAPTERS[adapter]()).train()

    found = trace_custom(adapted, Step())
    trained = [p for p in adapted().parameters() if p.requires_grad]
    expected = sorted(p.numel() * p.element_size() for p in trained for _ in ("mean", "square"))
    assert sorted(n for n in labelled(found, "optimizer") if n > 4) == expected
    assert found.peak()[0] < trace_custom(llama, Step()).peak()[0]


def test_a_question_about_values_is_refused_by_name() -> None:
    def step(model: torch.nn.Module) -> None:
        loss = model(input_ids=(ids := torch.zeros(1, 16, dtype=torch.long)), labels=ids).loss
        if loss > 3:
            loss.backward()

    with pytest.raises(Unsupported, match=r"asks in step phase .* a trace has no values"):
        trace_custom(gpt2, step)


def test_phases_follow_the_loop() -> None:
    found = trace_custom(gpt2, Step(micro_steps=2))
    micro = [f"{micro}.{what}" for micro in (0, 1) for what in ("forward", "backward")]
    assert list(found.phases) == [
        f"step{n}{rest}" for n in (0, 1) for rest in ("", *(f".{m}" for m in micro), ".optimizer")
    ]


def test_checkpointing_does_not_open_phases() -> None:
    def checkpointed() -> torch.nn.Module:
        model: Any = llama()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
        model.enable_input_require_grads()
        return model

    found = trace_custom(checkpointed, Step(seq_len=400))
    assert [phase.split(".", 1)[1] for phase in found.phases if "step1." in phase] == [
        "0.forward",
        "0.backward",
        "optimizer",
    ]
    assert found.peak()[0] < trace_custom(llama, Step(seq_len=400)).peak()[0]


def test_an_optimizer_chooses_its_loop_as_on_a_gpu() -> None:
    plain, foreach, loop = (trace_custom(gpt2, Step(**o)) for o in ({}, {"foreach": True}, {"foreach": False}))
    assert plain.events == foreach.events
    assert plain.phases["step1.optimizer"] > loop.phases["step1.optimizer"]


def test_torch_is_left_as_it_was_when_a_step_fails() -> None:
    before = (torch.autograd.backward, torch.nn.functional.scaled_dot_product_attention, torch.nn.Module._apply)

    def fails(model: torch.nn.Module) -> None:
        raise RuntimeError("a step")

    with pytest.raises(RuntimeError, match="a step"):
        trace_custom(gpt2, fails)
    after = (torch.autograd.backward, torch.nn.functional.scaled_dot_product_attention, torch.nn.Module._apply)
    assert before == after
    assert not optimizer._global_optimizer_pre_hooks


def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = inspect.getdoc(trace_custom) or ""
    example = text.split("::\n", 1)[1].split("\nArgs:", 1)[0]
    exec(textwrap.dedent(example), {})  # noqa: S102
    allocated = int(capsys.readouterr().out.split()[0])
    assert allocated > 2 * 124_439_808 * 4
