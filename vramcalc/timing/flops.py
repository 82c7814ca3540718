"""Floating-point operations of a training step, by what makes them.

**Convention.** One multiply-add is two operations. Matrix products alone are counted: projections, adapters, the head
and the two products of attention. Attention counts the pairs of tokens that see each other: under a causal mask half
the square, under a sliding window less. A product's backward pass makes two of its size: one for the gradient of its
input, where something below trains, one for the gradient of its weight, where the weight trains.

Model FLOPs are what training needs; recomputation is work done twice to save memory, and a row of its own.

References:
    Kaplan et al., "Scaling Laws for Neural Language Models", 2020, sec. 2.1: 6 N per token. arXiv:2001.08361
    Chowdhery et al., "PaLM", 2022, appendix B: model and hardware FLOPs utilisation. arXiv:2204.02311
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.stack import FullFineTuning, LoRA, Method, ModelSpec, QLoRA, Stack, TrainingSpec, kbit_prepared
from vramcalc.inputs.targets import is_saved, is_target, layers_alike
from vramcalc.timing.matrices import Linear, Matrices

_COUNTED = frozenset({FullFineTuning, LoRA, QLoRA})
"""Methods whose products are counted here; one that is built on them multiplies more."""

What = Literal["layers", "adapters", "attention", "head"]
Phase = Literal["forward", "recomputation", "input gradients", "weight gradients"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of one micro-batch: those computed, those that carry text, and the pairs that attention needs.

    Attributes:
        computed: tokens that pass through the layers, padding included.
        real: tokens of text.
        pairs: pairs of a token and one that it sees.
        square: pairs that a kernel computes which does not skip what the mask hides.
        longest: length of the longest sequence of the batch.
    """

    computed: int
    real: int
    pairs: int
    square: int
    longest: int

    @classmethod
    def padded(cls, lengths: Sequence[int], longest: int | None = None, *, window: int | None = None) -> Tokens:
        """Sequences in a rectangle, each filled up to the longest; attention runs over the rectangle.

        Args:
            lengths: tokens of text of each sequence.
            longest: width of the rectangle; None, that of the longest sequence.
            window: sliding window, None for full attention.

        Raises:
            InvalidValue: no lengths, one below 1, or one that is wider than the rectangle.
        """
        lengths = _checked(lengths)
        width = max(lengths) if longest is None else longest
        if width < max(lengths):
            raise InvalidValue("longest", width, f"at least the longest of the lengths, {max(lengths):,}")
        n = len(lengths)
        return cls(n * width, sum(lengths), n * seen(width, window), n * width * width, width)

    @classmethod
    def packed(cls, lengths: Sequence[int], *, window: int | None = None) -> Tokens:
        """Documents one after the other, each seeing itself alone (padding-free, variable-length attention)."""
        lengths = _checked(lengths)
        total = sum(lengths)
        pairs = sum(seen(n, window) for n in lengths)
        return cls(total, total, pairs, sum(n * n for n in lengths), max(lengths))


def _checked(lengths: Sequence[int]) -> Sequence[int]:
    if not lengths or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in lengths):
        raise InvalidValue("lengths", list(lengths)[:8], "whole numbers of tokens, at least 1 each")
    return lengths


def seen(length: int, window: int | None = None) -> int:
    """Pairs of a token and one that it sees under a causal mask: itself and those before it, ``window`` at most."""
    w = length if window is None else min(window, length)
    return w * (w + 1) // 2 + (length - w) * w


@dataclass(frozen=True)
class FlopRow:
    """Operations of one kind.

    Attributes:
        what: whose products.
        phase: in which pass.
        dtype: that they are computed in.
        flops: per optimizer step.
    """

    what: What
    phase: Phase
    dtype: str
    flops: int


@dataclass(frozen=True)
class Flops:
    """Operations of an optimizer step; the rows sum to ``total``."""

    rows: tuple[FlopRow, ...]
    tokens: Tokens
    micro_steps: int

    @property
    def total(self) -> int:
        """All of them: what the hardware does."""
        return sum(r.flops for r in self.rows)

    @property
    def model(self) -> int:
        """Those that training needs: all but recomputation."""
        return sum(r.flops for r in self.rows if r.phase != "recomputation")

    def by(self, attribute: Literal["what", "phase", "dtype"]) -> Mapping[str, int]:
        """Sums by kind, phase or dtype."""
        found: dict[str, int] = defaultdict(int)
        for row in self.rows:
            found[getattr(row, attribute)] += row.flops
        return dict(found)


def step_flops(
    model: ModelSpec | Matrices,
    method: Method,
    training: TrainingSpec,
    stack: Stack | None = None,
    *,
    tokens: Tokens | None = None,
    square: bool = False,
) -> Flops:
    """Floating-point operations of one optimizer step.

    Args:
        model: the model, or its matrices.
        method: what trains.
        training: batch, length, accumulation and checkpointing.
        stack: the recipe; None, a plain one in bfloat16.
        tokens: of one micro-batch, where they are not ``micro_batch_size`` full sequences of ``seq_len``.
        square: count attention over all pairs, as kernels without a causal shortcut compute it, and as
            ``torch.utils.flop_counter`` counts every kernel.

    Raises:
        Unsupported: steps of several lengths; take them one at a time. A method whose work is not counted.
    """
    if type(method) not in _COUNTED:
        raise Unsupported(
            f"the work of method {method.kind!r} is not counted, so that its time and cost are not known; its memory "
            "is: ask for an estimate, or for the time of 'full', 'lora' or 'qlora'"
        )
    if training.seq_lens is not None:
        raise Unsupported("seq_lens: FLOPs are counted for steps of one length; take the lengths one at a time")
    matrices = Matrices.of(model) if isinstance(model, ModelSpec) else model
    if tokens is None:
        lengths = [training.seq_len] * training.micro_batch_size
        tokens = Tokens.padded(lengths, window=matrices.sliding_window)
    counter = _Counter(matrices, method, training, stack or Stack(), tokens, square)
    counter.count()
    n = training.gradient_accumulation_steps
    rows = tuple(FlopRow(*key, flops=n * flops) for key, flops in counter.found.items() if flops)
    return Flops(rows, tokens, n)


@dataclass
class _Counter:
    """Goes through a model once and notes which of its products the passes make."""

    model: Matrices
    method: Method
    training: TrainingSpec
    stack: Stack
    tokens: Tokens
    square: bool
    found: dict[tuple[What, Phase, str], int] = field(default_factory=lambda: defaultdict(int))

    times: int = 1
    """Layers that what is being counted stands for: those after the first are alike, unless adapters differ."""

    def __post_init__(self) -> None:
        self.adapters = self.method if isinstance(self.method, LoRA) else None
        self.checkpointing = self.training.gradient_checkpointing
        stack = self.stack
        self.stream = "float32" if kbit_prepared(self.method, stack) else stack.dtype
        low = self.method.bnb_4bit_compute_dtype if isinstance(self.method, QLoRA) else stack.dtype
        self.base_dtype = stack.autocast or low
        self.around = stack.autocast or self.stream
        kept = low if stack.adapter_dtype == "weights" else stack.adapter_dtype
        self.adapter_dtype = stack.autocast or kept

    def count(self) -> None:
        """Layers from the first to the last, then the head."""
        model, first = self.model, self.adapters is None or self.checkpointing != "none"
        flows = self._embedding() or first
        if self.adapters is None or layers_alike(self.adapters, model.num_hidden_layers):
            flows = self._layer(model.prefix.format(0), flows)
            self.times = model.num_hidden_layers - 1
            flows = self._layer(model.prefix.format(1), flows)
            self.times = 1
        else:
            for layer in range(model.num_hidden_layers):
                flows = self._layer(model.prefix.format(layer), flows)
        if model.vocab_size:
            self._head(flows)

    def _add(self, what: What, phase: Phase, dtype: str, flops: int) -> None:
        self.found[what, phase, dtype] += self.times * flops

    def _embedding(self) -> bool:
        """Count an adapter on the embedding, whose first half is a look-up; returns whether a gradient flows."""
        name, adapters = self.model.embedding, self.adapters
        if adapters is None or is_saved(adapters, name):
            return True
        if not is_target(adapters, name):
            return False
        flops = 2 * self.tokens.computed * adapters.rank * self.model.hidden_size
        for phase in ("forward", "input gradients", "weight gradients"):
            self._add("adapters", phase, self.adapter_dtype, flops)
        return True

    def _layer(self, prefix: str, flows: bool) -> bool:
        """Count one layer; returns whether a gradient flows through its output."""
        linears: dict[str, Linear] = {x.role: x for x in self.model.linears}
        last = self.model.linears[-1]
        heads = [self._linear(prefix, linears[r], flows) for r in ("q", "k", "v") if r in linears]
        if "qkv" in linears:
            heads = [self._linear(prefix, linears["qkv"], flows)] * 3
        q, k, v = heads
        mixed = self._attention(q, k, v)
        flows = self._linear(prefix, linears["o"], mixed) or flows
        wide = [self._linear(prefix, linears[r], flows) for r in ("gate", "up") if r in linears]
        return self._linear(prefix, linears["down"], any(wide), last=last.role == "down") or flows

    def _linear(self, prefix: str, x: Linear, flows: bool, *, last: bool = False) -> bool:
        """Count a projection and its adapter; returns whether its output has a gradient."""
        name = prefix + x.name
        trains = self.adapters is None or is_saved(self.adapters, name)
        adapted = self.adapters is not None and is_target(self.adapters, name)
        product = 2 * self.tokens.computed * x.d_in * x.d_out * x.active
        # torch's non-reentrant checkpoint stops recomputing at the last tensor that backward needs, which is an input
        # of the layer's last product.
        stops = last and self.checkpointing == "non_reentrant"
        self._product("layers", self.base_dtype, product, flows, trains, again=not (stops and not adapted))
        if adapted and self.adapters is not None:
            down = 2 * self.tokens.computed * x.d_in * self.adapters.rank * x.active
            up = 2 * self.tokens.computed * self.adapters.rank * x.d_out * x.active
            self._product("adapters", self.adapter_dtype, down, flows, True)
            self._product("adapters", self.adapter_dtype, up, True, True, again=not stops)
        return flows or trains or adapted

    def _product(self, what: What, dtype: str, flops: int, flows: bool, trains: bool, *, again: bool = True) -> None:
        self._add(what, "forward", dtype, flops)
        if self.checkpointing != "none" and again:
            self._add(what, "recomputation", dtype, flops)
        self._add(what, "input gradients", dtype, flops * flows)
        self._add(what, "weight gradients", dtype, flops * trains)

    def _attention(self, q: bool, k: bool, v: bool) -> bool:
        """Scores and their product with the values; returns whether the result has a gradient."""
        tokens = self.tokens
        pairs = tokens.square if self.square or not self.model.causal else tokens.pairs
        product, scores = 2 * pairs * self.model.query_size, q or k
        self._add("attention", "forward", self.around, 2 * product)
        if self.checkpointing != "none":
            self._add("attention", "recomputation", self.around, 2 * product)
        if self.stack.attn_implementation != "eager" and (scores or v):
            # Fused kernels keep no scores: their backward makes them again, and all gradients whether needed or not.
            self._add("attention", "recomputation", self.around, product)
            self._add("attention", "input gradients", self.around, 4 * product)
        else:
            self._add("attention", "input gradients", self.around, product * (q * 1 + k * 1 + v * 1 + scores * 1))
        return scores or v

    def _head(self, flows: bool) -> None:
        """The product with the vocabulary."""
        flops = 2 * self.tokens.computed * self.model.hidden_size * self.model.vocab_size
        name, adapters = "lm_head", self.adapters
        trains = adapters is None or is_saved(adapters, name)
        self._add("head", "forward", self.around, flops)
        if self.stack.loss == "chunked" and (flows or trains):
            self._add("head", "recomputation", self.around, flops)
        self._add("head", "input gradients", self.around, flops * flows)
        self._add("head", "weight gradients", self.around, flops * trains)
        if adapters is not None and is_target(adapters, name):
            down, up = (
                2 * self.tokens.computed * adapters.rank * d for d in (self.model.hidden_size, self.model.vocab_size)
            )
            for size, through in ((down, flows), (up, True)):
                self._add("adapters", "forward", self.adapter_dtype, size)
                self._add("adapters", "input gradients", self.adapter_dtype, size * through)
                self._add("adapters", "weight gradients", self.adapter_dtype, size)
