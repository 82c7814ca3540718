"""What reading a quantised checkpoint asks for before training, and what of it ends there."""

from __future__ import annotations

from collections import Counter

import pytest
from small import TINY

from vramcalc import estimate
from vramcalc.inputs.stack import Stack
from vramcalc.shadow.engine.tape import Birth
from vramcalc.shadow.training.reading_checkpoint import read_quantised


def transient(*, tied: bool, casts: bool) -> Counter[int]:
    """Bytes that loading asks for and gives back, of a model whose embedding TRL casts to bfloat16 or leaves alone."""
    found = estimate(
        TINY.replace(tie_word_embeddings=tied),
        "qlora",
        stack="trl-sft",
        dtype="bfloat16",
        prepare_model_for_kbit_training=True,
        casts_embeddings_to_bf16=casts,
        seq_len=64,
    )
    walks = found.walks
    program, expansion = walks.written_out.program, walks.written_out.expansion
    births = [program.births[b] for b in expansion.births]
    stream = walks.stream
    events, sizes = read_quantised(stream.load, births, stream.sizes, found.job.stack)
    return Counter(sizes[~event] for event in events if event < 0)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_read_raised_and_cast_where_trl_casts_them(tied: bool) -> None:
    """trl trainer/utils.py, ``peft_module_casting_to_bf16``: each was read in 16 bits and raised to float32 before."""
    left, cast = transient(tied=tied, casts=False), transient(tied=tied, casts=True)
    n_bytes = 2 * TINY.vocab_size * TINY.hidden_size
    ends = 1 if tied else 2
    assert cast[2 * n_bytes] - left[2 * n_bytes] == ends
    assert sum(cast.values()) >= sum(left.values())


PARTS = (
    ("embed_tokens.weight", "weight", 2000),
    ("layers.0.q_proj.weight", "packed 4-bit weight", 512),
    ("layers.0.q_proj.weight", "scales", 8),
    ("layers.0.q_proj.weight", "4-bit code book", 64),
    ("layers.0.q_proj.bias", "bias", 20),
    ("norm.weight", "weight", 10),
    ("lm_head.weight", "weight", 2000),
    ("rotary_emb", "inv_freq", 32),
    ("layers.0.q_proj.lora_A.weight", "weight", 40),
    ("layers.0.q_proj.lora_B.weight", "weight", 30),
)
"""What stays of a model: elements, and bytes of what is stored in four bits."""
QUANTISED = "+2048 read, +512 packed 4-bit weight, +8 scales, +64 4-bit code book, -2048 read"
"""``Params4bit._quantize``: the weight in 16 bits is there until its four-bit form has all its parts."""
RAISED = (
    "+8000 embed_tokens.weight, -4000 read, +80 layers.0.q_proj.bias, -40 read, +40 norm.weight, -20 read, "
    "+8000 lm_head.weight, -4000 read"
)
"""``prepare_model_for_kbit_training``: ``param.data = param.data.to(torch.float32)``, one parameter after the other."""
ADAPTED = "+160 layers.0.q_proj.lora_A.weight, +120 layers.0.q_proj.lora_B.weight"


def reading(transformers: str, dtype: str, *, prepares: bool, casts: bool) -> str:
    stack = Stack(
        transformers=transformers,
        dtype=dtype,
        prepare_model_for_kbit_training=prepares,
        casts_embeddings_to_bf16=casts,
    )
    births, sizes = [], []
    for module, op, n in PARTS:
        plain, end = op in ("weight", "bias"), module in ("embed_tokens.weight", "lm_head.weight")
        kept = "bfloat16" if end and casts else "float32" if prepares or ".lora_" in module else dtype
        births.append(Birth((n,), kept if plain else "uint8", op, module, None, "parameter"))
        sizes.append(births[-1].requested_bytes)
    events, sizes = read_quantised(list(range(len(births))), births, sizes, stack)

    def line(event: int) -> str:
        i = event if event >= 0 else ~event
        name = "read" if i >= len(births) else births[i].module if births[i].op in ("weight", "bias") else births[i].op
        return f"{'+' if event >= 0 else '-'}{sizes[i]} {name}"

    return ", ".join(map(line, events))


@pytest.mark.parametrize(
    ("transformers", "warm"),
    [("4.49", ""), ("4.50", "+5054 read, -5054 read, "), ("5.23", "+8572 read, -8572 read, ")],
)
def test_weights_are_read_in_16_bits_and_raised_before_adapters_come(transformers: str, warm: str) -> None:
    """``caching_allocator_warmup``: half of the 10,108 bytes to be read; later all that stays of them, 8,572."""
    assert reading(transformers, "bfloat16", prepares=True, casts=False) == (
        f"{warm}+4000 read, {QUANTISED}, +40 read, +20 read, +4000 read, +32 inv_freq, {RAISED}, {ADAPTED}"
    )


def test_weights_that_nothing_raises_stay_as_they_are_read() -> None:
    assert reading("4.49", "bfloat16", prepares=False, casts=False) == (
        f"+4000 embed_tokens.weight, {QUANTISED}, +40 layers.0.q_proj.bias, +20 norm.weight, +4000 lm_head.weight, "
        f"+32 inv_freq, {ADAPTED}"
    )


CAST = "+4000 embed_tokens.weight, -8000 read, +4000 lm_head.weight, -8000 read"
"""``peft_module_casting_to_bf16``, after the adapters are there."""


def test_embedding_and_head_are_cast_after_adapters_came() -> None:
    raised = RAISED.replace("embed_tokens.weight", "read").replace("lm_head.weight", "read")
    assert reading("4.49", "bfloat16", prepares=True, casts=True) == (
        f"+4000 read, {QUANTISED}, +40 read, +20 read, +4000 read, +32 inv_freq, {raised}, {ADAPTED}, {CAST}"
    )


def test_a_checkpoint_read_in_float32_has_nothing_to_raise() -> None:
    found = reading("4.49", "float32", prepares=True, casts=True).split(", ")
    assert ", ".join(line for line in found if "4-bit" not in line and line not in ("+2048 read", "-2048 read")) == (
        f"+8000 read, +8 scales, +80 layers.0.q_proj.bias, +40 norm.weight, +8000 read, +32 inv_freq, {ADAPTED}, {CAST}"
    )
