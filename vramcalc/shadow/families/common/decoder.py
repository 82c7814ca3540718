"""Decoder-only models: embedding, layers of attention and feed-forward, norm, head.

Reads beside transformers' modeling_llama.py, from which the other families' files are made: the same modules, names and
order, and local variables that live as long as theirs. A family subclasses these and says only what differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vramcalc.inputs.stack import ModelSpec
from vramcalc.shadow.engine import activations, ops
from vramcalc.shadow.engine.modules import Embedding, Factory, Module, RMSNorm, TiedHead
from vramcalc.shadow.engine.tape import Storage, Tensor
from vramcalc.shadow.families.common.context import Cache, Context, Prompt, Shared, require_grad
from vramcalc.shadow.families.common.masks import causal_mask
from vramcalc.shadow.families.common.rotary import positions, rotary_embedding
from vramcalc.shadow.families.common.self_attention import Attention


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
        return activations.silu(self.engine, x)

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
    """A decoder with its head, without its loss, which belongs to the recipe.

    Args:
        make: makes the leaves.
        spec: the model.
        n_layers: decoder layers to build.
        context: how it runs.
    """

    layer_class = DecoderLayer
    embedding_class = Embedding
    prompt: Prompt | None = None

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

    def embed(self, ids: Tensor) -> Tensor:
        """Embeddings of tokens."""
        inputs_embeds = self.embed_tokens(ids)
        if self.context.require_input_grads:
            require_grad(inputs_embeds)
        return inputs_embeds

    def hidden_states(self, ids: Tensor, cache: Cache | None, inputs_embeds: Tensor | None = None) -> Tensor:
        """``LlamaModel.forward``: token ids, or their embeddings, to the normalised last hidden state."""
        e, tape, context, spec = self.engine, self.engine.tape, self.context, self.spec
        if inputs_embeds is None:
            inputs_embeds = self.embed(ids)
        batch, seq, _ = inputs_embeds.shape
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
            past=cache.past if cache is not None else 0,
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
