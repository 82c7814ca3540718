"""Methods that learn what stands before the tokens: virtual tokens, or keys and values of every layer; as in PEFT.

A sequence of ``seq_len`` tokens is the user's own: the virtual ones come on top of it, and the model's
``max_position_embeddings`` has to hold both. Everything of the base model is frozen, and linear layers may be stored in
four bits.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from vramcalc.errors import InvalidValue
from vramcalc.inputs.base import PositiveCount, Spec, Usual
from vramcalc.inputs.quantization import BitsAndBytes4bit, Quantization, stored

MEASURED_VIRTUAL_TOKENS = 20
"""Most virtual tokens in measured runs of known releases."""

VirtualTokens = Annotated[PositiveCount, Usual(lambda n: n <= MEASURED_VIRTUAL_TOKENS)]
EncoderWidth = Annotated[int, Field(ge=1, le=1 << 20)]


class PromptLearning(Spec):
    """What prompt tuning, p-tuning and prefix tuning share; fields as in PEFT's ``PromptLearningConfig``."""

    trains_base: ClassVar[bool] = False
    virtual_keys_only: ClassVar[bool] = False
    title: ClassVar[str]
    config_class: ClassVar[str]
    """Name of PEFT's configuration."""
    kind: str
    num_virtual_tokens: VirtualTokens = 20
    """Learned tokens before each sequence; ``seq_len`` does not count them."""
    quantization: Annotated[Quantization, Usual(lambda storage: storage is None)] = None
    """How the base model is stored: ``nf4``, ``fp4``, or a spec."""

    @property
    def adapters(self) -> None:
        """None: no layer is wrapped."""
        return

    @property
    def storage(self) -> BitsAndBytes4bit | None:
        """That of ``quantization``."""
        return self.quantization

    @property
    def peft_fields(self) -> dict[str, Any]:
        """Arguments of PEFT's configuration."""
        return {n: getattr(self, n) for n in type(self).model_fields if n not in ("kind", "quantization")}

    def over_four_bits(self) -> Self:
        """The same over a base model stored in NF4."""
        return self.replace(quantization="nf4")

    def told(self) -> str:
        """``"prompt tuning, 20 virtual tokens"``."""
        over = f" over {stored(self.storage)}" if self.storage else ""
        return f"{self.title}{over}, {self.num_virtual_tokens:,} virtual tokens{self._more()}"

    def _more(self) -> str:
        return ""


class PromptTuning(PromptLearning):
    """Embeddings of virtual tokens: PEFT's ``PromptTuningConfig``.

    References:
        Lester et al., "The Power of Scale for Parameter-Efficient Prompt Tuning", EMNLP 2021. arXiv:2104.08691
    """

    title: ClassVar[str] = "prompt tuning"
    config_class: ClassVar[str] = "PromptTuningConfig"
    kind: Literal["prompt_tuning"] = "prompt_tuning"


class PTuning(PromptLearning):
    """Embeddings of virtual tokens behind a small network: PEFT's ``PromptEncoderConfig``.

    References:
        Liu et al., "GPT Understands, Too", 2021. arXiv:2103.10385
    """

    title: ClassVar[str] = "p-tuning"
    config_class: ClassVar[str] = "PromptEncoderConfig"
    kind: Literal["p_tuning"] = "p_tuning"
    encoder_reparameterization_type: Annotated[Literal["MLP"], Usual(lambda _: True)] = "MLP"
    """The network: three linear layers. PEFT's other one, ``LSTM``, runs in cuDNN and is not modelled."""
    encoder_hidden_size: Annotated[EncoderWidth | None, Usual(lambda width: width is None)] = None
    """Width of the network; None for the model's ``hidden_size``."""

    def _more(self) -> str:
        return "" if self.encoder_hidden_size is None else f", encoder {self.encoder_hidden_size:,} wide"


class PrefixTuning(PromptLearning):
    """Keys and values before those of the tokens, in every layer: PEFT's ``PrefixTuningConfig``.

    References:
        Li and Liang, "Prefix-Tuning: Optimizing Continuous Prompts for Generation", ACL 2021. arXiv:2101.00190
    """

    title: ClassVar[str] = "prefix tuning"
    config_class: ClassVar[str] = "PrefixTuningConfig"
    virtual_keys_only: ClassVar[bool] = True
    kind: Literal["prefix_tuning"] = "prefix_tuning"
    prefix_projection: bool = False
    """Keys and values come out of a small network instead of being learned as they are."""
    encoder_hidden_size: Annotated[EncoderWidth | None, Usual(lambda width: width is None)] = None
    """Width of that network; None for the width of the keys of all heads."""

    @model_validator(mode="after")
    def _projected(self) -> Self:
        if self.encoder_hidden_size is not None and not self.prefix_projection:
            raise InvalidValue(
                "encoder_hidden_size", self.encoder_hidden_size, "prefix_projection=True beside it",
                "without a projection there is no encoder: leave encoder_hidden_size out",
            )  # fmt: skip
        return self

    def _more(self) -> str:
        if not self.prefix_projection:
            return ""
        width = "" if self.encoder_hidden_size is None else f" {self.encoder_hidden_size:,} wide"
        return f", projected{width}"
