"""Gemma 2: parameters that its report names, laws of its windows and soft caps, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from configs import CONFIGS

from vramcalc import estimate
from vramcalc.errors import BadConfig, Unsupported
from vramcalc.inputs import catalog
from vramcalc.inputs.hf_config import to_spec
from vramcalc.inputs.stack import FullFineTuning, ModelSpec, Stack, TrainingSpec
from vramcalc.memory import walks
from vramcalc.shadow.depth import few_layers
from vramcalc.timing.flops import step_flops

TINY = to_spec(CONFIGS["gemma2"], "gemma2")


# -- published ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outside_the_embedding"),
    [("gemma-2-2b", 2_024_517_888), ("gemma-2-9b", 8_324_201_984), ("gemma-2-27b", 26_047_480_320)],
)
def test_parameters_outside_the_embedding_are_those_of_the_report(name: str, outside_the_embedding: int) -> None:
    """Gemma Team, "Gemma 2: Improving Open Language Models at a Practical Size", table 2. arXiv:2408.00118

    Its embedding has rows for 256,128 tokens, of which the released models keep 256,000.
    """
    model = catalog.model(name)
    assert model.params_total - model.vocab_size * model.hidden_size == outside_the_embedding
    assert model.vocab_size == 256_000
    assert model.tie_word_embeddings


@pytest.mark.parametrize("name", ["gemma-2-2b", "google/gemma-2-9b-it"])
def test_layers_see_4096_tokens_in_turns_and_caps_are_50_and_30(name: str) -> None:
    """The report, section 2."""
    model = catalog.model(name)
    assert (model.sliding_window, model.max_position_embeddings) == (4096, 8192)
    assert (model.attn_logit_softcapping, model.final_logit_softcapping) == (50.0, 30.0)


# -- laws --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "non_reentrant"])
def test_repeated_layers_stand_for_all_of_them(
    method: str, checkpointing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind of mask is let go of by the second layer, the other by the first."""

    def totals() -> tuple[int, int, int]:
        walks.walks_of.cache_clear()
        found = estimate(model, method, seq_len=96, gradient_checkpointing=checkpointing)
        return found.allocated_bytes, found.block_bytes, found.reserved_bytes

    model = TINY.replace(num_hidden_layers=9)
    repeated = totals()
    monkeypatch.setattr(few_layers, "WALKED_LAYERS", ())
    assert totals() == repeated


@pytest.mark.parametrize("cap", ["attn_logit_softcapping", "final_logit_softcapping"])
@pytest.mark.parametrize("checkpointing", ["none", "reentrant"])
def test_a_soft_cap_never_takes_less(cap: str, checkpointing: str) -> None:
    recipe: dict[str, Any] = {"seq_len": 96, "gradient_checkpointing": checkpointing}
    capped, plain = (estimate(m, "full", **recipe) for m in (TINY, TINY.replace(**{cap: None})))
    assert capped.allocated_bytes >= plain.allocated_bytes


def test_capped_scores_are_kept_once_a_layer_beside_their_softmax() -> None:
    """The hyperbolic tangent keeps its result, in the dtype of the scores."""
    recipe: dict[str, Any] = {"seq_len": 512, "dtype": "bfloat16", "autocast": None}
    capped, plain = (estimate(m, "full", **recipe) for m in (TINY, TINY.replace(attn_logit_softcapping=None)))

    def kept(found: Any) -> int:
        return sum(row.n_bytes for row in found.rows if row.why.startswith("saved for tanh"))

    scores = 2 * TINY.num_attention_heads * 512 * 512
    assert kept(capped) - kept(plain) == TINY.num_hidden_layers * scores


@pytest.mark.parametrize("seq_len", [32, 48, 96])
def test_there_are_two_masks_whatever_the_length(seq_len: int) -> None:
    def masks(model: ModelSpec) -> int:
        found = estimate(model, "full", seq_len=seq_len, micro_batch_size=3, attn_implementation="eager")
        births = found.walks.written_out[0].births
        return sum(b.op == "attention mask" and b.shape == (3, 1, seq_len, seq_len) for b in births)

    assert masks(TINY) == 2 * masks(to_spec(CONFIGS["llama"], "llama")) > 0


def test_flash_attention_is_given_no_mask_and_keeps_no_scores() -> None:
    eager, flash = (estimate(TINY, "lora", seq_len=300, attn_implementation=a) for a in ("eager", "flash_attention_2"))
    assert flash.allocated_bytes < eager.allocated_bytes
    assert not any(row.shape[-2:] == (300, 300) for row in flash.rows)


def test_attention_is_counted_with_the_window_of_each_layer() -> None:
    """Layers 1 and 3 see 48 tokens, layer 2 all before it."""

    def flops(model: ModelSpec) -> int:
        training, stack = TrainingSpec(seq_len=384), Stack(attn_implementation="flash_attention_2")
        return step_flops(model, FullFineTuning(), training, stack).by("what")["attention"]

    everything, window = 384 * 385 // 2, 48 * 49 // 2 + (384 - 48) * 48
    mean = (2 * window + everything) / 3
    assert flops(TINY) / flops(TINY.replace(sliding_window=384)) == pytest.approx(mean / everything, rel=1e-4)


# -- refused -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attn_implementation": "sdpa"}, "no attn_implementation='sdpa' for gemma2; use 'eager' or"),
        ({"transformers": "5.22"}, "no trace has been compared with; use 5.23 or later"),
        ({"transformers": "4.57"}, "no trace has been compared with; use 5.23 or later"),
        ({"loss": "fused_linear"}, "soft-capped; use loss='full'"),
        ({"loss": "chunked"}, "soft-capped; use loss='full'"),
        ({"fused_kernels": "fms_acceleration", "dtype": "bfloat16"}, "patches .* here, not gemma2"),
    ],
)
def test_what_has_not_been_compared_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        estimate(TINY, "lora", **{"seq_len": 64, **settings})


def test_a_copy_of_the_embedding_in_other_16_bits_than_autocast_stops_over_four_bit_layers() -> None:
    """Norms give back bfloat16, and ``torch.cat`` of rotary positions refuses it under autocast of float16."""
    settings: dict[str, Any] = {"seq_len": 64, "dtype": "float32", "autocast": "float16", "adapter_dtype": "bfloat16"}
    copied = {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    with pytest.raises(Unsupported, match="queries and keys without an adapter keep that dtype"):
        estimate(TINY, "qlora", **settings, **copied)
    assert estimate(TINY, "qlora", **settings, target_modules=["q_proj"]).allocated_bytes > 0
    assert estimate(to_spec(CONFIGS["llama"], "llama"), "qlora", **settings, **copied).allocated_bytes > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_activation": "gelu"}, "hidden_activation 'gelu' is not modelled; supported: 'gelu_pytorch_tanh'"),
        ({"layer_types": ["full_attention"] * 3}, "layer_types .* in turns"),
        ({"use_bidirectional_attention": True}, "use_bidirectional_attention is not modelled"),
    ],
)
def test_a_configuration_that_moves_memory_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Unsupported, match=message):
        to_spec({**CONFIGS["gemma2"], **changes}, "here")


@pytest.mark.parametrize(("key", "value"), [("sliding_window", None), ("final_logit_softcapping", 0)])
def test_a_broken_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(BadConfig, match=key):
        to_spec({**CONFIGS["gemma2"], key: value}, "here")
