"""A mixture of experts: shares of a balanced router, what each release can train, and peaks measured on GPUs."""

from __future__ import annotations

import re
from typing import Any

import pytest
from configs import CONFIGS
from hypothesis import given
from hypothesis import strategies as st

from vramcalc import LoRA, estimate
from vramcalc.errors import Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.hf_config import to_spec
from vramcalc.shadow.families.common.experts import balanced_share
from vramcalc.timing import matrices
from vramcalc.timing.matrices import Matrices

TINY = to_spec(CONFIGS["mixtral"], "mixtral")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MODEL = "mistralai/Mixtral-8x7B-Instruct-v0.1"


# -- laws --------------------------------------------------------------------------------------------------------------


@given(pairs=st.integers(0, 1 << 24), experts=st.integers(1, 64))
def test_shares_of_a_balanced_router_sum_to_all_and_differ_by_one_at_most(pairs: int, experts: int) -> None:
    shares = [balanced_share(pairs, experts, i) for i in range(experts)]
    assert sum(shares) == pairs
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("transformers", ["4.44", "4.57", "5.23"])
def test_more_tokens_per_step_and_more_experts_per_token_take_more(transformers: str) -> None:
    def peak(per_token: int = 2, **settings: Any) -> int:
        model = TINY.replace(num_experts_per_tok=per_token)
        return estimate(model, "full", transformers=transformers, seq_len=512, **settings).allocated_bytes

    assert peak() < peak(micro_batch_size=2)
    assert peak(1) < peak(2) < peak(5)


def test_every_expert_more_adds_its_three_matrices_and_a_row_of_the_router() -> None:
    more = TINY.replace(num_local_experts=6)
    h, i = TINY.hidden_size, TINY.intermediate_size
    assert more.params_total - TINY.params_total == TINY.num_hidden_layers * (3 * h * i + h)


@pytest.mark.parametrize(("transformers", "lists"), [("4.38", 3), ("4.39", 3), ("4.40", 0), ("4.57", 0)])
def test_lists_of_tokens_are_indices_three_times_an_expert(transformers: str, lists: int) -> None:
    """``hidden_states[None, top_x_list]`` and ``routing_weights[top_x_list, idx_list]`` up to 4.39."""
    program = estimate(TINY, "full", transformers=transformers, seq_len=40).walks.written_out.program
    first = {n for s in program.segments if s.phase == "step0.0.forward" for n in program.events[s.start : s.stop]}
    made = [n for n in first if n >= 0 and program.births[n].op == "list of tokens" and program.births[n].layer == 0]
    assert len(made) == lists * (TINY.num_local_experts or 0)


# -- what trains -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "trainable"),
    [("all-linear", 46524), (["w1"], 13440), (["gate", "w2"], 14268), (["q_proj", "w3"], 14976)],
    ids=str,
)
def test_adapters_on_experts_are_those_that_peft_makes(targets: Any, trainable: int) -> None:
    """Counted by PEFT 0.13.2 and 0.18.0 on transformers 4.45.2 and 4.57.1, alike."""
    found = estimate(TINY, LoRA(rank=4, target_modules=targets), transformers="4.57", seq_len=32)
    assert (found.trainable_params, found.total_params) == (trainable, 564608)


def test_adapters_on_one_layers_experts_are_not_repeated() -> None:
    deep = TINY.replace(num_hidden_layers=9)
    method = LoRA(rank=4, target_modules=["layers.1.block_sparse_moe.experts.4.w1"])
    found = estimate(deep, method, transformers="4.57", seq_len=32)
    assert found.trainable_params == 4 * (TINY.hidden_size + TINY.intermediate_size)


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "experts in one tensor": (LoRA(target_modules=["w1"]), {}, "what PEFT makes of a pattern"),
    "a pattern": (LoRA(), {}, "transformers='4.57'"),
    "experts in float32": ("full", {"dtype": "float32"}, "bfloat16"),
    "experts raised to float32": ("qlora", {"target_modules": ATTENTION}, "prepare_model_for_kbit_training=False"),
    "an unchecked release": ("full", {"transformers": "5.0"}, r"use 5\.13 and 5\.23, or 4\.57 or earlier"),
    "a fused loss": ("full", {"loss": "fused_linear"}, "use loss='full'"),
    "a saved router": (
        LoRA(target_modules=["q_proj"], modules_to_save={"gate"}),
        {"transformers": "4.57"},
        "leave them out",
    ),
}


@pytest.mark.parametrize(("method", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_what_no_trace_was_compared_with_is_refused(method: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        estimate(TINY, method, seq_len=32, **settings)


@pytest.mark.parametrize(
    "change", [{"sliding_window": 4096}, {"output_router_logits": True}, {"router_jitter_noise": 0.1}], ids=str
)
def test_a_configuration_that_makes_other_tensors_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Unsupported, match=next(iter(change))):
        to_spec({**CONFIGS["mixtral"], **change}, "here")


# -- work --------------------------------------------------------------------------------------------------------------


def test_a_token_is_multiplied_by_its_own_experts_alone() -> None:
    """The matrices of the specification are those of the table of FLOPs."""
    made, known = Matrices.of(catalog.model(MODEL)), matrices.known()[MODEL.lower()]
    assert (made.linears, made.inner_size, made.total_params) == (known.linears, known.inner_size, known.total_params)


# -- what a user is told -----------------------------------------------------------------------------------------------


def test_the_assumed_router_is_named_where_memory_depends_on_it() -> None:
    loop = estimate(TINY, "full", transformers="4.57", micro_batch_size=2, seq_len=100)
    assert any(re.search("balanced router.* 80 of 200 tokens for each of 5 experts", w) for w in loop.warnings)
    assert not any("router" in w for w in estimate(TINY, "full", seq_len=100).warnings)


# -- measured ----------------------------------------------------------------------------------------------------------

A100: dict[str, Any] = {
    "gpu": "a100-sxm-80",
    "micro_batch_size": 4,
    "seq_len": 4096,
    "attn_implementation": "flash_attention_2",
    "gradient_checkpointing": "reentrant",
    "optim": "adamw_torch",
}
LORA: dict[str, Any] = {"rank": 16, "target_modules": ATTENTION, "lora_dropout": 0.1}


@pytest.mark.parametrize(
    ("transformers", "dtype", "prepared", "measured_bytes", "within"),
    [
        ("4.43", "float16", False, 36218622464, 5e-5),
        ("4.44", "bfloat16", False, 36218023424, 5e-5),
        ("4.45", "bfloat16", False, 36218023424, 5e-5),
        ("4.48", "bfloat16", False, 36731843072, 5e-5),
        # The peak is among the experts, and the real router was not balanced.
        ("4.43", "float16", True, 44196393984, 8e-3),
    ],
)
def test_allocated_is_what_torch_reported_of_mixtral_on_an_a100(
    transformers: str, dtype: str, prepared: bool, measured_bytes: int, within: float
) -> None:
    """``max_memory_allocated`` of QLoRA, foundation-model-stack/fms-acceleration scripts/benchmarks/refs."""
    settings: dict[str, Any] = {"dtype": dtype, "autocast": dtype, "bnb_4bit_compute_dtype": dtype}
    found = estimate(
        MODEL,
        "qlora",
        transformers=transformers,
        prepare_model_for_kbit_training=prepared,
        **A100,
        **LORA,
        **settings,
    )
    assert found.block_bytes == pytest.approx(measured_bytes, rel=within)


@pytest.mark.parametrize("transformers", ["4.43", "4.45", "4.48"])
@pytest.mark.parametrize("batch", [4, 8])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_ran_out_of_memory_on_an_a100_does_not_fit_it(transformers: str, batch: int, method: str) -> None:
    """Runs without metrics in foundation-model-stack/fms-acceleration scripts/benchmarks/refs."""
    settings = {**A100, "micro_batch_size": batch, **(LORA if method == "lora" else {}), "autocast": None}
    found = estimate(MODEL, method, transformers=transformers, **settings)
    assert found.gpu is not None
    assert found.process_bytes > found.gpu.total_bytes
