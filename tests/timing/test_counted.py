"""Work counted on the walk: equal to the operations that a formula for each projection gives."""

from __future__ import annotations

import pytest
from configs import CONFIGS

from vramcalc.errors import Unsupported
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import FullFineTuning, LoRA, Method, QLoRA, Stack, TrainingSpec, kbit_prepared
from vramcalc.timing.counted import counted
from vramcalc.timing.flops import step_flops

BATCH, SEQ, RANK = 2, 24, 4
METHODS: dict[str, Method] = {
    "full": FullFineTuning(),
    "lora": LoRA(rank=RANK),
    "q, v": LoRA(rank=RANK, target_modules=["q_proj", "v_proj"]),
    "down": LoRA(rank=RANK, target_modules=["down_proj"]),
    "head saved": LoRA(rank=RANK, target_modules=["v_proj"], modules_to_save=["lm_head"]),
    "head": LoRA(rank=RANK, target_modules=["up_proj", "lm_head"], lora_dropout=0.1),
    "one layer": LoRA(rank=RANK, target_modules=r".*layers\.1\.mlp\.up_proj"),
    "embedding": LoRA(rank=RANK, target_modules=["o_proj", "embed_tokens"]),
    "qlora": QLoRA(rank=RANK),
    "qlora q, v": QLoRA(rank=RANK, target_modules=["q_proj", "v_proj"]),
}
STACKS = {
    "bfloat16": Stack(),
    "float32": Stack(dtype="float32"),
    "autocast": Stack(dtype="float32", autocast="bfloat16"),
    "float32 adapters": Stack(adapter_dtype="float32"),
    "float32 adapters, autocast": Stack(adapter_dtype="float32", autocast="bfloat16"),
    "not prepared": Stack(prepare_model_for_kbit_training=False),
    "chunked": Stack(loss="chunked"),
    "fused linear": Stack(loss="fused_linear"),
    "before transformers 5": Stack(transformers="4.57"),
}
Key = tuple[str, str, str]


def by_formula(job: Job) -> dict[Key, int]:
    """What the formulas say, but for what they did not know: see each comment."""
    stack = job.stack
    if stack.attn_implementation == "sdpa" and _attends_in(job) == "float32" and _grouped(job):
        # No fused kernel takes grouped heads in float32: torch falls back to products of its own, as eager code has.
        stack = stack.replace(attn_implementation="eager")
    found = step_flops(job.model, job.method, job.training, stack, square=True)
    rows: dict[Key, int] = {}
    for r in found.rows:
        flops, dtype = r.flops, r.dtype
        if stack.loss == "chunked" and r.what == "head":
            flops = flops * (SEQ - 1) // SEQ  # the last position has no label
        if stack.attn_implementation == "flash_attention_2" and r.what == "attention":
            dtype = stack.autocast or stack.dtype  # flash-attn is handed 16 bits, whatever stands around it
        rows[r.what, r.phase, dtype] = rows.get((r.what, r.phase, dtype), 0) + flops
    return rows


def _attends_in(job: Job) -> str:
    prepared = kbit_prepared(job.method, job.stack)
    return job.stack.autocast or ("float32" if prepared else job.stack.dtype)


def _grouped(job: Job) -> bool:
    return job.model.num_attention_heads != job.model.num_key_value_heads


def jobs(family: str, method: str, checkpointing: str, attention: str) -> list[Job]:
    """Under every recipe that runs."""
    found = []
    for stack in STACKS.values():
        training = TrainingSpec(micro_batch_size=BATCH, seq_len=SEQ, gradient_checkpointing=checkpointing)
        made = stack.replace(attn_implementation=attention)
        try:
            found.append(Job(to_spec(CONFIGS[family], family), METHODS[method], training, made))
        except Unsupported:
            continue
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager", "flash_attention_2"])
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", [f for f in CONFIGS if f != "mixtral"])
def test_the_walk_counts_what_formulas_say(family: str, method: str, checkpointing: str, attention: str) -> None:
    made = jobs(family, method, checkpointing, attention)
    assert made
    for job in made:
        assert dict(counted(job).flops) == by_formula(job), job.stack


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("method", ["full", "q, v", "qlora q, v"])
@pytest.mark.parametrize("transformers", ["4.57", "5.13"])
def test_of_experts_formulas_leave_the_router_out(method: str, checkpointing: str, transformers: str) -> None:
    """And stop recomputing before the last product, though the sum over experts needs what comes out of it."""
    spec = to_spec(CONFIGS["mixtral"], "mixtral")
    training = TrainingSpec(micro_batch_size=BATCH, seq_len=SEQ, gradient_checkpointing=checkpointing)
    stack = Stack(transformers=transformers, prepare_model_for_kbit_training=False)
    job = Job(spec, METHODS[method], training, stack)
    tokens, layers, experts = BATCH * SEQ, spec.num_hidden_layers, spec.num_local_experts or 0
    router = 2 * tokens * spec.hidden_size * experts * layers
    down = 2 * tokens * (spec.num_experts_per_tok or 0) * spec.hidden_size * spec.intermediate_size * layers
    more = {("layers", "forward"): router, ("layers", "input gradients"): router}
    if method == "full":
        more["layers", "weight gradients"] = router
    if checkpointing != "none":
        more["layers", "recomputation"] = router + down * (checkpointing == "non_reentrant")
    expected = by_formula(job)
    for (what, phase), flops in more.items():
        expected[what, phase, "bfloat16"] += flops
    assert dict(counted(job).flops) == expected


@pytest.mark.parametrize("checkpointing", ["none", "reentrant"])
def test_fused_adapters_multiply_twice_what_they_do_not_keep(checkpointing: str) -> None:
    """Unsloth's function of LoRA makes A X and dY B again for their weights, and always the gradient of its input."""
    method = QLoRA(rank=RANK, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    training = TrainingSpec(micro_batch_size=BATCH, seq_len=SEQ, gradient_checkpointing=checkpointing)
    stack = Stack(autocast="bfloat16", prepare_model_for_kbit_training=False, attn_implementation="flash_attention_2")
    spec = to_spec(CONFIGS["llama"], "llama")
    job = Job(spec, method, training, stack.replace(fused_kernels="fms_acceleration"))
    expected = by_formula(Job(spec, method, training, stack))
    again, forward = ("adapters", "recomputation", "bfloat16"), ("adapters", "forward", "bfloat16")
    expected[again] = expected.get(again, 0) + expected[forward]
    for what in ("layers", "adapters"):
        if checkpointing == "none":
            expected[what, "input gradients", "bfloat16"] += _past_the_first_input(job, what)
    assert dict(counted(job).flops) == expected


def _past_the_first_input(job: Job, what: str) -> int:
    """Gradients of the embedding's output, which nothing needs."""
    h, d, spec = job.model.hidden_size, job.model.head_dim, job.model
    widths = (spec.num_attention_heads * d, spec.num_key_value_heads * d, spec.num_key_value_heads * d)
    return 2 * BATCH * SEQ * h * (sum(widths) if what == "layers" else RANK * len(widths))
