"""A training run in steps: from examples and epochs to optimizer steps, tokens and hours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Protocol

from pydantic import BeforeValidator, Field

from vramcalc.errors import InvalidValue
from vramcalc.inputs.base import Spec, whole
from vramcalc.inputs.job import Job
from vramcalc.inputs.stack import TrainingSpec
from vramcalc.inputs.training import SeqLen
from vramcalc.interval import Interval
from vramcalc.timing.flops import step_flops

_S_PER_HOUR = 3600


class StepTime(Protocol):
    """How long an optimizer step takes, all its micro-steps included."""

    @property
    def s(self) -> float:
        """Expected. [s]"""

    @property
    def low_s(self) -> float:
        """Lower bound. [s]"""

    @property
    def high_s(self) -> float:
        """Upper bound. [s]"""

    @property
    def basis(self) -> str:
        """What it rests on, in a word."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know before trusting it."""


class Workload(Spec):
    """The data of a run, and how it is fed."""

    examples: Annotated[int, Field(ge=1, le=10**12), BeforeValidator(whole)]
    """Of the data set, before any are set apart for validation."""
    tokens_per_example: SeqLen
    """Tokens of an example, padding not counted; their mean where they differ."""
    epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    """``num_train_epochs``."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Examples set apart; each epoch ends with a pass over them (``eval_strategy="epoch"``)."""
    packing: bool = False
    """Examples are laid end to end in sequences of ``seq_len``; without, each is a sequence, padded to ``seq_len``."""


@dataclass(frozen=True)
class Schedule:
    """What a run does.

    Attributes:
        train_examples: that the model learns from in each epoch.
        validation_examples: set apart.
        sequences: per epoch.
        steps_per_epoch: optimizer steps; the last of an epoch may be short.
        steps: optimizer steps of the run.
        validation_micro_steps: forward passes of all validation passes together.
        tokens_per_epoch: that are learned from, without padding.
        padding_share: of the tokens that are computed.
        truncated_tokens: per example, cut off as it is longer than a sequence.
    """

    train_examples: int
    validation_examples: int
    sequences: int
    steps_per_epoch: int
    steps: int
    validation_micro_steps: int
    tokens_per_epoch: int
    padding_share: float
    truncated_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


def schedule(work: Workload, training: TrainingSpec) -> Schedule:
    """The steps of a run as ``Trainer`` makes them.

    Args:
        work: examples, their length, epochs.
        training: micro batch, accumulation and length of a sequence.

    Raises:
        InvalidValue: validation leaves nothing to train on, or the steps have lengths of their own.

    References:
        transformers 5.23 ``trainer.py`` (``set_initial_training_values``): an epoch's last step may be short, steps of
        a run are rounded up. datasets ``arrow_dataset.py`` (``train_test_split``): the test share is rounded up. TRL
        1.16 ``data_utils.py`` (``pack_dataset``, strategy ``wrapped``): packed sequences are full.
    """
    if training.seq_lens is not None:
        raise InvalidValue("seq_lens", training.seq_lens, "one length for all steps of a plan", "give seq_len")
    validation = math.ceil(work.validation_share * work.examples)
    train = work.examples - validation
    if train < 1:
        raise InvalidValue("validation_share", work.validation_share, f"to leave one of {work.examples} to train on")
    sequences = _sequences(train, work, training.seq_len)
    steps_per_epoch = math.ceil(math.ceil(sequences / training.micro_batch_size) / training.gradient_accumulation_steps)
    passes = math.ceil(work.epochs)
    tokens = train * work.tokens_per_example if work.packing else train * min(work.tokens_per_example, training.seq_len)
    return Schedule(
        train_examples=train,
        validation_examples=validation,
        sequences=sequences,
        steps_per_epoch=steps_per_epoch,
        steps=math.ceil(work.epochs * steps_per_epoch),
        validation_micro_steps=passes
        * math.ceil(_sequences(validation, work, training.seq_len) / training.micro_batch_size),
        tokens_per_epoch=tokens,
        padding_share=1 - tokens / (sequences * training.seq_len),
        truncated_tokens=0 if work.packing else max(0, work.tokens_per_example - training.seq_len),
    )


def _sequences(examples: int, work: Workload, seq_len: int) -> int:
    return -(-examples * work.tokens_per_example // seq_len) if work.packing else examples


def forward_share(job: Job) -> float:
    """Share of a step's FLOPs that its forward passes make: what a step of validation takes of a training step."""
    by_phase = step_flops(job.model, job.method, job.training, job.stack).by("phase")
    return by_phase["forward"] / sum(by_phase.values())


def hours_of(found: Schedule, step: StepTime, job: Job, *, overhead_s: float = 0.0) -> Interval:
    """How long a run takes.

    Args:
        found: its steps.
        step: how long one takes.
        job: what is trained; decides how a validation step compares.
        overhead_s: loading, saving and whatever else the machine is rented for. [s]

    Returns:
        Hours. [h]

    Raises:
        InvalidValue: an overhead that is no time.
    """
    if not (math.isfinite(overhead_s) and overhead_s >= 0):
        raise InvalidValue("overhead_s", overhead_s, "a time of at least 0")
    per_step = forward_share(job) / job.training.gradient_accumulation_steps
    steps = found.steps + found.validation_micro_steps * per_step
    return Interval(step.low_s, step.s, step.high_s).map(lambda s: (steps * s + overhead_s) / _S_PER_HOUR)
