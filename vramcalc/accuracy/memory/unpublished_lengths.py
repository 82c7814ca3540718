"""Sequence lengths of PEFT's benchmark, inferred from its published means; reserved memory depends on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from statistics import NormalDist, fmean


@dataclass(frozen=True)
class Buckets:
    """A run over samples sorted by length, the longest first, inside buckets of several batches.

    Sample lengths are taken as log-normal and cut at the longest; a batch is as long as its longest sample.

    Attributes:
        mean: of the samples. [tokens]
        longest: of all samples. [tokens]
        spread: standard deviation of the logarithm of the lengths.
        micro_batch_size: samples of a batch.
        n_batches: batches of a bucket.
        mean_batch: mean length of the batches, padding included. [tokens]
    """

    mean: float
    longest: int
    spread: float
    micro_batch_size: int
    n_batches: int
    mean_batch: int

    @cached_property
    def usual(self) -> tuple[int, ...]:
        """Expected lengths of the batches of a bucket, in the order they come. [tokens]"""
        low, high = log(self.mean) - self.spread**2, log(self.longest)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self._mean_of(middle) < self.mean else (low, middle)
        n = self.n_batches * self.micro_batch_size
        return tuple(round(self._length(low, (n - r) / (n + 1))) for r in range(0, n, self.micro_batch_size))

    def _length(self, location: float, quantile: float) -> float:
        logs = NormalDist(location, self.spread)
        return exp(logs.inv_cdf(quantile * logs.cdf(log(self.longest))))

    def _mean_of(self, location: float) -> float:
        return fmean(self._length(location, (i + 0.5) / 500) for i in range(500))

    @property
    def history(self) -> tuple[int, ...]:
        """A usual bucket, then the one that starts with the longest batch. [tokens]"""
        return (*self.usual, self.longest, *self.usual[1:])


PEFT_METAMATHQA = Buckets(209.9, 692, spread=0.45, micro_batch_size=4, n_batches=20, mean_batch=224)
"""PEFT's MetaMathQA comparison: batches of four, sorted inside buckets of 20, 209.9 tokens a sample by its logs.

Three numbers are not published. 692 is what the reserved memory of its LoRA run of rank 32 says, 224 what the
allocated average of its IA3 run says (logits and KV cache per token); the spread is a guess, and between 0.35 and 0.5
it moves the reserved memory of LoRA by less than 0.15 % and that of full fine-tuning by less than 0.4 %.

References:
    huggingface/peft method_comparison/MetaMathQA/run.py, and utils.py, ``BucketIterator``.
"""
