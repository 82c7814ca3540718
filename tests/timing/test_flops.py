"""FLOPs of a step: laws, cited values, and the operations that torch counts in the real libraries."""

from __future__ import annotations

from typing import Any

import pytest
from configs import CONFIGS
from hypothesis import given
from hypothesis import strategies as st

from vramcalc import tables
from vramcalc.errors import DataError, InvalidValue, Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.stack import (
    AdaLoRA,
    DoRA,
    FullFineTuning,
    LoRA,
    Method,
    PrefixTuning,
    PromptTuning,
    PTuning,
    QLoRA,
    Stack,
    TrainingSpec,
)
from vramcalc.timing import matrices
from vramcalc.timing.flops import Flops, Tokens, seen, step_flops
from vramcalc.timing.matrices import Matrices

LLAMA = catalog.model("llama-3.1-8b")
METHODS: dict[str, Method] = {
    "full": FullFineTuning(),
    "all": LoRA(rank=4),
    "q, v": LoRA(rank=4, target_modules=["q_proj", "v_proj"]),
    "down": LoRA(rank=4, target_modules=["down_proj"]),
    "head saved": LoRA(rank=4, target_modules=["v_proj"], modules_to_save=["lm_head"]),
    "head": LoRA(rank=4, target_modules=["up_proj", "lm_head"], lora_dropout=0.1),
    "one layer": LoRA(rank=4, target_modules=r".*layers\.1\.mlp\.up_proj"),
    "embedding": LoRA(rank=4, target_modules=["o_proj", "embed_tokens"]),
}
TRAINING = TrainingSpec(micro_batch_size=2, seq_len=24)


def counted(method: Method = METHODS["full"], stack: Stack | None = None, **training: Any) -> Flops:
    return step_flops(LLAMA, method, TrainingSpec(**{"seq_len": 512, **training}), stack)


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attribute", ["what", "phase", "dtype"])
def test_rows_sum_to_the_whole(attribute: Any) -> None:
    found = counted(METHODS["all"], gradient_checkpointing="reentrant", gradient_accumulation_steps=3)
    assert sum(found.by(attribute).values()) == found.total == sum(r.flops for r in found.rows)


def test_checkpointing_adds_one_forward_pass_of_the_layers() -> None:
    without, again = counted(), counted(gradient_checkpointing="reentrant")
    layers = sum(r.flops for r in without.rows if r.phase == "forward" and r.what != "head")
    assert again.total - without.total == layers
    assert again.model == without.model


def test_a_non_reentrant_checkpoint_stops_before_the_last_product() -> None:
    all_of_it, early = (counted(gradient_checkpointing=c) for c in ("reentrant", "non_reentrant"))
    last = 2 * 512 * LLAMA.hidden_size * LLAMA.intermediate_size * LLAMA.num_hidden_layers
    assert all_of_it.total - early.total == last


def test_a_frozen_weight_has_no_gradient() -> None:
    found = counted(METHODS["all"])
    assert [r.what for r in found.rows if r.phase == "weight gradients"] == ["adapters"]


def test_nothing_flows_below_the_first_adapter() -> None:
    """Queries, keys and values of the first layer take the embedding's output, which nothing trains."""
    layers, first = counted(METHODS["all"]), 2 * 512 * LLAMA.hidden_size * (4096 + 1024 + 1024)
    forward, backward = (
        sum(r.flops for r in layers.rows if r.what == "layers" and r.phase == phase)
        for phase in ("forward", "input gradients")
    )
    assert forward - backward == first


@pytest.mark.parametrize("method", METHODS)
def test_full_fine_tuning_computes_most(method: str) -> None:
    assert counted(METHODS[method]).total <= counted().total


def test_a_prepared_head_computes_in_float32() -> None:
    found = counted(QLoRA(), Stack(dtype="bfloat16"))
    assert {r.dtype for r in found.rows if r.what == "head"} == {"float32"}
    assert {r.dtype for r in found.rows if r.what == "layers"} == {"bfloat16"}


@given(st.integers(1, 4), st.integers(2, 600), st.integers(1, 4))
def test_projections_grow_with_tokens_and_attention_with_pairs(batch: int, seq: int, accumulation: int) -> None:
    found = counted(micro_batch_size=batch, seq_len=seq, gradient_accumulation_steps=accumulation, optim="sgd")
    one = counted(seq_len=1)
    n = batch * seq * accumulation
    assert found.by("what")["layers"] == n * one.by("what")["layers"]
    pairs = batch * accumulation * seq * (seq + 1) // 2
    assert found.by("what")["attention"] == pairs * one.by("what")["attention"]


@given(st.integers(1, 200), st.integers(1, 200))
def test_a_window_hides_what_is_behind_it(length: int, window: int) -> None:
    assert seen(length, window) == sum(min(i + 1, window) for i in range(length))


def test_packing_computes_real_tokens_and_padding_the_rectangle() -> None:
    lengths = [3, 5, 2]
    packed, padded = Tokens.packed(lengths), Tokens.padded(lengths)
    assert (packed.computed, packed.real, packed.pairs) == (10, 10, 6 + 15 + 3)
    assert (padded.computed, padded.real, padded.pairs, padded.square) == (15, 10, 45, 75)


@pytest.mark.parametrize("lengths", [[], [0], [-1], [1.5], [True]])
def test_lengths_are_whole_numbers_of_tokens(lengths: list[Any]) -> None:
    with pytest.raises(InvalidValue, match="lengths"):
        Tokens.packed(lengths)


def test_a_rectangle_holds_its_longest_sequence() -> None:
    with pytest.raises(InvalidValue, match="longest = 4"):
        Tokens.padded([5], 4)


def test_steps_of_several_lengths_are_taken_one_at_a_time() -> None:
    with pytest.raises(Unsupported, match="one at a time"):
        step_flops(LLAMA, FullFineTuning(), TrainingSpec(seq_lens=(8, 16)))


# -- cited values ------------------------------------------------------------------------------------------------------


def test_six_operations_per_matrix_element_and_token() -> None:
    """Kaplan et al. 2020, sec. 2.1: 6 N per token, where N leaves the embedding out and attention is apart."""
    found = counted()
    elements = LLAMA.params_total - LLAMA.vocab_size * LLAMA.hidden_size - 65 * LLAMA.hidden_size  # norms multiply not
    assert found.total - found.by("what")["attention"] == 6 * elements * 512


def test_torchtitan_prints_its_utilisation_by_the_same_count() -> None:
    """torchtitan benchmarks/llama3_h100_202412: 6,667 tokens/s per GPU of Llama 3.1 8B at 8,192 tokens with compile.

    Its rule is PaLM's, with half of the square: 343.2 TFLOP/s, which a published table derives from it.
    """
    found = counted(seq_len=8192)
    assert found.model / 8192 * 6667 / 1e12 == pytest.approx(343.2, abs=0.1)


@pytest.mark.parametrize(
    ("model", "tokens_per_s", "tflops"), [("qwen/qwen-14b", 650.2, 35.2), ("qwen/qwen-72b", 130.0, 37.2)]
)
def test_lora_without_its_adapters_takes_four_operations(model: str, tokens_per_s: float, tflops: float) -> None:
    """Rates that a published table derives from Qwen's README at 512 tokens, frozen weights without gradients."""
    training = TrainingSpec(seq_len=512, gradient_checkpointing="reentrant")
    targets = ["c_attn", "attn.c_proj", "w1", "w2"]
    found = step_flops(matrices.known()[model], LoRA(rank=64, target_modules=targets), training)
    adapters = sum(r.flops for r in found.rows if r.what == "adapters" and r.phase != "recomputation")
    needed = found.model - adapters
    assert needed / 512 * tokens_per_s / 1e12 == pytest.approx(tflops, abs=0.06)


# -- matrices ----------------------------------------------------------------------------------------------------------


def test_every_row_of_the_matrices_has_a_source_and_a_date() -> None:
    for row in tables.read("matrices"):
        assert row["source"]
        assert tables.checked_on(row)


@pytest.mark.parametrize("row", tables.read("matrices"), ids=lambda r: r["hf_id"])
def test_matrices_make_up_the_parameters(row: tables.Row) -> None:
    """Biases, norms and learned positions are all that projections and embeddings leave."""
    m = matrices.known()[row["hf_id"].lower()]
    embeddings = (1 if m.tied or not m.vocab_size else 2) * (m.vocab_size or 30522) * m.hidden_size
    rest = m.total_params - m.layer_params * m.num_hidden_layers - embeddings
    assert 0 <= rest < 0.006 * m.total_params


def test_two_tables_agree_on_a_model_that_both_hold() -> None:
    models = {row["hf_id"]: row for row in tables.read("models")}
    both = [(row, models[row["hf_id"]]) for row in tables.read("matrices") if row["hf_id"] in models]
    same = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim", "params_total")
    assert len(both) == 2
    assert [row["hf_id"] for row, other in both for column in same if row[column] != other[column]] == []


def test_an_unknown_layout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**tables.read("matrices")[0], "layout": "mamba"}
    monkeypatch.setattr(tables, "read", lambda name: (row,))
    matrices.known.cache_clear()
    try:
        with pytest.raises(DataError, match="layout = 'mamba'"):
            matrices.known()
    finally:
        matrices.known.cache_clear()


def test_only_the_experts_that_a_token_visits_count() -> None:
    mixtral = matrices.known()["mistralai/mixtral-8x7b-v0.1"]
    assert [(x.copies, x.active) for x in mixtral.linears if x.role == "up"] == [(8, 2)]
    found = step_flops(mixtral, FullFineTuning(), TrainingSpec(seq_len=1))
    mlp = 6 * 3 * 2 * 4096 * 14336 * 32
    attention = 6 * 2 * (4096 + 1024) * 4096 * 32
    assert found.by("what")["layers"] == mlp + attention


# -- agreement with torch ----------------------------------------------------------------------------------------------


def torch_counts(family: str, method: Method, training: TrainingSpec, stack: Stack) -> int:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from vramcalc.profiling.real.libraries import attach, build_model

    spec = to_spec(CONFIGS[family], family)
    model = attach(build_model(spec, stack), method, training, stack, prepare_kbit=lambda _: None)
    ids = torch.zeros(training.micro_batch_size, training.seq_len, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids)).loss.backward()
    return int(counter.get_total_flops())


CASES = [
    *[("llama", method, c) for method in METHODS for c in ("none", "reentrant", "non_reentrant")],
    *[
        (f, method, c)
        for f in ("mistral", "qwen2", "qwen3")
        for method in ("full", "all")
        for c in ("none", "reentrant")
    ],
]


@pytest.mark.trace
@pytest.mark.parametrize(("family", "method", "checkpointing"), CASES)
def test_torch_counts_the_same_products(family: str, method: str, checkpointing: str) -> None:
    """Exactly: eager attention computes the whole square, which the counter sees as batched products."""
    training = TRAINING.replace(gradient_checkpointing=checkpointing)
    stack = Stack(dtype="float32", attn_implementation="eager")
    found = step_flops(to_spec(CONFIGS[family], family), METHODS[method], training, stack, square=True)
    assert found.total == torch_counts(family, METHODS[method], training, stack)


@pytest.mark.trace
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_torch_counts_the_same_products_of_dora(family: str, checkpointing: str, dropout: float) -> None:
    """An identity matrix goes through LoRA's matrices for the norm; behind dropout the base layer runs twice."""
    method = DoRA(rank=4, target_modules=["q_proj", "up_proj", "down_proj"], lora_dropout=dropout)
    training = TRAINING.replace(gradient_checkpointing=checkpointing)
    stack = Stack(dtype="float32", attn_implementation="eager")
    found = step_flops(to_spec(CONFIGS[family], family), method, training, stack, square=True)
    assert found.total == torch_counts(family, method, training, stack)


VIRTUAL: list[tuple[Method, str]] = [
    (PromptTuning(num_virtual_tokens=7), "none"),
    (PromptTuning(num_virtual_tokens=7), "reentrant"),
    (PromptTuning(num_virtual_tokens=7), "non_reentrant"),
    (PTuning(num_virtual_tokens=5, encoder_hidden_size=24), "none"),
    (PTuning(num_virtual_tokens=5), "reentrant"),
    (PrefixTuning(num_virtual_tokens=6), "none"),
    (PrefixTuning(num_virtual_tokens=6, prefix_projection=True, encoder_hidden_size=24), "none"),
]


@pytest.mark.trace
@pytest.mark.parametrize(("method", "checkpointing"), VIRTUAL)
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_torch_counts_the_same_products_with_virtual_tokens(family: str, method: Method, checkpointing: str) -> None:
    """Those of longer sequences, or of more keys, and of the encoder."""
    training = TRAINING.replace(gradient_checkpointing=checkpointing)
    stack = Stack(dtype="float32", attn_implementation="eager")
    found = step_flops(to_spec(CONFIGS[family], family), method, training, stack, square=True)
    assert found.total == torch_counts(family, method, training, stack)


@pytest.mark.trace
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_torch_counts_the_same_products_of_adalora(family: str, checkpointing: str, dropout: float) -> None:
    """The regularization multiplies each of an adapter's matrices with itself, whatever the batch is."""
    method = AdaLoRA(init_r=4, target_r=2, target_modules=["q_proj", "up_proj", "down_proj"], lora_dropout=dropout)
    training = TRAINING.replace(gradient_checkpointing=checkpointing)
    stack = Stack(dtype="float32", attn_implementation="eager")
    found = step_flops(to_spec(CONFIGS[family], family), method, training, stack, square=True)
    assert found.total == torch_counts(family, method, training, stack)


@pytest.mark.trace
@pytest.mark.parametrize("method", ["full", "all", "down"])
def test_torch_counts_the_same_projections_around_fused_attention(method: str) -> None:
    """The counter has no rule for the CPU's attention kernel, and so counts all but attention."""
    stack = Stack(dtype="float32", attn_implementation="sdpa")
    found = step_flops(to_spec(CONFIGS["llama"], "llama"), METHODS[method], TRAINING, stack)
    assert found.total - found.by("what")["attention"] == torch_counts("llama", METHODS[method], TRAINING, stack)


@pytest.mark.trace
def test_torch_counts_a_fused_backward_with_its_scores_made_again() -> None:
    """``sdpa_flop_count`` and ``sdpa_backward_flop_count``: two products forward, five backward, over the square."""
    from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

    shape = (2, LLAMA.num_attention_heads, 512, LLAMA.head_dim)
    found = step_flops(LLAMA, FullFineTuning(), TrainingSpec(micro_batch_size=2, seq_len=512), Stack(), square=True)
    once = sdpa_flop_count(shape, shape, shape) + sdpa_backward_flop_count(shape, shape, shape, shape)
    assert found.by("what")["attention"] == LLAMA.num_hidden_layers * once


@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
@pytest.mark.parametrize("method", METHODS)
def test_a_family_and_its_outline_count_the_same(method: str, checkpointing: str) -> None:
    """The walk of a family's own modules, and that of projections by their sizes alone."""
    training = TRAINING.replace(gradient_checkpointing=checkpointing)
    family, outline = (step_flops(model, METHODS[method], training) for model in (LLAMA, Matrices.of(LLAMA)))
    assert family == outline
