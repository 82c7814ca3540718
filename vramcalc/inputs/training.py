"""Batch, lengths, accumulation, checkpointing and optimizer of a run, named as in ``TrainingArguments``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, model_validator

from vramcalc.errors import InvalidValue
from vramcalc.inputs.base import PositiveCount, Spec, alias, whole
from vramcalc.inputs.optimizers import ALIASES, OPTIMIZERS, OptimizerFacts, OptimizerName

Checkpointing = Literal["none", "reentrant", "non_reentrant"]
_CHECKPOINTING_ALIASES = {"non-reentrant": "non_reentrant", "off": "none"}

SeqLen = Annotated[int, Field(ge=1, le=1 << 24), BeforeValidator(whole)]


def _lengths(value: object) -> object:
    """Any sequence of numbers as a tuple."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)) or not value:
        raise ValueError("the length of each optimizer step, such as [512, 2048, 1024]")
    return tuple(map(whole, value))


class TrainingSpec(Spec):
    """What a user decides per run; names as in ``TrainingArguments`` where it has them."""

    micro_batch_size: PositiveCount = 1
    """Sequences per forward pass (``per_device_train_batch_size``)."""
    seq_len: SeqLen = 2048
    """Tokens per sequence, padding included."""
    gradient_accumulation_steps: PositiveCount = 1
    gradient_checkpointing: Annotated[Checkpointing, alias(_CHECKPOINTING_ALIASES)] = "none"
    optim: Annotated[OptimizerName, alias(ALIASES)] = "adamw_torch_fused"
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Gradient clipping; 0 switches it off."""
    padded: bool = False
    """The batch holds padding, so attention needs a mask."""
    seq_lens: Annotated[tuple[SeqLen, ...], BeforeValidator(_lengths)] | None = None
    """A run of exactly these optimizer steps, each of its length, from the first on, which finds no optimizer states:
    every number is of them alone, where ``seq_len`` asks for a run that goes on. A longest step that comes first, or a
    single one, therefore needs less than ``seq_len`` of that length. ``seq_len`` is then the longest; giving it to
    :meth:`replace` takes the list away."""

    @model_validator(mode="wrap")
    @classmethod
    def _longest(cls, data: dict[str, Any], made: ModelWrapValidatorHandler[Self]) -> Self:
        spec = made(data)
        longest = spec.seq_len if spec.seq_lens is None else max(spec.seq_lens)
        if spec.seq_len == longest:
            return spec
        if "seq_len" in data:
            expected = f"the longest of seq_lens, {longest}"
            raise InvalidValue("seq_len", spec.seq_len, expected, "or give only one of them")
        return made({**data, "seq_len": longest})

    @property
    def optimizer(self) -> OptimizerFacts:
        """What the optimizer's name stands for."""
        return OPTIMIZERS[self.optim]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        if changes.get("seq_lens") is not None and "seq_len" not in changes:
            kept = {n: getattr(self, n) for n in type(self).model_fields if n != "seq_len"}
            return type(self)(**{**kept, **changes})
        return super().replace(**({"seq_lens": None} if "seq_len" in changes else {}), **changes)
