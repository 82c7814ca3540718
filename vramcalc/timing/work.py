"""What takes time in a training step: quantities of work, by what limits each.

Every quantity is a pure count: operations for the tensor cores, bytes for the memory, kernel launches for the host. A
GPU's data sheet turns operations and bytes into the least time that they can take; :mod:`vramcalc.timing.roofline`
turns that into seconds. Bytes are those of eager code: each operation reads its operands and writes its result.

References:
    Williams et al., "Roofline", CACM 52(4), 2009.
    transformers modeling_llama.py; peft tuners/lora/layer.py; bitsandbytes functional.py; torch optim/adamw.py.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from vramcalc.inputs.model import ModelSpec
from vramcalc.inputs.stack import OWN_LOSSES, Method, Stack, TrainingSpec, kbit_prepared
from vramcalc.inputs.targets import is_saved, is_target, layers_alike
from vramcalc.timing.beyond import Described, described, learned_params, moved_by_family
from vramcalc.timing.flops import Flops, Tokens, step_flops
from vramcalc.timing.matrices import Matrices

_SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Recipe:
    """What decides speed and is no part of a :class:`~vramcalc.inputs.stack.Stack`.

    Attributes:
        flash: attention in 16 bits runs FlashAttention; else, and always in float32, the memory-efficient kernel.
        fused: norms, rotations and the loss run as one kernel each (Liger, Unsloth's and fms-acceleration's kernels).
        fused_adapters: projection and adapter are one autograd function that keeps and copies nothing between them
            (Unsloth's; fms-acceleration's, over four-bit weights alone).
        compiled: the layers went through ``torch.compile``.
        norms_float32: the weights of the norms are in float32, and so is what they return.
        gptq: four-bit weights are GPTQ's, not those of bitsandbytes.
    """

    flash: bool = True
    fused: bool = False
    fused_adapters: bool = False
    compiled: bool = False
    norms_float32: bool = False
    gptq: bool = False


@dataclass(frozen=True)
class Work:
    """Counts of one optimizer step.

    Attributes:
        quantities: counts by name, see :data:`vramcalc.timing.roofline.TERMS`.
        model_flops: operations that training needs, for the utilisation.
        flops: operations that are done, recomputation included.
        tokens: tokens of text.
        computed_tokens: tokens that pass through the layers, padding included.
        micro_tokens: computed tokens of one micro-batch.
        longest: length of the longest sequence.
        dtype: of most products.
    """

    quantities: Mapping[str, float]
    model_flops: int
    flops: int
    tokens: int
    computed_tokens: int
    micro_tokens: int
    longest: int
    dtype: str


def work_of(
    model: ModelSpec | Matrices,
    method: Method,
    training: TrainingSpec,
    stack: Stack,
    recipe: Recipe | None = None,
    tokens: Tokens | None = None,
) -> Work:
    """Count what an optimizer step does.

    Args:
        model: the model; its matrices where nothing else is known of it.
        method: what trains.
        training: batch, length, accumulation, checkpointing and optimizer.
        stack: dtypes, attention and loss.
        recipe: kernels.
        tokens: of a micro-batch; None, full sequences.

    Raises:
        Unsupported: as :func:`vramcalc.timing.flops.step_flops`.
    """
    eager = stack.attn_implementation == "eager"
    done = step_flops(model, method, training, stack, tokens=tokens, square=eager)
    needed = step_flops(model, method, training, stack, tokens=tokens) if eager else done
    beyond = moved_by_family(model, method, training, stack, done.tokens)
    near = described(model, method, training, stack, done.tokens)
    learned = learned_params(model, method, training, stack)
    sizes = _Sizes(Matrices.of(model), near.method, training, stack, recipe or Recipe(), done, near, beyond, learned)
    dtypes, n = done.by("dtype"), done.micro_steps
    return Work(
        sizes.quantities(), needed.model, done.total, n * done.tokens.real, n * done.tokens.computed,
        done.tokens.computed, done.tokens.longest, max(dtypes, key=lambda d: dtypes[d]),
    )  # fmt: skip


@dataclass(frozen=True)
class _Sizes:
    """Counts of one micro-batch; a method moves ``near``'s bytes beyond LoRA, layers ``beyond`` Llama's."""

    model: Matrices
    method: Method
    training: TrainingSpec
    stack: Stack
    recipe: Recipe
    flops: Flops
    near: Described
    beyond: int
    learned: int

    def quantities(self) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for row in self.flops.rows:
            found[self._kind(row.what, 8 * _SIZE[row.dtype])] += row.flops
        per_micro = {
            "weights": self.weights,
            "scores": self.scores,
            "compiled element-wise" if self.recipe.compiled else "element-wise": self.elementwise,
            "compiled adapters" if self.recipe.compiled else "adapters": self.adapters,
            "logits": self.logits,
            "GPTQ" if self.recipe.gptq else "dequantisation": self.dequantised,
            "layer launches": self.model.num_hidden_layers * self.passes,
            "adapter launches": len(self.adapted) * self.passes,
            "dequantisation launches": self.quantised * self.passes,
            "experts": self.experts * self.passes,
        }
        for name, count in per_micro.items():
            found[name] += self.flops.micro_steps * count
        return {**found, "optimizer": self.optimizer, "steps": 1.0}

    def _kind(self, what: str, bits: int) -> str:
        """The quantity that a row of FLOPs belongs to."""
        if what != "attention" or self.stack.attn_implementation == "eager":
            return f"products {bits}"
        return "flash" if self.recipe.flash and bits == 16 else f"efficient {bits}"

    # -- what counts are made of -------------------------------------------------------------------------------------

    @property
    def again(self) -> int:
        """Whether the forward pass of the layers runs twice."""
        return int(self.training.gradient_checkpointing != "none")

    @property
    def passes(self) -> int:
        """Forward, backward and recomputation."""
        return 2 + self.again

    @property
    def token_layers(self) -> int:
        """Tokens times layers."""
        return self.flops.tokens.computed * self.model.num_hidden_layers

    @cached_property
    def adapted(self) -> list[tuple[int, int]]:
        """Widths of all projections that have an adapter."""
        method, model = self.method.adapters, self.model
        if method is None:
            return []
        alike = layers_alike(method, model.num_hidden_layers)
        found = [
            (x.d_in, x.d_out)
            for layer in range(1 if alike else model.num_hidden_layers)
            for x in model.linears
            if is_target(method, model.prefix.format(layer) + x.name)
            for _ in range(x.copies)
        ]
        return found * model.num_hidden_layers if alike else found

    @property
    def quantised(self) -> int:
        """Projections in four bits."""
        m = self.model
        return m.num_hidden_layers * sum(x.copies for x in m.linears) if self.method.storage else 0

    @property
    def experts(self) -> int:
        """Experts that tokens are sent to, in all layers."""
        copies = max(x.copies for x in self.model.linears)
        return self.model.num_hidden_layers * copies if copies > 1 else 0

    @property
    def computing(self) -> int:
        """Bytes of an element inside the layers."""
        low = self.method.storage.bnb_4bit_compute_dtype if self.method.storage else self.stack.dtype
        return _SIZE[self.stack.autocast or low]

    @property
    def prepared(self) -> bool:
        """Whether what bitsandbytes leaves alone is in float32."""
        return kbit_prepared(self.method, self.stack)

    @property
    def norms_float32(self) -> bool:
        """Whether norms return float32: their weights are, or autocast runs torch's own LayerNorm in it."""
        autocast = self.stack.autocast is not None and not self.model.eager_norms
        return self.prepared or self.recipe.norms_float32 or autocast

    @property
    def inner(self) -> int:
        """Bytes of an element between products: bitsandbytes returns the dtype that it was given."""
        raised = self.norms_float32 and self.method.storage and not self.recipe.gptq
        return 4 if raised else self.computing

    @property
    def weights(self) -> float:
        """Weights read by the products and gradients written; the copies that autocast makes of float32 weights."""
        model, size = self.model, self.computing
        layers = model.layer_params * model.num_hidden_layers
        trained = layers if self.method.adapters is None else 0
        copies = 6 * layers if _SIZE[self.stack.dtype] > size and not self.quantised else 0
        head = model.hidden_size * model.vocab_size
        return size * (self.passes * layers + 2 * head + trained) + (1 + self.again) * copies

    @property
    def scores(self) -> float:
        """Attention scores of eager code: two products, a mask, a softmax in float32, a cast."""
        if self.stack.attn_implementation != "eager":
            return 0
        size = _SIZE[self.stack.autocast] if self.stack.autocast else self.inner
        elements = self.flops.tokens.square * self.model.num_attention_heads * self.model.num_hidden_layers
        return elements * (9 * size + 8) * (2.5 + self.again)

    @property
    def elementwise(self) -> float:
        """Norms, residual sums, rotations and activations, forward, backward and again."""
        m, c, inner = self.model, self.computing, self.inner
        stream = max(inner, _SIZE[self.stack.dtype])
        normed = 4 if self.norms_float32 else stream
        kernels = self.recipe.fused or not m.eager_norms
        norm = 2 * m.hidden_size * (stream + normed if kernels else 28 + stream + 3 * normed)
        rotary = 0 if not m.rotary else (2 if self.recipe.fused else 10) * inner * (m.query_size + m.key_size)
        activation = (5 if m.gated else 2) * inner * m.inner_size
        # Autocast keeps copies of weights, not of activations: each product casts its input again.
        wide = [x for x in m.linears if x.role not in ("o", "down")]
        casts = sum((4 + c) * x.d_in * x.active for x in wide) if normed > c else 0
        # Tokens are gathered for each expert, weighted and added up again.
        routed = sum(7 * normed * x.d_in * x.active for x in m.linears if x.role == "up" and x.copies > 1)
        rest = 6 * stream * m.hidden_size + 2 * inner * m.query_size
        return self.token_layers * (norm + rotary + activation + casts + routed + rest) * (3 + self.again) + self.beyond

    @property
    def adapters(self) -> float:
        """Inputs copied for casts and dropout, results scaled and added."""
        stack, c, x = self.stack, self.computing, self.inner
        kept = _SIZE[stack.dtype if stack.adapter_dtype == "weights" else stack.adapter_dtype]
        a = c if stack.autocast else kept
        if self.recipe.fused_adapters:
            forward = sum(x * d_in + 2 * x * d_out for d_in, d_out in self.adapted)
        else:
            # PEFT casts the input to the adapter's dtype, unless the weight has four bits and autocast does it.
            handed = x if stack.autocast and self.method.storage else kept
            casts = (x + handed) * (handed != x) + (handed + a) * (a != handed)
            dropped = 2 * handed + 1 if self.method.adapters and self.method.adapters.lora_dropout > 0 else 0
            added = 2 * a + x + a + max(x, a)
            forward = sum(d_in * (casts + dropped) + d_out * added for d_in, d_out in self.adapted)
        return self.flops.tokens.computed * forward * (3 + self.again) + self.near.moved

    @property
    def logits(self) -> float:
        """The loss over the vocabulary; one of the loop's own goes over logits in their own dtype."""
        elements = self.flops.tokens.computed * self.model.vocab_size
        if self.stack.loss in OWN_LOSSES:
            passes = 11 if self.stack.loss == "shifted_cross_entropy" else 6
            return elements * passes * self.computing
        one_kernel = self.recipe.fused or self.stack.loss != "full"
        per_element = 12 if one_kernel else 24 if self.recipe.compiled else 44
        return elements * per_element

    @property
    def dequantised(self) -> float:
        """Codes read and weights written, every time that they are used."""
        if not self.quantised:
            return 0
        return self.model.layer_params * self.model.num_hidden_layers * (0.5 + self.computing) * self.passes

    @property
    def optimizer(self) -> float:
        """Parameters, gradients (again where they are clipped) and states, once per step; what follows it."""
        size = _SIZE[self.stack.dtype] if self.method.adapters is None else 4
        optimizer = self.training.optimizer
        states = 4 if optimizer.low_bit else 0
        clipping = 3 if self.training.max_grad_norm else 0
        return self.trainable * (size * (optimizer.accesses + clipping) + states) + self.near.after_step

    @property
    def trainable(self) -> int:
        """Elements that train."""
        model, method = self.model, self.method.adapters
        if method is None:
            return model.total_params
        copied = sum(is_saved(method, name) for name in (model.embedding, "lm_head"))
        saved = copied * model.vocab_size * model.hidden_size
        return self.learned + saved + method.rank * sum(d_in + d_out for d_in, d_out in self.adapted)
