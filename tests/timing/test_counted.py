"""Laws of work counted on the walk, for every family and method: what recomputation and frozen weights change."""

from __future__ import annotations

from collections import Counter

import pytest
from configs import CONFIGS

from vramcalc.errors import Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.job import Job
from vramcalc.inputs.releases import minor_release
from vramcalc.inputs.stack import FullFineTuning, LoRA, Method, QLoRA, Stack, TrainingSpec
from vramcalc.shadow.depth import few_layers
from vramcalc.shadow.engine.sizes import Symbols, evaluate
from vramcalc.shadow.engine.work import Move, Work
from vramcalc.shadow.training.loop import Loop, Sizes
from vramcalc.timing import counted as counting
from vramcalc.timing.counted import Counted, counted

BATCH, SEQ, RANK = 2, 24, 4
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
METHODS: dict[str, Method] = {
    "full": FullFineTuning(),
    "lora": LoRA(rank=RANK, target_modules=ATTENTION),
    "one layer": LoRA(rank=RANK, target_modules=r".*layers\.1\.self_attn\.v_proj"),
    "head saved": LoRA(rank=RANK, target_modules=["v_proj"], modules_to_save=["lm_head"]),
    "qlora": QLoRA(rank=RANK, target_modules=ATTENTION),
}
PLAIN = Stack(transformers="4.57", prepare_model_for_kbit_training=False)
"""Of the last release before 5, experts are modules of their own; what is not in four bits stays in 16."""
PAIRS = [(family, method) for family in CONFIGS for method in METHODS]


def plain(family: str) -> Stack:
    """The plain recipe, of today's release for a family that is not modelled in that one."""
    facts = FAMILIES[family]
    if facts.since <= minor_release(PLAIN.transformers):
        return PLAIN
    return PLAIN.replace(transformers=Stack().transformers, attn_implementation=facts.attention[0])


def job_of(family: str, method: Method, checkpointing: str = "none", stack: Stack | None = None) -> Job:
    training = TrainingSpec(micro_batch_size=BATCH, seq_len=SEQ, gradient_checkpointing=checkpointing)
    return Job(to_spec(CONFIGS[family], family), method, training, stack or plain(family))


def flops(found: Counted, *what: str, made_in: str = "") -> int:
    """Operations of parts, all of them or those of one pass."""
    return sum(n for (part, p, _), n in found.flops.items() if part in what and made_in in ("", p))


IN_LAYERS = ("layers", "adapters", "attention")
EVERYTHING = (*IN_LAYERS, "head")


# -- recomputation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_full_recomputation_makes_the_forward_pass_of_the_layers_again(family: str, method: str) -> None:
    """With it the first layer's input has a gradient, too, whatever trains."""
    without, again = (counted(job_of(family, METHODS[method], c)) for c in ("none", "reentrant"))
    for part in IN_LAYERS:
        forward = flops(without, part, made_in="forward")
        assert flops(again, part, made_in="forward") == forward
        more = flops(again, part, made_in="recomputation") - flops(without, part, made_in="recomputation")
        assert more - (part == "attention") * _newly_fused(family, method, without) == forward
        assert flops(again, part, made_in="weight gradients") == flops(without, part, made_in="weight gradients")
    assert flops(again, "head") == flops(without, "head")


def _newly_fused(family: str, method: str, without: Counted) -> int:
    """Scores that kernels make again in layers through which no gradient flows but for checkpointing."""
    if METHODS[method].kind == "full" or plain(family).attn_implementation == "eager":
        return 0
    product = flops(without, "attention", made_in="forward") // 2
    return product - flops(without, "attention", made_in="recomputation")


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_a_checkpoint_that_stops_early_computes_no_more(family: str, method: str) -> None:
    whole, early = (counted(job_of(family, METHODS[method], c)) for c in ("reentrant", "non_reentrant"))
    assert {k: n for k, n in early.flops.items() if k[1] != "recomputation"} == {
        k: n for k, n in whole.flops.items() if k[1] != "recomputation"
    }
    last = 2 * whole.tokens * _last_product(job_of(family, METHODS[method]))
    assert flops(whole, *EVERYTHING) - flops(early, *EVERYTHING) == last


def _last_product(job: Job) -> int:
    """Elements of what stands last in all layers; a sum over experts and a norm after it need what comes out of it."""
    spec = job.model
    needed = spec.num_local_experts or "post_feedforward_layernorm" in FAMILIES[spec.model_type].norms
    return 0 if needed else spec.hidden_size * spec.intermediate_size * spec.num_hidden_layers


# -- methods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", ["reentrant", "non_reentrant"])
@pytest.mark.parametrize("method", ["lora", "one layer", "head saved", "qlora"])
@pytest.mark.parametrize("family", CONFIGS)
def test_adapters_leave_out_the_gradients_of_frozen_weights_alone(family: str, method: str, checkpointing: str) -> None:
    full, adapted = (counted(job_of(family, METHODS[m], checkpointing)) for m in ("full", method))
    frozen = dict(adapted.flops)
    for key in [k for k in frozen if k[0] == "adapters"]:
        del frozen[key]
    parts = ("layers",) if method == "head saved" else ("layers", "head")
    assert frozen == {k: n for k, n in full.flops.items() if not (k[1] == "weight gradients" and k[0] in parts)}


@pytest.mark.parametrize("family", CONFIGS)
def test_an_adapter_takes_six_operations_an_element_and_token(family: str) -> None:
    job = job_of(family, METHODS["lora"], "reentrant")
    walked = Loop(job, Sizes.of(job), job.model.num_hidden_layers)
    found = counted(job)
    assert flops(found, "adapters", made_in="recomputation") == 2 * found.tokens * walked.trainable_params
    assert flops(found, "adapters") == 8 * found.tokens * walked.trainable_params


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
def test_four_bits_change_no_product(family: str, checkpointing: str) -> None:
    lora, qlora = (counted(job_of(family, METHODS[m], checkpointing)) for m in ("lora", "qlora"))
    assert lora.flops == qlora.flops


@pytest.mark.parametrize("checkpointing", ["none", "reentrant"])
def test_fused_adapters_multiply_twice_what_they_do_not_keep(checkpointing: str) -> None:
    """Unsloth's function of LoRA makes A X and dY B again for their weights, and always the gradient of its input."""
    stack = PLAIN.replace(autocast="bfloat16", attn_implementation="flash_attention_2")
    plain = counted(job_of("llama", METHODS["qlora"], checkpointing, stack))
    fused = counted(job_of("llama", METHODS["qlora"], checkpointing, stack.replace(fused_kernels="fms_acceleration")))
    more = {k: n - plain.flops.get(k, 0) for k, n in fused.flops.items() if n != plain.flops.get(k, 0)}
    again = more.pop(("adapters", "recomputation", "bfloat16"))
    assert again == flops(plain, "adapters", made_in="forward")
    first = job_of("llama", METHODS["qlora"]).model
    widths = (first.num_attention_heads + 2 * first.num_key_value_heads) * first.head_dim
    expected = {
        ("layers", "input gradients", "bfloat16"): 2 * plain.tokens * first.hidden_size * widths,
        ("adapters", "input gradients", "bfloat16"): 2 * plain.tokens * first.hidden_size * 3 * RANK,
    }
    assert more == (expected if checkpointing == "none" else {})


# -- families ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transformers", ["4.57", "5.13"])
def test_experts_multiply_what_they_are_sent_and_the_router_everything(transformers: str) -> None:
    job = job_of("mixtral", METHODS["full"], stack=PLAIN.replace(transformers=transformers))
    spec, found = job.model, counted(job)
    h, q, kv = spec.hidden_size, spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    experts = 3 * h * spec.intermediate_size * (spec.num_experts_per_tok or 0) + h * (spec.num_local_experts or 0)
    elements = spec.num_hidden_layers * (2 * h * q + 2 * h * kv + experts)
    assert flops(found, "layers", made_in="forward") == 2 * found.tokens * elements


def test_losses_without_logits_count_the_head_as_often_as_they_multiply() -> None:
    """TRL's makes the logits twice, and none of the last position; Liger's makes gradients where it makes logits."""
    full, chunked, fused = (
        counted(job_of("llama", METHODS["full"], stack=PLAIN.replace(transformers="5.13", loss=loss)))
        for loss in ("full", "chunked", "fused_linear")
    )
    assert fused.flops == full.flops
    assert flops(chunked, "head") * 3 * SEQ == flops(full, "head") * 4 * (SEQ - 1)


def test_grouped_heads_in_float32_have_no_fused_kernel() -> None:
    """Torch falls back to products of its own, which keep the scores: nothing is made again."""
    stack = PLAIN.replace(transformers="5.13", dtype="float32")
    grouped, copied = (
        counted(job_of("llama", METHODS["full"], stack=stack.replace(repeats_kv=repeats))) for repeats in (False, True)
    )
    forward = flops(grouped, "attention", made_in="forward")
    assert flops(copied, "attention") == forward * 7 // 2
    assert flops(grouped, "attention") == forward * 3


# -- bytes -------------------------------------------------------------------------------------------------------------


def moves_of(job: Job) -> list[Move]:
    """Moves of one micro-batch, at the depth of the small configurations."""
    loop = Loop(job, Sizes.of(job), job.model.num_hidden_layers, counts=True)
    with few_layers.without_cycle_collector():
        loop.steady_step()
    assert isinstance(loop.work, Work)
    return [m for m in loop.work.moves if m.phase.startswith("step.0.")]


def layer_moves(moves: list[Move], made_in: str) -> Counter[tuple[object, ...]]:
    return Counter((m.op, m.module, m.read, m.written) for m in moves if m.layer is not None and m.made_in == made_in)


@pytest.mark.parametrize(("family", "method"), PAIRS)
def test_full_recomputation_moves_what_the_forward_pass_moved(family: str, method: str) -> None:
    """But for what a router divides in place, which it copies where its gradient is needed."""
    moves = moves_of(job_of(family, METHODS[method], "reentrant"))
    moves = [m for m in moves if m.op != "clone" or not m.module.endswith("block_sparse_moe")]
    assert layer_moves(moves, "recomputation") == layer_moves(moves, "forward")


def test_a_product_reads_its_operands_and_writes_its_result() -> None:
    job = job_of("llama", METHODS["full"])
    h, i, n = job.model.hidden_size, job.model.intermediate_size, BATCH * SEQ
    up = [m for m in moves_of(job) if m.module == "model.layers.1.mlp.up_proj"]
    assert [(m.made_in, m.op, m.read, m.written) for m in up] == [
        ("forward", "mm", 2 * (n * h + h * i), 2 * n * i),
        ("backward", "mm", 2 * (n * h + h * i + n * i), 2 * (n * h + h * i)),
    ]


def test_a_norm_written_out_goes_through_memory_operation_by_operation() -> None:
    """``LlamaRMSNorm.forward``: raised to float32, squared, averaged, scaled, lowered, and times the weight."""
    job = job_of("llama", METHODS["lora"], "reentrant")
    h, n = job.model.hidden_size, BATCH * SEQ
    norm = [
        m
        for m in moves_of(job)
        if m.module == "model.layers.1.input_layernorm" and (m.made_in, m.phase) == ("forward", "step.0.forward")
    ]
    assert [(m.op, m.read // n, m.written // n) for m in norm] == [
        ("to", 2 * h, 4 * h),
        ("pow", 4 * h, 4 * h),
        ("mean", 4 * h, 4),
        ("add", 4, 4),
        ("rsqrt", 4, 4),
        ("mul", 4 * h + 4, 4 * h),
        ("to", 4 * h, 2 * h),
        ("mul", 2 * h + 2 * h // n, 2 * h),
    ]


def test_views_move_nothing() -> None:
    moves = moves_of(job_of("qwen3", METHODS["full"]))
    assert not {m.op for m in moves if m.made_in == "forward"} & {"view", "transpose", "reshape", "slice"}


# -- the walk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_few_walked_layers_count_as_many(method: str, checkpointing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = to_spec({**CONFIGS["llama"], "num_hidden_layers": 9}, "llama")
    training = TrainingSpec(micro_batch_size=BATCH, seq_len=SEQ, gradient_checkpointing=checkpointing)
    job = Job(deep, METHODS[method], training, PLAIN)
    few = counted(job)
    counted.cache_clear()
    monkeypatch.setattr(counting, "depths_of", lambda job: [job.model.num_hidden_layers])
    assert counted(job) == few
    counted.cache_clear()


@pytest.mark.parametrize("method", METHODS)
def test_counting_leaves_the_tape_as_it_is(method: str) -> None:
    job = job_of("qwen3", METHODS[method], "non_reentrant")
    silent, counts = (Loop(job, Sizes.of(job), 3, counts=c) for c in (False, True))
    for loop in (silent, counts):
        with few_layers.without_cycle_collector():
            loop.steady_step()
    assert counts.tape.events == silent.tape.events
    assert isinstance(counts.work, Work)
    assert counts.work.products
    assert not isinstance(silent.work, Work)


def test_symbols_count_what_numbers_do() -> None:
    job = job_of("llama", METHODS["lora"], "reentrant")
    symbols = Symbols(batch=3, seq=40, rank=8)
    loops = Loop(job, Sizes(**symbols.dims), 3, counts=True), Loop(job, Sizes.of(job), 3, counts=True)
    for loop in loops:
        with few_layers.without_cycle_collector():
            loop.steady_step()
    general, special = (loop.work for loop in loops)
    assert isinstance(general, Work)
    assert isinstance(special, Work)
    import numpy as np

    values = {name: np.array([n]) for name, n in (("batch", BATCH), ("seq", SEQ), ("rank", RANK))}
    found = [int(np.asarray(evaluate(p.flops, values)).item()) for p in general.products]
    assert found == [p.flops for p in special.products]
    moved = [int(np.asarray(evaluate(m.read + m.written, values)).item()) for m in general.moves]
    assert moved == [m.read + m.written for m in special.moves]


def test_what_trains_uncounted_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose products nobody counts must not get the time of one that multiplies less."""
    real = Work.multiplied

    def forgetful(self: Work, owner: str, *args: object, **settings: object) -> None:
        if "lora_B" not in owner:
            real(self, owner, *args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(Work, "multiplied", forgetful)
    job = Job(catalog.model("llama-3.2-1b"), METHODS["lora"], TrainingSpec(seq_len=SEQ), PLAIN)
    counted.cache_clear()
    with pytest.raises(Unsupported, match=r"lora: work of .*q_proj\.lora_B\.weight.* is not counted"):
        counted(job)
