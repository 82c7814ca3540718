"""The model: the numbers of a ``config.json`` that decide memory."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from vramcalc.inputs.base import PositiveCount, Spec
from vramcalc.inputs.families import FAMILIES, Family

AttnImplementation = Literal["sdpa", "eager", "flash_attention_2"]


def _known(model_type: str) -> str:
    if model_type not in FAMILIES:
        *names, last = map(repr, FAMILIES)
        raise ValueError(f"one of {', '.join(names)} or {last}")
    return model_type


ModelType = Annotated[str, AfterValidator(_known)]
"""The name of a family."""
SoftCap = Annotated[Annotated[float, Field(gt=0)] | None, Field(exclude_if=lambda cap: cap is None)]


class ModelSpec(Spec):
    """The numbers of a ``config.json`` that decide memory; field names as transformers spells them."""

    name: str
    """Hugging Face id, or where the configuration was read from."""
    model_type: ModelType
    hidden_size: PositiveCount
    intermediate_size: PositiveCount
    num_hidden_layers: Annotated[int, Field(ge=1, le=1_000)]
    num_attention_heads: Annotated[int, Field(ge=1, le=65_536)]
    num_key_value_heads: Annotated[int, Field(ge=1, le=65_536)]
    head_dim: Annotated[int, Field(ge=2, le=4_096)]
    vocab_size: Annotated[int, Field(ge=2, le=1 << 24)]
    max_position_embeddings: Annotated[int, Field(ge=1, le=1 << 30)]
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """Bias on q, k, v and o (granite, llama, qwen3); Qwen2's bias on q, k and v alone is part of its family."""
    mlp_bias: bool = False
    sliding_window: Annotated[int, Field(ge=1)] | None = None
    """Window of every layer, or of the first and every other one after it (gemma2), None for full attention."""
    num_local_experts: PositiveCount | None = None
    """Experts of every layer (mixtral), None for a dense model."""
    num_experts_per_tok: PositiveCount | None = None
    """Experts that a token is sent to (mixtral)."""
    attn_logit_softcapping: SoftCap = None
    """Soft cap of attention's scores (gemma2), None for none."""
    final_logit_softcapping: SoftCap = None
    """Soft cap of the logits (gemma2), None for none."""
    attn_implementation: Annotated[AttnImplementation | None, Field(exclude_if=lambda given: given is None)] = None
    """Attention that ``config.json`` itself asks for; a recipe that is given as a :class:`Stack`, or the setting of
    that name, counts for more."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads ({self.num_key_value_heads}) to divide num_attention_heads "
                f"({self.num_attention_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(f"an even head_dim for rotary embeddings, not {self.head_dim}")
        experts, per_token = self.num_local_experts, self.num_experts_per_tok
        if self.family.experts != (experts is not None and per_token is not None):
            mixed = " or ".join(name for name, family in FAMILIES.items() if family.experts)
            raise ValueError(f"num_local_experts and num_experts_per_tok for {mixed}, and for no other model_type")
        if experts is not None and per_token is not None and per_token > experts:
            raise ValueError(f"num_experts_per_tok ({per_token}) of at most num_local_experts ({experts})")
        return self

    @property
    def family(self) -> Family:
        """What its architecture says of itself."""
        return FAMILIES[self.model_type]

    @property
    def windows(self) -> tuple[int | None, ...]:
        """Sliding windows that layers have in turn, from the first on; None for full attention."""
        return (self.sliding_window, None) if self.family.full_between else (self.sliding_window,)

    @property
    def params_total(self) -> int:
        """Parameters as transformers builds them, tied weights once."""
        h, i, d, family = self.hidden_size, self.intermediate_size, self.head_dim, self.family
        q, kv = self.num_attention_heads * d, self.num_key_value_heads * d
        attention = h * (q + 2 * kv) + q * h
        if family.qkv_bias:
            attention += q + 2 * kv
        elif self.attention_bias:
            attention += q + 2 * kv + h
        if family.head_norms:
            attention += 2 * d
        inner = 2 if family.gated else 1
        mlp = (inner + 1) * h * i + (inner * i + h if self.mlp_bias else 0)
        if self.num_local_experts is not None:
            mlp = self.num_local_experts * (mlp + h)
        embeddings = self.vocab_size * h * (1 if self.tie_word_embeddings else 2)
        return self.num_hidden_layers * (attention + mlp + len(family.norms) * h) + embeddings + h
