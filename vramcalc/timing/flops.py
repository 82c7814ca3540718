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
from dataclasses import dataclass, replace
from typing import Literal, get_args

from vramcalc.errors import InvalidValue, Unsupported
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import Method, ModelSpec, Stack, TrainingSpec
from vramcalc.shadow.engine.work import Pass
from vramcalc.timing.counted import Key, What, counted, counted_outline
from vramcalc.timing.matrices import Matrices


@dataclass(frozen=True)
class Tokens:
    """The tokens of one micro-batch: those computed, those that carry text, and the pairs that attention needs.

    Attributes:
        computed: tokens that pass through the layers, padding and virtual ones included.
        real: tokens of text.
        pairs: pairs of a token and one that it sees.
        square: pairs that a kernel computes which does not skip what the mask hides.
        longest: length of the longest sequence of the batch, as it passes through the layers.
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

    def behind(self, virtual: int, *, keys_only: bool, window: int | None = None) -> Tokens:
        """The same behind virtual tokens before every sequence, which count as tokens or are only seen.

        Sequences are taken for as many as fill the rectangle, all as long as the longest.
        """
        n = max(1, round(self.computed / self.longest))
        whole = self.longest + virtual
        beyond = seen(whole, window) - seen(self.longest, window) - (seen(virtual, window) if keys_only else 0)
        added = 0 if keys_only else n * virtual
        return Tokens(
            self.computed + added,
            self.real,
            self.pairs + n * beyond,
            self.square + virtual * (self.computed + added) + added * self.longest,
            self.longest if keys_only else whole,
        )


def _in_turns(kinds: Sequence[Tokens], n_layers: int) -> Tokens:
    """Tokens of layers whose windows take turns: pairs are the mean over layers."""
    pairs = sum(kinds[i % len(kinds)].pairs for i in range(n_layers)) // n_layers
    return replace(kinds[0], pairs=pairs)


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
    phase: Pass
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
        tokens: of one micro-batch, where they are not ``micro_batch_size`` full sequences of ``seq_len``; virtual ones
            come on top.
        square: count attention over all pairs, as kernels without a causal shortcut compute it, and as
            ``torch.utils.flop_counter`` counts every kernel.

    Raises:
        Unsupported: steps of several lengths, to be taken one at a time; a method that is not modelled; a job
            that cannot run; something that trains in a way that is not counted.
    """
    if training.seq_lens is not None:
        raise Unsupported("seq_lens: FLOPs are counted for steps of one length; take the lengths one at a time")
    if isinstance(model, ModelSpec):
        found = counted(Job(model, method, training, stack or Stack()))
        causal, windows = True, model.windows
    else:
        found = counted_outline(model, method, stack or Stack(), training.gradient_checkpointing)
        causal, windows = model.causal, (model.sliding_window,)
    if tokens is None:
        lengths = [training.seq_len] * training.micro_batch_size
        kinds = [_given(Tokens.padded(lengths, window=w), method, w) for w in windows]
        tokens = _in_turns(kinds, model.num_hidden_layers)
    else:
        tokens = _given(tokens, method, windows[0])
    pairs = tokens.square if square or not causal else tokens.pairs
    n = training.gradient_accumulation_steps
    rows = []
    for (what, phase, dtype), flops in sorted(found.flops.items(), key=_order):
        size, whole = (pairs, found.square) if what == "attention" else (tokens.computed, found.tokens)
        rows.append(FlopRow(what, phase, dtype, n * (flops * size // whole)))
    return Flops(tuple(rows), tokens, n)


def _given(tokens: Tokens, method: Method, window: int | None) -> Tokens:
    """A user's tokens as a method has them pass."""
    if not method.num_virtual_tokens:
        return tokens
    return tokens.behind(method.num_virtual_tokens, keys_only=method.virtual_keys_only, window=window)


def _order(row: tuple[Key, int]) -> tuple[int, int, str]:
    """Parts of the model, then passes, as they run."""
    what, made_in, dtype = row[0]
    return get_args(What).index(what), get_args(Pass).index(made_in), dtype
