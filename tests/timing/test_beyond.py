"""A method built on LoRA has LoRA's time and that of what it moves and multiplies beyond LoRA."""

from __future__ import annotations

from typing import Any

import pytest

from vramcalc import DoRA, LoRA, compare_times, step_time
from vramcalc.accuracy.time.throughput import read_throughput
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import FullFineTuning, Method, QLoRA, Stack, TrainingSpec
from vramcalc.tables import directory
from vramcalc.timing.beyond import described, moved_by_family
from vramcalc.timing.flops import Tokens
from vramcalc.timing.work import work_of

MODEL = catalog.model("llama-3.2-1b")
ADAPTERS: dict[str, Any] = {"rank": 8, "target_modules": ["q_proj", "v_proj"]}


def beyond(method: Method, seq_len: int, checkpointing: str = "none") -> tuple[Method, int]:
    training = TrainingSpec(seq_len=seq_len, gradient_checkpointing=checkpointing)
    return described(MODEL, method, training, Stack(), Tokens.padded([seq_len]))


@pytest.mark.parametrize("method", [FullFineTuning(), LoRA(**ADAPTERS), QLoRA(**ADAPTERS)], ids=lambda m: str(m.kind))
def test_what_is_described_moves_nothing_beyond_itself(method: Method) -> None:
    assert beyond(method, 64) == (method, 0)


@pytest.mark.parametrize(("quantization", "nearest"), [(None, LoRA), ("nf4", QLoRA)])
def test_dora_is_nearest_to_lora_over_the_same_weights(quantization: str | None, nearest: type[Method]) -> None:
    near, more = beyond(DoRA(**ADAPTERS, quantization=quantization), 64)
    assert near == nearest(**ADAPTERS)
    assert more > 0


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
def test_doras_norm_takes_the_same_however_many_tokens_there_are(checkpointing: str) -> None:
    """The norm of the weights once a forward pass, the rest by token: a straight line that does not begin at zero."""
    one, two, three = (beyond(DoRA(**ADAPTERS), n, checkpointing)[1] for n in (64, 128, 192))
    assert three - two == two - one > 0
    widths = MODEL.head_dim * (MODEL.num_attention_heads + MODEL.num_key_value_heads)
    weights = MODEL.num_hidden_layers * MODEL.hidden_size * widths
    passes = 1 if checkpointing == "none" else 2
    assert 2 * one - two > passes * weights * 2


@pytest.mark.parametrize("gpu", ["a100-sxm-80", "l40s", "rtx-3060-12"])
@pytest.mark.parametrize("settings", [{}, {"lora_dropout": 0.1}], ids=str)
def test_dora_takes_longer_than_lora(gpu: str, settings: dict[str, Any]) -> None:
    lora, dora = (Job(MODEL, kind(**ADAPTERS, **settings), TrainingSpec(seq_len=512), Stack()) for kind in (LoRA, DoRA))
    assert step_time(dora, gpu).s > step_time(lora, gpu).s


def test_a_published_ratio_of_dora_to_lora_is_met() -> None:
    """huggingface/peft method_comparison/MetaMathQA on an L40S, rank 32 on q and v: 7,174 and 5,941 tokens/s."""
    rows = {row["case_id"]: row for row in read_throughput(directory() / "throughput.csv")}
    lora, dora = (
        float(rows[f"speed-mmqa-l40s-{name}"]["value"]) for name in ("lora-torch-2-13-r32-q-v", "dora-torch-2-13-r32")
    )
    adapters = {"rank": 32, "target_modules": ["q_proj", "v_proj"]}
    training = TrainingSpec(micro_batch_size=4, seq_len=768, optim="adamw_torch", max_grad_norm=1.0)
    model, stack = catalog.model("llama-3.2-3b"), Stack(adapter_dtype="float32")
    slow, fast = (Job(model, kind(**adapters), training, stack, (8, 9)) for kind in (DoRA, LoRA))
    found = compare_times(slow, fast, "l40s", tokens=Tokens(896, 840, 100800, 200704, 224))
    assert found.low < lora / dora < found.high
    assert found.ratio == pytest.approx(lora / dora, rel=0.1)


@pytest.mark.parametrize("method", [FullFineTuning(), LoRA(**ADAPTERS), QLoRA(**ADAPTERS)], ids=lambda m: str(m.kind))
def test_gemma_2_takes_the_time_of_llama_of_its_sizes_and_of_its_norms_and_caps(method: Method) -> None:
    gemma = catalog.model("gemma-2-2b").replace(num_hidden_layers=4)
    llama = gemma.replace(model_type="llama", attn_logit_softcapping=None, final_logit_softcapping=None)
    stack, training = Stack(attn_implementation="eager"), TrainingSpec(seq_len=512)
    tokens = Tokens.padded([512])
    more = moved_by_family(gemma, method, training, stack, tokens)
    # Each cap reads and writes the scores three times over and back, whatever their softmax does.
    assert more > 4 * 6 * 2 * gemma.num_attention_heads * 512 * 512
    assert moved_by_family(llama, method, training, stack, tokens) == 0
    own, like = (work_of(m, method, training, stack).quantities for m in (gemma, llama))
    assert own["element-wise"] - like["element-wise"] == pytest.approx(more)
    # Two norms more are two weights more, which the optimizer goes through where they train.
    assert {name for name in own if own[name] != like[name]} - {"optimizer"} == {"element-wise"}
