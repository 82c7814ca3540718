"""What trains, one class per method; fields as in PEFT's configuration of it.

A field tells jobs apart, see :mod:`vramcalc.memory.calibration.similarity`, unless it is marked as one that moves no
memory, or for the values that measured runs have.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, model_validator

from vramcalc.errors import InvalidValue
from vramcalc.inputs import patterns
from vramcalc.inputs.base import MOVES_NO_MEMORY, PositiveCount, Spec, Usual, whole
from vramcalc.inputs.prompt_learning import PrefixTuning as PrefixTuning
from vramcalc.inputs.prompt_learning import PromptTuning as PromptTuning
from vramcalc.inputs.prompt_learning import PTuning as PTuning
from vramcalc.inputs.quantization import BitsAndBytes4bit, Quantization, stored


def _names(value: object) -> object:
    try:
        return frozenset(value) if isinstance(value, (list, tuple, set)) else value
    except TypeError:  # lists in lists, which no check behind this one takes for names
        return value


Pattern = Annotated[str, AfterValidator(patterns.check)]
SavedPattern = Annotated[str, AfterValidator(patterns.check_saved)]
_sorted = PlainSerializer(sorted, return_type=list[str])
ModuleNames = Annotated[frozenset[str], BeforeValidator(_names), _sorted]


Steps = Annotated[int, Field(ge=0, le=1 << 40), BeforeValidator(whole)]


MEASURED_RANK = 32
"""Largest rank of adapters in measured runs of known releases."""


def _inside_layers(targets: str | frozenset[str]) -> bool:
    """Whether adapters are on layers that measured runs adapt: linear ones inside the decoder."""
    names = (targets,) if isinstance(targets, str) else targets
    return not any(end in name for name in names for end in ("embed_tokens", "lm_head"))


class FullFineTuning(Spec):
    """Every parameter trains."""

    trains_base: ClassVar[bool] = True
    """Whether the base model trains; what leaves it frozen is PEFT's."""
    num_virtual_tokens: ClassVar[int] = 0
    """Learned positions before those of the tokens."""
    virtual_keys_only: ClassVar[bool] = False
    """Whether those are keys and values alone, which no layer computes."""
    kind: Literal["full"] = "full"

    @property
    def adapters(self) -> LoRA | None:
        """None: there are none."""
        return None

    @property
    def storage(self) -> BitsAndBytes4bit | None:
        """None: what trains is stored as it is."""
        return None

    def over_four_bits(self) -> QLoRA:
        """The method nearest to this one over a base model stored in NF4."""
        return QLoRA()

    def told(self) -> str:
        """``"full fine-tuning"``."""
        return "full fine-tuning"


class LoRA(Spec):
    """Low-rank adapters beside frozen layers; fields as in PEFT's ``LoraConfig``."""

    trains_base: ClassVar[bool] = False
    num_virtual_tokens: ClassVar[int] = 0
    virtual_keys_only: ClassVar[bool] = False
    config_class: ClassVar[str] = "LoraConfig"
    """Name of PEFT's configuration."""
    kind: Literal["lora"] = "lora"
    rank: Annotated[PositiveCount, Usual(lambda rank: rank <= MEASURED_RANK)] = 16
    """Inner width of every adapter pair (``r`` in PEFT)."""
    lora_alpha: Annotated[float, Field(gt=0), MOVES_NO_MEMORY] = 32.0
    """Scale of the update; it does not change memory."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1), Usual(lambda _: True)] = 0.0
    target_modules: Annotated[Pattern | ModuleNames, Usual(_inside_layers)] = "all-linear"
    """Suffixes of module names, a regular expression on the whole name when a string, or ``all-linear``."""
    modules_to_save: Annotated[
        frozenset[SavedPattern], BeforeValidator(_names), _sorted, Usual(lambda names: not names)
    ] = frozenset()
    """Modules copied and trained in full."""

    @property
    def adapters(self) -> LoRA | None:
        """Itself: what has adapters freezes the base model."""
        return self

    @property
    def storage(self) -> BitsAndBytes4bit | None:
        """How the base model is stored, None as it is loaded."""
        return None

    @property
    def peft_fields(self) -> dict[str, Any]:
        """Arguments of PEFT's configuration."""
        return {"r": self.rank, **self._common_fields()}

    def _common_fields(self) -> dict[str, Any]:
        targets = self.target_modules
        return {
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": targets if isinstance(targets, str) else sorted(targets),
            "modules_to_save": sorted(self.modules_to_save) or None,
        }

    @property
    def allocates_at(self) -> int | None:
        """Step that PEFT's ``update_and_allocate`` is told after each optimizer step; None where nothing calls it."""
        return None

    @property
    def assumed(self) -> str:
        """What is taken for granted of the loop; empty for nothing."""
        return ""

    def plain(self, storage: BitsAndBytes4bit | None) -> LoRA:
        """LoRA with the same adapters over a base model that is stored so, None for one that is not quantised."""
        fields = {name: getattr(self, name) for name in LoRA.model_fields if name != "kind"}
        return LoRA(**fields) if storage is None else QLoRA(**fields, **dict(storage))

    def over_four_bits(self) -> LoRA:
        """The same over a base model stored in NF4."""
        return self.plain(BitsAndBytes4bit())

    def told(self) -> str:
        """``"LoRA r=16 on all-linear"``."""
        return f"LoRA {self._adapters()}"

    def _adapters(self) -> str:
        targets = self.target_modules
        extra = f", dropout {self.lora_dropout:g}" if self.lora_dropout else ""
        saved = f", saving {', '.join(sorted(self.modules_to_save))}" if self.modules_to_save else ""
        return f"r={self.rank} on {targets if isinstance(targets, str) else ', '.join(sorted(targets))}{extra}{saved}"


class QLoRA(BitsAndBytes4bit, LoRA):
    """LoRA over linear layers stored by bitsandbytes in four bits: the fields of both."""

    kind: Literal["qlora"] = "qlora"  # type: ignore[assignment]

    @property
    def storage(self) -> BitsAndBytes4bit | None:
        """Four bits."""
        return BitsAndBytes4bit(**{name: getattr(self, name) for name in BitsAndBytes4bit.model_fields})

    def told(self) -> str:
        """``"QLoRA NF4 double-quantised r=16 on all-linear"``."""
        return f"QLoRA {stored(self.storage)} {self._adapters()}"


class DoRA(LoRA):
    """LoRA whose direction and magnitude train apart: PEFT's ``LoraConfig(use_dora=True)``.

    References:
        Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", ICML 2024. arXiv:2402.09353
    """

    kind: Literal["dora"] = "dora"  # type: ignore[assignment]
    quantization: Annotated[Quantization, Usual(lambda storage: storage is None)] = None
    """How the base model is stored: ``nf4``, ``fp4``, or a spec."""

    @property
    def storage(self) -> BitsAndBytes4bit | None:
        """That of ``quantization``."""
        return self.quantization

    @property
    def peft_fields(self) -> dict[str, Any]:
        """As LoRA's, with ``use_dora``."""
        return {**super().peft_fields, "use_dora": True}

    def over_four_bits(self) -> LoRA:
        """The same over a base model stored in NF4."""
        return self.replace(quantization="nf4")

    def told(self) -> str:
        """``"DoRA r=16 on all-linear"``."""
        over = f"over {stored(self.storage)} " if self.storage else ""
        return f"DoRA {over}{self._adapters()}"


class AdaLoRA(LoRA):
    """LoRA whose ranks are allocated by importance while it trains: PEFT's ``AdaLoraConfig``.

    A run has phases: until ``tinit`` steps are made ranks stay as they are; then they are cut from ``init_r`` to
    ``target_r`` on average, every ``deltaT`` steps; for the last ``tfinal`` steps they stay again. What is cut is
    masked, not freed, and what importance is worked out of is kept from the first step on until the last ``tfinal``:
    memory peaks in the middle, however long each phase is, and that peak is the answer. Steps that are listed
    (``seq_lens``) are of the middle, too.

    References:
        Zhang et al., "Adaptive Budget Allocation for Parameter-Efficient Fine-Tuning", ICLR 2023. arXiv:2303.10512
    """

    config_class: ClassVar[str] = "AdaLoraConfig"
    kind: Literal["adalora"] = "adalora"  # type: ignore[assignment]
    rank: ClassVar[property] = property(lambda self: self.init_r)  # type: ignore[misc]
    init_r: Annotated[PositiveCount, Usual(lambda rank: rank <= MEASURED_RANK)] = 12
    """Inner width of every adapter pair, in memory to the end; PEFT ignores ``r``."""
    target_r: Annotated[PositiveCount, MOVES_NO_MEMORY] = 8
    """Average rank that is left in the end."""
    tinit: Annotated[Steps, MOVES_NO_MEMORY] = 0
    tfinal: Annotated[Steps, MOVES_NO_MEMORY] = 0
    deltaT: Annotated[PositiveCount, MOVES_NO_MEMORY] = 1  # noqa: N815
    beta1: Annotated[float, Field(gt=0, lt=1), MOVES_NO_MEMORY] = 0.85
    beta2: Annotated[float, Field(gt=0, lt=1), MOVES_NO_MEMORY] = 0.85
    orth_reg_weight: Annotated[float, Field(ge=0), MOVES_NO_MEMORY] = 0.5
    """Weight of the orthogonal regularization, which is worked out whatever it is."""
    total_step: Annotated[PositiveCount | None, MOVES_NO_MEMORY] = None
    """Optimizer steps of the run; None for as many as all phases need. PEFT wants a number."""
    update_and_allocate: Annotated[bool, Usual(lambda called: called)] = True
    """The loop calls PEFT's method of that name after each optimizer step, as PEFT's own loops do. Trainer does so
    from a callback of the user's only (``on_optimizer_step``): without it nothing is kept for importance, and no rank
    is cut."""
    quantization: Annotated[Quantization, Usual(lambda storage: storage is None)] = None
    """How the base model is stored: ``nf4``, ``fp4``, or a spec."""

    @model_validator(mode="after")
    def _cuts_ranks(self) -> Self:
        if self.update_and_allocate and self.target_r >= self.init_r:
            raise InvalidValue(
                "target_r", self.target_r, f"less than init_r, {self.init_r}", "PEFT stops where no rank is to be cut"
            )
        if self.total_step is not None and self.tinit >= self.total_step - self.tfinal:
            raise InvalidValue(
                "total_step", self.total_step, f"more than tinit and tfinal, {self.tinit + self.tfinal}, together",
                "PEFT wants steps between them, in which ranks are cut",
            )  # fmt: skip
        return self

    @property
    def storage(self) -> BitsAndBytes4bit | None:
        """That of ``quantization``."""
        return self.quantization

    @property
    def peft_fields(self) -> dict[str, Any]:
        """Arguments of PEFT's ``AdaLoraConfig``."""
        names = ("init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight")
        steps = self.total_step or self.tinit + self.tfinal + 2 * self.deltaT
        return {**{n: getattr(self, n) for n in names}, "total_step": steps, **self._common_fields()}

    @property
    def allocates_at(self) -> int | None:
        """A step at which importance is kept and, unless the run has one such step only, ranks are cut."""
        if not self.update_and_allocate:
            return None
        last: int = self.peft_fields["total_step"] - self.tfinal - 1
        return min((self.tinit // self.deltaT + 1) * self.deltaT, last)

    @property
    def assumed(self) -> str:
        """Who calls ``update_and_allocate``."""
        if not self.update_and_allocate:
            return "no call of update_and_allocate is assumed, so that AdaLoRA cuts no rank"
        return (
            "update_and_allocate is taken to be called after each optimizer step; Trainer does so from a callback "
            "only: without one, set update_and_allocate=False, and no rank is cut"
        )

    def over_four_bits(self) -> LoRA:
        """The same over a base model stored in NF4."""
        return self.replace(quantization="nf4")

    def told(self) -> str:
        """``"AdaLoRA r=12 on all-linear"``."""
        over = f"over {stored(self.storage)} " if self.storage else ""
        return f"AdaLoRA {over}{self._adapters()}"


Method = FullFineTuning | LoRA | QLoRA | DoRA | AdaLoRA | PromptTuning | PTuning | PrefixTuning
