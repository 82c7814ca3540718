"""Gemma 2: soft caps, four norms a layer, GeGLU, a scaled embedding, and a window in every other layer.

Reads beside transformers' modeling_gemma2.py of 5.23. ``query_pre_attn_scalar``, which scales scores, is a number.
"""

from __future__ import annotations

from collections.abc import Callable

from vramcalc.inputs.stack import ModelSpec
from vramcalc.shadow.engine import activations, modules, norms, ops
from vramcalc.shadow.engine.modules import Factory, Module
from vramcalc.shadow.engine.tape import Storage, Tensor
from vramcalc.shadow.families.common import decoder
from vramcalc.shadow.families.common.context import Context, Shared


class RMSNorm(modules.RMSNorm):
    """``Gemma2RMSNorm``."""

    def forward(self, *args: Tensor) -> Tensor:
        """Normalise the last dimension, times one plus the weight."""
        return norms.rms_norm_centered(self.engine, args[0], self.weight)


class TextScaledWordEmbedding(modules.Embedding):
    """``Gemma2TextScaledWordEmbedding``: the scale is a buffer, in the dtype that the model is built in."""

    embed_scale: Tensor

    def forward(self, *args: Tensor) -> Tensor:
        """``(batch, seq)`` ids to ``(batch, seq, width)``."""
        return self.scaled(super().forward(*args))

    def scaled(self, x: Tensor) -> Tensor:
        """Times the square root of the hidden size."""
        return ops.mul(self.engine, x, ops.to(self.engine, self.embed_scale, x.dtype))


class MLP(decoder.MLP):
    """``Gemma2MLP``."""

    def act_fn(self, x: Tensor) -> Tensor:
        """``gelu_pytorch_tanh``."""
        return activations.gelu(self.engine, x)


class DecoderLayer(decoder.DecoderLayer):
    """``Gemma2DecoderLayer``."""

    norm_class = RMSNorm

    def __init__(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> None:
        super().__init__(make, name, spec, context)
        self.pre_feedforward_layernorm = self.norm(make, "pre_feedforward_layernorm", spec)
        self.post_feedforward_layernorm = self.norm(make, "post_feedforward_layernorm", spec)

    def feed_forward(self, make: Factory, name: str, spec: ModelSpec, context: Context) -> Module:
        """GeGLU."""
        return MLP(make, f"{name}.mlp", spec)

    def run(self, hidden_states: Tensor, shared: Shared) -> Tensor:
        """``forward``: a norm before and after attention and feed-forward, on their own branches."""
        tape, outer = self.engine.tape, self.engine.tape.module
        tape.module, residual = self.name, hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        tape.module = self.self_attn.name
        hidden_states, weights = self.self_attn.attend(hidden_states, shared)
        tape.module = self.name
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.join(residual, hidden_states)
        residual = hidden_states
        hidden_states = self.pre_feedforward_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        hidden_states = self.post_feedforward_layernorm(hidden_states)
        hidden_states = self.join(residual, hidden_states)
        tape.module = outer
        del weights
        return hidden_states


class CausalLM(decoder.CausalLM):
    """``Gemma2ForCausalLM``."""

    layer_class = DecoderLayer
    embedding_class = TextScaledWordEmbedding

    def _buffers(self) -> list[Storage]:
        """The embedding's scale, and what Llama keeps."""
        tape, dtype = self.engine.tape, self.context.stack.dtype
        assert isinstance(self.embed_tokens, TextScaledWordEmbedding)
        tape.module = self.embed_tokens.name
        self.embed_tokens.embed_scale = Tensor(Storage(tape, (), dtype, "embed_scale", "parameter"), (), dtype)
        return super()._buffers()

    def masks(self, mask: Callable[[int | None], Tensor | None]) -> list[Tensor | None]:
        """``causal_mask_mapping``: a window in the first layer and every other one after it."""
        sliding_window, _ = self.spec.windows
        full = mask(None)
        sliding = mask(sliding_window)
        return [sliding, full]

    def logits(self, hidden: Tensor) -> Tensor:
        """The head's product, soft-capped."""
        logits = self.lm_head(hidden)
        if self.spec.final_logit_softcapping is None:
            return logits
        logits = ops.mul_scalar(self.engine, logits)
        logits = activations.tanh(self.engine, logits)
        logits = ops.mul_scalar(self.engine, logits)
        return logits
