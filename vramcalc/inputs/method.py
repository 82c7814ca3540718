"""What trains, one class per method; fields as in PEFT's configuration of it.

A field tells jobs apart, see :mod:`vramcalc.memory.calibration.similarity`, unless it is marked as one that moves no
memory, or for the values that measured runs have.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from vramcalc.inputs import patterns
from vramcalc.inputs.base import MOVES_NO_MEMORY, PositiveCount, Spec, Usual
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
        """Arguments of PEFT's ``LoraConfig``."""
        targets = self.target_modules
        return {
            "r": self.rank,
            "lora_alpha": self.lora_alpha,
            "lora_dropout": self.lora_dropout,
            "target_modules": targets if isinstance(targets, str) else sorted(targets),
            "modules_to_save": sorted(self.modules_to_save) or None,
        }

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


Method = FullFineTuning | LoRA | QLoRA | DoRA | PromptTuning | PTuning | PrefixTuning
