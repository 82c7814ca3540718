"""What all inputs have in common: frozen, strict, with errors that say what was expected."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from vramcalc.errors import InvalidValue, UnknownName, VramcalcError
from vramcalc.inputs.release_dates import UNKNOWN, resolved
from vramcalc.inputs.releases import checked_releases, minor_release, release_of
from vramcalc.inputs.torch_releases import minor_torch, wheel_of


def alias(names: Mapping[str, str]) -> BeforeValidator:
    """Other spellings of a value."""
    return BeforeValidator(lambda v: names.get(v, v) if isinstance(v, str) else v)


def checked(first: tuple[int, int], last: tuple[int, int]) -> AfterValidator:
    """A version string, cut to its minor release, that must be among those whose behaviour has been checked."""

    def check(value: str) -> str:
        minor = minor_release(value)
        if minor is None or not first <= minor <= last:
            raise ValueError(_unchecked(" to ".join(".".join(map(str, r)) for r in dict.fromkeys((first, last)))))
        return ".".join(map(str, minor))

    return AfterValidator(check)


def _unchecked(releases: str) -> str:
    return f"{releases}: the memory of no other release has been checked against traces"


def known_transformers(value: str) -> str:
    """A release of transformers, cut to its minor one; for one that is not known see :func:`release_dates.resolved`."""
    if value == UNKNOWN or "@" in value or re.fullmatch(r"\d{4}-\d\d-\d\d", value):
        return resolved(value)
    minor = minor_release(value)
    if minor is None or release_of(minor) is None:
        raise ValueError(_unchecked(checked_releases()))
    return ".".join(map(str, minor))


def known_torch(value: str) -> str:
    """A release of torch, cut to its minor one."""
    return "{}.{}".format(*minor_torch(value).release)


def published(value: str | None, info: ValidationInfo) -> str | None:
    """The CUDA of a wheel that the release of torch beside it has."""
    if "torch" in info.data:
        wheel_of(info.data["torch"], value)
    return value


def whole(value: object) -> object:
    """Numpy's whole numbers are whole numbers; booleans are not."""
    if isinstance(value, int):
        return value
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return value


DtypeName = Literal["float32", "bfloat16", "float16"]
DTYPE_ALIASES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "half": "float16", "float": "float32"}
Dtype = Annotated[DtypeName, alias(DTYPE_ALIASES)]

PositiveCount = Annotated[int, Field(ge=1, le=1 << 20), BeforeValidator(whole)]
"""A count of things; a million is beyond every real setting."""


@dataclass(frozen=True)
class Usual:
    """Mark of a method's field: the values that measured runs have, or that move no memory, are told by nobody.

    A field without this mark tells jobs apart by its value, see :mod:`vramcalc.memory.calibration.similarity`.

    Attributes:
        holds: whether a value is one of those.
    """

    holds: Callable[[Any], bool]


MOVES_NO_MEMORY = Usual(lambda _value: True)
"""Mark of a field that runs may differ in and take the same memory."""


def _expected(error: dict[str, Any]) -> str:
    """A pydantic error as the sentence after "expected"."""
    ctx = error.get("ctx", {})
    match error["type"]:
        case "int_type" | "int_from_float" | "int_parsing":
            return "a whole number"
        case "float_type" | "finite_number" | "float_parsing":
            return "a finite number"
        case "bool_type":
            return "True or False"
        case "string_type":
            return "a string"
        case "greater_than_equal":
            return f"at least {ctx['ge']:,}"
        case "greater_than":
            return f"more than {ctx['gt']:,}"
        case "less_than_equal":
            return f"at most {ctx['le']:,}"
        case "less_than":
            return f"less than {ctx['lt']:,}"
        case "literal_error":
            return f"one of {ctx['expected']}"
        case "value_error":
            return str(ctx["error"])
        case "string_pattern_mismatch":
            return f"text like {ctx['pattern']}"
        case "missing":
            return "a value, and none was given"
        case _:
            return str(error["msg"]).lower()


class Spec(BaseModel):
    """Base of all inputs: frozen, strict, unknown fields are errors.

    Raises:
        UnknownName: a field that the class does not have; near names are offered.
        InvalidValue: a value of the wrong type or out of range. Booleans and numeric strings are not numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as err:
            raise self._translated(err) from None

    @classmethod
    def _translated(cls, err: ValidationError) -> Exception:
        first = err.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else cls.__name__
        if first["type"] == "extra_forbidden":
            return UnknownName(f"{cls.__name__} field", name, cls.model_fields)
        error = first.get("ctx", {}).get("error")
        if isinstance(error, VramcalcError):
            return error
        value = first["input"] if first["type"] != "missing" else None
        field = cls.model_fields.get(name)
        remedy = "" if field is None or field.is_required() else "or leave it out"
        return InvalidValue(name, value, _expected(dict(first)), remedy)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated again."""
        return type(self)(**{**{n: getattr(self, n) for n in type(self).model_fields}, **changes})
