"""A model small enough to walk a thousand times, and the settings that laws are tried with."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from vramcalc import Estimate, ModelSpec, estimate
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.inputs.stack import OWN_LOSSES, KeepsOutputs, LossKind

METHODS = tuple(METHOD_CLASSES)
CHECKPOINTING = ("none", "reentrant", "non_reentrant")

SETTINGS = st.fixed_dictionaries(
    {
        "micro_batch_size": st.integers(1, 5),
        "seq_len": st.integers(2, 700),
        "gradient_checkpointing": st.sampled_from(CHECKPOINTING),
        "gradient_accumulation_steps": st.integers(1, 3),
        "optim": st.sampled_from(["adamw_torch_fused", "adamw_torch", "adamw_bnb_8bit", "sgd", "adafactor"]),
        "padded": st.booleans(),
        "autocast": st.sampled_from([None, "bfloat16"]),
        "loss": st.sampled_from(get_args(LossKind)),
        "attn_implementation": st.sampled_from(["sdpa", "eager"]),
        "keeps_outputs": st.sampled_from(get_args(KeepsOutputs)),
        "zero_grad": st.sampled_from(["start", "end"]),
        "zero_grad_set_to_none": st.booleans(),
    }
)

TINY = ModelSpec(
    name="tiny",
    model_type="llama",
    hidden_size=256,
    intermediate_size=704,
    num_hidden_layers=6,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    vocab_size=1000,
    max_position_embeddings=4096,
)


def going_with(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, those that a method refuses as they usually are."""
    found = dict(settings)
    if method in ("prompt_tuning", "p_tuning", "prefix_tuning") and found.get("loss") == "fused_cross_entropy":
        found["loss"] = "full"
    if method in ("prompt_tuning", "p_tuning") and found.get("loss") in OWN_LOSSES:
        found["loss"] = "full"
    return found | ({"gradient_checkpointing": "none"} if method == "prefix_tuning" else {})


def tiny(method: str, **settings: Any) -> Estimate:
    return estimate(TINY, method, **{"seq_len": 256, **going_with(method, settings)})
