"""How the weights of a frozen base model are stored: independent of what trains over them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from vramcalc.errors import InvalidValue
from vramcalc.inputs.base import Dtype, Spec, Usual


class BitsAndBytes4bit(Spec):
    """Linear layers stored by bitsandbytes in four bits; fields as in ``BitsAndBytesConfig``."""

    bnb_4bit_quant_type: Annotated[Literal["nf4", "fp4"], Usual(lambda _: True)] = "nf4"
    """Code of the bits; jobs are told apart by it as by their method."""
    bnb_4bit_use_double_quant: Annotated[bool, Usual(lambda _: True)] = True
    bnb_4bit_compute_dtype: Annotated[Dtype, Usual(lambda dtype: dtype != "float32")] = "bfloat16"


def spelled_out(value: Any) -> Any:
    """A storage by its word or by its fields.

    Raises:
        InvalidValue: no such word.
    """
    match value:
        case "none":
            return None
        case "nf4" | "fp4":
            return BitsAndBytes4bit(bnb_4bit_quant_type=value)
        case str():
            raise InvalidValue("quantization", value, "none, nf4 or fp4", "or leave it out")
        case dict():
            return BitsAndBytes4bit(**value)
    return value


def stored(storage: BitsAndBytes4bit | None) -> str:
    """``"NF4 double-quantised"``."""
    if storage is None:
        return "unquantised"
    return f"{storage.bnb_4bit_quant_type.upper()}{' double-quantised' if storage.bnb_4bit_use_double_quant else ''}"


Quantization = Annotated[BitsAndBytes4bit | None, BeforeValidator(spelled_out)]
