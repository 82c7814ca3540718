"""Mixtral: Mistral's attention, and eight feed-forward networks of which a router gives every token two.

Reads beside transformers' modeling_mixtral.py: a loop over modules up to 4.57, one tensor of all experts from 5.0 on.
"""

from __future__ import annotations

from vramcalc.inputs.stack import ModelSpec
from vramcalc.shadow.engine import activations, ops
from vramcalc.shadow.engine.graph import Parameter
from vramcalc.shadow.engine.modules import Factory, Module
from vramcalc.shadow.engine.tape import Tensor
from vramcalc.shadow.families.common import decoder, experts
from vramcalc.shadow.families.common.context import Context


class BlockSparseTop2MLP(Module):
    """``MixtralBlockSparseTop2MLP``."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec) -> None:
        super().__init__(make.engine, name)
        h, i = spec.hidden_size, spec.intermediate_size
        self.w1 = make.linear(f"{name}.w1", h, i)
        self.w2 = make.linear(f"{name}.w2", i, h)
        self.w3 = make.linear(f"{name}.w3", h, i)

    def forward(self, *args: Tensor) -> Tensor:
        """Gated feed-forward of one expert's tokens, ``(tokens, hidden_size)``."""
        e, hidden_states = self.engine, args[0]
        current_hidden_states = ops.mul(e, activations.silu(e, self.w1(hidden_states)), self.w3(hidden_states))
        current_hidden_states = self.w2(current_hidden_states)
        return current_hidden_states


class SparseMoeBlock(Module):
    """``MixtralSparseMoeBlock`` up to transformers 4.57: a loop over the experts."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec, n_experts: int, *, lists_tokens: bool) -> None:
        super().__init__(make.engine, name)
        self.spec, self.lists_tokens = spec, lists_tokens
        self.gate = make.linear(f"{name}.gate", spec.hidden_size, n_experts)
        self.experts = [BlockSparseTop2MLP(make, f"{name}.experts.{i}", spec) for i in range(n_experts)]

    def forward(self, *args: Tensor) -> Tensor:
        """``(batch, seq, hidden_size)`` to the weighted sum of what each token's experts make of it."""
        e, hidden_states = self.engine, args[0]
        batch, seq, width = hidden_states.shape
        top_k, n_experts = self.spec.num_experts_per_tok or 0, len(self.experts)
        tokens, pairs = batch * seq, batch * seq * top_k
        hidden_states = ops.reshape(e, hidden_states, (tokens, width))
        router_logits = self.gate(hidden_states)
        routing_weights = experts.softmax(e, router_logits)
        routing_weights, selected_experts = experts.topk(e, routing_weights, top_k)
        routing_weights = experts.normalise(e, routing_weights)
        routing_weights = ops.to(e, routing_weights, hidden_states.dtype)
        final_hidden_states = e.new((tokens, width), hidden_states.dtype, "zeros")
        expert_mask = experts.one_hot(e, selected_experts, n_experts)
        for expert_idx, expert_layer in enumerate(self.experts):
            n = experts.balanced_share(pairs, n_experts, expert_idx)
            top_x = experts.where(e, n)
            index = experts.listed(e, n, 1) if self.lists_tokens else top_x
            current_state = experts.gather(e, ops.reshape(e, hidden_states, (tokens, width)), index, n)
            current_state = ops.reshape(e, current_state, (n, width))
            current_hidden_states = expert_layer(current_state)
            index = experts.listed(e, n, 2) if self.lists_tokens else top_x
            current_hidden_states = ops.mul(e, current_hidden_states, experts.pick(e, routing_weights, index, n))
            del index
            final_hidden_states = experts.index_add_(
                e, final_hidden_states, top_x, ops.to(e, current_hidden_states, hidden_states.dtype)
            )
        del expert_mask, router_logits
        return ops.reshape(e, final_hidden_states, (batch, seq, width))


class TopKRouter(Module):
    """``MixtralTopKRouter`` of transformers 5."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec, n_experts: int) -> None:
        super().__init__(make.engine, name)
        self.spec = spec
        self.weight = Parameter(make.engine.tape, f"{name}.weight", (n_experts, spec.hidden_size), make.dtype)

    def route(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``forward``: logits, weights in float32 and experts of ``(tokens, hidden_size)``."""
        e, tape = self.engine, self.engine.tape
        outer, tape.module = tape.module, self.name
        router_logits = ops.linear(e, hidden_states, self.weight)
        router_probs = experts.softmax(e, ops.to(e, router_logits, "float32"))
        router_top_value, router_indices = experts.topk(e, router_probs, self.spec.num_experts_per_tok or 0)
        router_scores = experts.normalise(e, router_top_value)
        tape.module = outer
        return router_logits, router_scores, router_indices


class Experts(Module):
    """``MixtralExperts`` of transformers 5 by ``grouped_mm_experts_forward``: tokens sorted by expert.

    Its weights are parameters, not linear layers: no library quantises them.
    """

    def __init__(self, make: Factory, name: str, spec: ModelSpec, n_experts: int) -> None:
        super().__init__(make.engine, name)
        h, i, tape, dtype = spec.hidden_size, spec.intermediate_size, make.engine.tape, make.dtype
        self.n_experts = n_experts
        self.gate_up_proj = Parameter(tape, f"{name}.gate_up_proj", (n_experts, 2 * i, h), dtype)
        self.down_proj = Parameter(tape, f"{name}.down_proj", (n_experts, h, i), dtype)

    def forward(self, *args: Tensor) -> Tensor:
        """Tokens, their experts and the weights of those to the sum for each token."""
        e, (hidden_states, top_k_index, top_k_weights) = self.engine, args
        tokens, _ = hidden_states.shape
        pairs = tokens * top_k_index.shape[1]
        sample_weights = ops.reshape(e, top_k_weights, (pairs, 1))
        expert_ids_g, perm = (e.new((pairs,), "int64", "sort") for _ in range(2))
        index = e.new((pairs,), "int64", "floor_divide")
        selected_hidden_states_g = experts.gather(e, hidden_states, index, pairs)
        del index
        sample_weights_g = experts.gather(e, sample_weights, perm, pairs)
        histc_input = e.new((pairs,), "int32", "to")
        tokens_per_expert = e.new((self.n_experts,), "int32", "histc")
        offsets = e.new((self.n_experts,), "int32", "cumsum")
        proj_out = experts.grouped_mm(e, selected_hidden_states_g, self.gate_up_proj, offsets)
        gate, up = experts.chunk(e, proj_out)
        proj_out = ops.mul(e, activations.silu(e, gate), up)
        del gate, up
        proj_out = experts.grouped_mm(e, proj_out, self.down_proj, offsets)
        weighted_out = ops.mul(e, proj_out, sample_weights_g)
        inv_perm = e.new((pairs,), "int64", "empty_like")
        e.new((pairs,), "int64", "arange")
        weighted_out = experts.gather(e, weighted_out, inv_perm, pairs)
        final_hidden_states = experts.sum_pairs(e, weighted_out, tokens)
        del expert_ids_g, histc_input, tokens_per_expert
        return ops.to(e, final_hidden_states, hidden_states.dtype)


class FusedMoeBlock(Module):
    """``MixtralSparseMoeBlock`` of transformers 5."""

    def __init__(self, make: Factory, name: str, spec: ModelSpec, n_experts: int) -> None:
        super().__init__(make.engine, name)
        self.gate = TopKRouter(make, f"{name}.gate", spec, n_experts)
        self.experts = Experts(make, f"{name}.experts", spec, n_experts)

    def forward(self, *args: Tensor) -> Tensor:
        """``(batch, seq, hidden_size)`` to the weighted sum of what each token's experts make of it."""
        e, hidden_states = self.engine, args[0]
        batch, seq, width = hidden_states.shape
        hidden_states = ops.reshape(e, hidden_states, (batch * seq, width))
        router_logits, top_k_weights, top_k_index = self.gate.route(hidden_states)
        hidden_states = self.experts(hidden_states, top_k_index, top_k_weights)
        del router_logits
        return ops.reshape(e, hidden_states, (batch, seq, width))


class DecoderLayer(decoder.DecoderLayer):
    """``MixtralDecoderLayer``."""

    def feed_forward(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> Module:
        """The experts and their router."""
        release, n_experts = context.stack.release, spec.num_local_experts or 0
        if release.fuses_experts:
            return FusedMoeBlock(make, f"{name}.mlp", spec, n_experts)
        return SparseMoeBlock(make, f"{name}.block_sparse_moe", spec, n_experts, lists_tokens=release.lists_tokens)


class CausalLM(decoder.CausalLM):
    """``MixtralForCausalLM``, without the load-balancing loss, which transformers leaves out by default."""

    layer_class = DecoderLayer
