"""Llama 2, 3, 3.1, 3.2 and whatever else is built on ``LlamaForCausalLM``; also the frame its relatives share.

Reads beside transformers' modeling_llama.py: the same modules, the same names, the same order, and local variables
that live as long as theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vramcalc.inputs.stack import ModelSpec
from vramcalc.shadow.engine import attention, heads, ops
from vramcalc.shadow.engine.modules import Embedding, Factory, Module, RMSNorm, TiedHead
from vramcalc.shadow.engine.tape import Storage, Tensor
from vramcalc.shadow.families.common.attention_kernel import attention_kernel
from vramcalc.shadow.families.common.context import Cache, Context, Shared, require_grad
from vramcalc.shadow.families.common.masks import causal_mask
from vramcalc.shadow.families.common.rotary import positions, rotary_embedding, rotary_pair
from vramcalc.shadow.fused import fms_acceleration


class Attention(Module):
    """``LlamaAttention``."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> None:
        super().__init__(make.engine, name)
        h, d = spec.hidden_size, spec.head_dim
        self.spec, self.context = spec, context
        q, kv = spec.num_attention_heads * d, spec.num_key_value_heads * d
        qkv_bias, o_bias = self.biases(spec)
        self.q_proj = make.linear(f"{name}.q_proj", h, q, bias=qkv_bias)
        self.k_proj = make.linear(f"{name}.k_proj", h, kv, bias=qkv_bias)
        self.v_proj = make.linear(f"{name}.v_proj", h, kv, bias=qkv_bias)
        self.o_proj = make.linear(f"{name}.o_proj", q, h, bias=o_bias)
        self.tables = self._tables()

    def _tables(self) -> list[Storage]:
        """Frequencies, and cosine and sine of every position, where a release keeps them in each layer."""
        tape, spec, stack, found = self.engine.tape, self.spec, self.context.stack, list[Storage]()
        outer, tape.module = tape.module, f"{self.name}.rotary_emb"
        if spec.family.has("layer_rotary", stack.release):
            found.append(Storage(tape, (spec.head_dim // 2,), "float32", "inv_freq", "parameter"))
        if self._looks_up or spec.family.has("idle_tables", stack.release):
            shape = (spec.max_position_embeddings, spec.head_dim)
            found += [Storage(tape, shape, stack.dtype, what, "parameter") for what in ("cos_cached", "sin_cached")]
        tape.module = outer
        return found

    def biases(self, spec: ModelSpec) -> tuple[bool, bool]:
        """Whether q, k and v have a bias, and whether o has."""
        return spec.attention_bias, spec.attention_bias

    @property
    def rotates_in_place(self) -> bool:
        """Rotary positions are a kernel that writes over what it is given, gradients too."""
        return self.context.stack.fused_kernels != "none"

    def query(self, projected: Tensor) -> Tensor:
        """Queries by head."""
        return self.split(projected, self.spec.num_attention_heads, head_major_grad=not self.rotates_in_place)

    def key(self, projected: Tensor) -> Tensor:
        """Keys by head."""
        return self.split(projected, self.spec.num_key_value_heads, head_major_grad=not self.rotates_in_place)

    def split(self, x: Tensor, heads: int, *, head_major_grad: bool = True) -> Tensor:
        """``view(...).transpose(1, 2)``; rotary positions send a gradient back head by head."""
        return ops.split_heads(self.engine, x, heads, self.spec.head_dim, head_major_grad=head_major_grad)

    def attend(self, x: Tensor, shared: Shared) -> tuple[Tensor, Tensor | None]:
        """``forward``: the result and, from eager code, the attention weights."""
        e, spec, stack = self.engine, self.spec, self.context.stack
        capability, masked = self.context.compute_capability, shared.mask is not None
        contiguous = stack.release.contiguous and stack.attn_implementation == "sdpa"
        cached = shared.cache is not None and shared.cache.copies
        if stack.release.projects_first:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
            q, k = self.query(q), self.key(k)
        else:
            q, k = self.query(self.q_proj(x)), self.key(self.k_proj(x))
            v = self.v_proj(x)
        kernel, repeats = attention_kernel(
            spec, stack, dtype=e.autocast or v.dtype, masked=masked, compute_capability=capability
        )
        by_head = (
            kernel in ("eager", "math")
            or cached
            or repeats
            or contiguous
            or (kernel == "flash" and spec.head_dim % 8 > 0)
        )
        v = self.split(v, spec.num_key_value_heads, head_major_grad=by_head)
        rows = self.rows(v)
        cos, sin = shared.rotary or self.rotary(v)
        if self.rotates_in_place:
            q = fms_acceleration.rotary(e, q, cos, sin, head_major_grad=by_head and not repeats)
            k = fms_acceleration.rotary(e, k, cos, sin, head_major_grad=by_head)
        else:
            q, k = rotary_pair(e, q, k, cos, sin)
        if shared.cache is not None:
            k, v = shared.cache.update(e, k, v)
        in_place = stack.release.projects_first and kernel in ("flash", "efficient")
        if repeats and in_place:
            # In the attention class itself, so that each copy replaces what was copied.
            k = heads.repeat_kv(e, k, spec.num_attention_heads)
            v = heads.repeat_kv(e, v, spec.num_attention_heads)
            repeats = False
        lowered = stack.attn_implementation == "flash_attention_2" and q.dtype == "float32"
        if lowered and in_place:
            q = self.lower(q)
            k = self.lower(k)
            v = self.lower(v)
        given = (self.lower(q), self.lower(k), self.lower(v)) if lowered and not in_place else (q, k, v)
        out, weights = attention.attend(
            e, kernel, *given, shared.mask, capability, repeats=repeats, contiguous=contiguous, cached=cached,
            soft_capped=spec.attn_logit_softcapping is not None,
        )  # fmt: skip
        del given
        out = ops.merge_heads(e, out)
        projected = self.o_proj(out)
        del rows
        return projected, weights

    def rows(self, v: Tensor) -> list[Tensor]:
        """The tables' first rows in the values' dtype, views where it is that of the tables; the layer holds them."""
        e, shape = self.engine, (v.shape[2], self.spec.head_dim)
        if not self._looks_up or v.dtype == self.context.stack.dtype:
            return []
        return [e.new(shape, v.dtype, what) for what in ("cos", "sin")]

    def rotary(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of a layer's own: worked out, or picked from the rows of its tables by position."""
        e, seq, width = self.engine, v.shape[2], self.spec.head_dim
        if not self._looks_up:
            return rotary_embedding(e, seq, width, v.dtype, scales=False)
        return e.new((1, seq, width), v.dtype, "cos"), e.new((1, seq, width), v.dtype, "sin")

    @property
    def _looks_up(self) -> bool:
        return self.spec.family.has("cached_rotary", self.context.stack.release)

    def lower(self, x: Tensor) -> Tensor:
        """The 16-bit copy that flash-attn is handed."""
        return ops.to(self.engine, x, self.engine.autocast or self.context.stack.dtype)


class MLP(Module):
    """``LlamaMLP``."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec) -> None:
        super().__init__(make.engine, name)
        h, i, bias = spec.hidden_size, spec.intermediate_size, spec.mlp_bias
        self.gate_proj = make.linear(f"{name}.gate_proj", h, i, bias=bias)
        self.up_proj = make.linear(f"{name}.up_proj", h, i, bias=bias)
        self.down_proj = make.linear(f"{name}.down_proj", i, h, bias=bias)

    def act_fn(self, x: Tensor) -> Tensor:
        """``config.hidden_act``."""
        return ops.silu(self.engine, x)

    def forward(self, *args: Tensor) -> Tensor:
        """Gated feed-forward."""
        e, x = self.engine, args[0]
        return self.down_proj(ops.mul(e, self.act_fn(self.gate_proj(x)), self.up_proj(x)))


class DecoderLayer(Module):
    """``LlamaDecoderLayer``."""

    attention_class = Attention
    norm_class: type[RMSNorm] | None = None

    def __init__(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> None:
        super().__init__(make.engine, name)
        self.self_attn = self.attention_class(make, f"{name}.self_attn", spec, context)
        self.mlp = self.feed_forward(make, name, spec, context)
        self.input_layernorm = self.norm(make, "input_layernorm", spec)
        self.post_attention_layernorm = self.norm(make, "post_attention_layernorm", spec)

    def norm(self, make: Factory, attribute: str, spec: ModelSpec) -> RMSNorm:
        """A norm over the hidden size."""
        return make.norm(f"{self.name}.{attribute}", spec.hidden_size, self.norm_class)

    def feed_forward(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> Module:
        """What stands after attention, inside the layer called ``name``."""
        return MLP(make, f"{name}.mlp", spec)

    def join(self, residual: Tensor, branch: Tensor) -> Tensor:
        """What a branch of the layer is added to, and how."""
        return ops.add(self.engine, residual, branch)

    def run(self, hidden_states: Tensor, shared: Shared) -> Tensor:
        """``forward``."""
        tape, outer = self.engine.tape, self.engine.tape.module
        tape.module, residual = self.name, hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        tape.module = self.self_attn.name
        hidden_states, weights = self.self_attn.attend(hidden_states, shared)
        tape.module = self.name
        hidden_states = self.join(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.join(residual, hidden_states)
        tape.module = outer
        del weights
        return hidden_states


class CausalLM(Module):
    """``LlamaForCausalLM`` without its loss, which belongs to the recipe.

    Args:
        make: makes the leaves.
        spec: the model.
        n_layers: decoder layers to build.
        context: how it runs.
    """

    layer_class = DecoderLayer
    embedding_class = Embedding

    def __init__(self, make: Factory, spec: ModelSpec, n_layers: int, context: Context) -> None:
        super().__init__(make.engine, "")
        tape = make.engine.tape
        self.spec, self.context = spec, context
        embeddings = make.embedding("model.embed_tokens", spec.vocab_size, spec.hidden_size, self.embedding_class)
        self.embed_tokens: Module = embeddings
        self.layers = []
        for i in range(n_layers):
            tape.at(i)
            self.layers.append(self.layer_class(make, f"model.layers.{i}", spec, context))
        tape.at(None)
        self.norm = make.norm("model.norm", spec.hidden_size, self.layer_class.norm_class)
        self.buffers = self._buffers()
        self.lm_head: Module = (
            TiedHead(make.engine, "lm_head", embeddings)
            if spec.tie_word_embeddings
            else make.head("lm_head", spec.hidden_size, spec.vocab_size)
        )

    def _buffers(self) -> list[Storage]:
        """What the model keeps beside its parameters."""
        tape, spec, release = self.engine.tape, self.spec, self.context.stack.release
        tape.module, half = "model.rotary_emb", (spec.head_dim // 2,)
        names = () if spec.family.has("layer_rotary", release) else ("inv_freq", "original_inv_freq")
        found = [Storage(tape, half, "float32", what, "parameter") for what in names]
        if spec.family.has("causal_buffer", release):
            tape.module, n = "model", spec.max_position_embeddings
            found.append(Storage(tape, (n, n), "bool", "causal_mask", "parameter"))
        tape.module = ""
        return found

    def embedded(self, inputs_embeds: Tensor) -> Tensor:
        """What the first layer is given."""
        return inputs_embeds

    def logits(self, hidden: Tensor) -> Tensor:
        """The last hidden state to the logits."""
        return self.lm_head(hidden)

    @property
    def _window(self) -> int | None:
        """The sliding window that masks are made for."""
        stack = self.context.stack
        unseen = stack.release.ignores_window and stack.attn_implementation == "sdpa"
        return None if unseen else self.spec.sliding_window

    def masks(self, mask: Callable[[int | None], Tensor | None]) -> list[Tensor | None]:
        """The masks that layers are given in turn, made for a window each."""
        return [mask(self._window)]

    def hidden_states(self, ids: Tensor, cache: Cache | None) -> Tensor:
        """``LlamaModel.forward``: token ids to the normalised last hidden state."""
        e, tape, context, spec = self.engine, self.engine.tape, self.context, self.spec
        batch, seq = ids.shape
        inputs_embeds = self.embed_tokens(ids)
        if context.require_input_grads:
            require_grad(inputs_embeds)
        tape.module = "model"
        inputs_embeds = self.embedded(inputs_embeds)
        position_ids = positions(e, seq)
        mask = partial(
            causal_mask,
            e,
            batch,
            seq,
            release=context.stack.release,
            implementation=context.stack.attn_implementation,
            padded=context.padded,
            passed=context.stack.passes_attention_mask,
            cached=cache is not None,
            dtype=inputs_embeds.dtype,
        )
        masks = self.masks(lambda window: mask(sliding_window=window))
        hidden_states = inputs_embeds
        in_layers = spec.family.has("layer_rotary", context.stack.release)
        rotary = None if in_layers else rotary_embedding(e, seq, spec.head_dim, hidden_states.dtype)
        shared = [Shared(rotary, mask, position_ids, cache) for mask in masks]
        del rotary, masks, position_ids
        for i, layer in enumerate(self.layers):
            tape.at(i)
            hidden_states = e.checkpoint(context.checkpointing, _bind(layer, shared[i % len(shared)]), hidden_states)
        tape.at(None)
        hidden_states = self.norm(hidden_states)
        tape.module = ""
        return hidden_states


def _bind(layer: DecoderLayer, shared: Shared) -> Callable[[Tensor], Tensor]:
    return lambda x: layer.run(x, shared)
