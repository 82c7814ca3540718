"""The matrices of a transformer: what is multiplied for each token, and nothing else.

A :class:`~vramcalc.inputs.stack.ModelSpec` holds what decides memory, for the families whose memory is modelled.
FLOPs need less, so a few more architectures can be counted; ``tables/matrices.csv`` holds the sizes of those.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

from vramcalc import tables
from vramcalc.errors import DataError
from vramcalc.inputs.stack import ModelSpec

_LLAMA_LIKE = ("llama", "qwen", "mixtral")
_EMBEDDINGS = {
    "qwen": "transformer.wte",
    "gpt_bigcode": "transformer.wte",
    "bert": "bert.embeddings.word_embeddings",
    "mixtral": "model.embed_tokens",
    "llama": "model.embed_tokens",
}

Role = Literal["q", "k", "v", "qkv", "o", "gate", "up", "down"]


@dataclass(frozen=True)
class Linear:
    """One projection of every layer.

    Attributes:
        name: within its layer, as transformers names it.
        role: its place in the layer.
        d_in: width of its input.
        d_out: width of its output.
        copies: how many of it a layer holds (experts).
        active: through how many of them a token goes.
    """

    name: str
    role: Role
    d_in: int
    d_out: int
    copies: int = 1
    active: int = 1

    @property
    def params(self) -> int:
        """Elements of all copies."""
        return self.d_in * self.d_out * self.copies


@dataclass(frozen=True)
class Matrices:
    """Sizes that decide the FLOPs of a model.

    Attributes:
        name: Hugging Face id.
        prefix: of a layer's modules, with ``{}`` for its number.
        linears: projections of a layer, in the order in which they run.
        num_hidden_layers: layers.
        hidden_size: width of the residual stream.
        inner_size: width between the projections of the feed-forward block, of all active experts.
        query_size: heads times head size.
        key_size: key heads times head size.
        num_attention_heads: query heads.
        head_dim: width of a head.
        vocab_size: columns of the head, 0 where the loss is not over a vocabulary.
        causal: each token sees those before it.
        sliding_window: how many of them at most.
        tied: the head shares the embedding's weight.
        embedding: name of the embedding of tokens.
        eager_norms: norms are written out in element-wise operations, as RMSNorm is; LayerNorm is a kernel of torch.
        rotary: positions are rotations of queries and keys.
        total_params: parameters, where the architecture's own count is known.
    """

    name: str
    prefix: str
    linears: tuple[Linear, ...]
    num_hidden_layers: int
    hidden_size: int
    inner_size: int
    query_size: int
    key_size: int
    num_attention_heads: int
    head_dim: int
    vocab_size: int
    total_params: int
    causal: bool = True
    sliding_window: int | None = None
    tied: bool = False
    embedding: str = "model.embed_tokens"
    eager_norms: bool = True
    rotary: bool = True

    @property
    def layer_params(self) -> int:
        """Elements of the projections of one layer."""
        return sum(x.params for x in self.linears)

    @property
    def key_heads(self) -> int:
        """Heads of keys, and of values."""
        return self.key_size // self.head_dim

    @property
    def gated(self) -> bool:
        """The feed-forward block multiplies two projections."""
        return any(x.role == "gate" for x in self.linears)

    @classmethod
    def of(cls, model: ModelSpec | Matrices) -> Matrices:
        """The matrices of a model whose family is supported, or those that are given."""
        if isinstance(model, Matrices):
            return model
        q, kv = model.num_attention_heads * model.head_dim, model.num_key_value_heads * model.head_dim
        h, i, active = model.hidden_size, model.intermediate_size, model.num_experts_per_tok or 1
        make = _gated if model.family.gated else _plain
        mlp = make(h, i, copies=model.num_local_experts or 1, active=active)
        return cls(
            model.name, "model.layers.{}.", (*_attention(h, q, kv), *mlp), model.num_hidden_layers, h, i * active, q,
            kv, model.num_attention_heads, model.head_dim, model.vocab_size, model.params_total,
            sliding_window=model.sliding_window, tied=model.tie_word_embeddings,
        )  # fmt: skip


def _attention(h: int, q: int, kv: int) -> tuple[Linear, ...]:
    return (
        Linear("self_attn.q_proj", "q", h, q),
        Linear("self_attn.k_proj", "k", h, kv),
        Linear("self_attn.v_proj", "v", h, kv),
        Linear("self_attn.o_proj", "o", q, h),
    )


def _gated(h: int, i: int, **experts: int) -> tuple[Linear, ...]:
    return (
        Linear("mlp.gate_proj", "gate", h, i, **experts),
        Linear("mlp.up_proj", "up", h, i, **experts),
        Linear("mlp.down_proj", "down", i, h, **experts),
    )


def _plain(h: int, i: int, **experts: int) -> tuple[Linear, ...]:
    return Linear("mlp.up_proj", "up", h, i, **experts), Linear("mlp.down_proj", "down", i, h, **experts)


def _layout(row: tables.Row, h: int, i: int, q: int, kv: int) -> tuple[str, tuple[Linear, ...]]:
    """Prefix and projections of an architecture by the name of its layout."""
    match row["layout"]:
        case "llama":
            return "model.layers.{}.", (*_attention(h, q, kv), *_gated(h, i))
        case "qwen":
            names = Linear("attn.c_attn", "qkv", h, q + 2 * kv), Linear("attn.c_proj", "o", q, h)
            mlp = Linear("mlp.w2", "gate", h, i), Linear("mlp.w1", "up", h, i), Linear("mlp.c_proj", "down", i, h)
            return "transformer.h.{}.", (*names, *mlp)
        case "gpt_bigcode":
            names = Linear("attn.c_attn", "qkv", h, q + 2 * kv), Linear("attn.c_proj", "o", q, h)
            return "transformer.h.{}.", (*names, Linear("mlp.c_fc", "up", h, i), Linear("mlp.c_proj", "down", i, h))
        case "bert":
            dense = Linear("intermediate.dense", "up", h, i), Linear("output.dense", "down", i, h)
            return "bert.encoder.layer.{}.", (*_attention(h, q, kv), *dense)
        case "mixtral":
            experts = {"copies": int(row["num_local_experts"]), "active": int(row["num_experts_per_tok"])}
            return "model.layers.{}.", (*_attention(h, q, kv), *_gated(h, i, **experts))
        case unknown:
            raise DataError(f"matrices.csv, {row['hf_id']}: layout = {unknown!r}: expected one that is modelled")


@cache
def known() -> dict[str, Matrices]:
    """Architectures of which the matrices alone are known, by Hugging Face id in lower case.

    Raises:
        DataError: a row of ``tables/matrices.csv`` is broken.
    """
    found: dict[str, Matrices] = {}
    for row in tables.read("matrices"):
        made = _from_row(row)
        found |= {name.lower(): made for name in (row["hf_id"], *row["also"].split())}
    return found


def _from_row(row: tables.Row) -> Matrices:
    h, i, d = int(row["hidden_size"]), int(row["intermediate_size"]), int(row["head_dim"])
    heads, kv_heads = int(row["num_attention_heads"]), int(row["num_key_value_heads"])
    prefix, linears = _layout(row, h, i, heads * d, kv_heads * d)
    return Matrices(
        row["hf_id"], prefix, linears, int(row["num_hidden_layers"]), h, i * int(row["num_experts_per_tok"] or 1),
        heads * d, kv_heads * d, heads, d, int(row["vocab_size"]), int(row["params_total"]),
        causal=row["layout"] != "bert",
        tied=row["tie_word_embeddings"] == "true", embedding=_EMBEDDINGS[row["layout"]],
        eager_norms=row["layout"] in _LLAMA_LIKE, rotary=row["layout"] in _LLAMA_LIKE,
    )  # fmt: skip
