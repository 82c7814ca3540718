"""Settings by name, told apart by the spec whose fields they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast, get_args

from vramcalc.errors import InvalidValue, UnknownName, Unsupported
from vramcalc.inputs.quantization import BitsAndBytes4bit, spelled_out
from vramcalc.inputs.stack import FullFineTuning, Method, QLoRA, Stack, TrainingSpec

MethodClass = type[Method]
_NAMED = {"method": "lora", "stack": "transformers-trainer"}
METHOD_CLASSES: dict[str, MethodClass] = {spec.model_fields["kind"].default: spec for spec in get_args(Method)}
"""Methods by name."""


def kind_of(method: object, training: object, stack: object) -> MethodClass:
    """The class of a method that is given by name or as a spec.

    Raises:
        UnknownName: no such method.
        InvalidValue: neither a name nor a spec, of any of the three.
    """
    for what, value, kinds in (("method", method, (str, *METHOD_CLASSES.values())), ("stack", stack, (str, Stack))):
        if not isinstance(value, kinds):
            raise InvalidValue(what, value, "a name or a spec", f"such as {_NAMED[what]!r}")
    if training is not None and not isinstance(training, TrainingSpec):
        raise InvalidValue("training", training, "a TrainingSpec", "or give its fields as keywords")
    if not isinstance(method, str):
        return cast("MethodClass", type(method))
    if str(method) not in METHOD_CLASSES:
        raise UnknownName("method", str(method), METHOD_CLASSES)
    return METHOD_CLASSES[str(method)]


def settings_of_method(name: str) -> set[str]:
    """Settings that a method takes, storage included; none of a method that does not exist."""
    if name not in METHOD_CLASSES:
        return set()
    own = set(METHOD_CLASSES[name].model_fields)
    return own | set(BitsAndBytes4bit.model_fields) if "quantization" in own else own | {"quantization"}


def over_storage(method: MethodClass, settings: Mapping[str, Any]) -> tuple[MethodClass, dict[str, Any]]:
    """A method over ``quantization``, and the settings that say so in its own fields: LoRA over four bits is QLoRA.

    Raises:
        InvalidValue: no such storage, or one that is said twice and differently.
        Unsupported: weights that train are not quantised.
    """
    rest = {name: value for name, value in settings.items() if name != "quantization"}
    if "quantization" not in settings:
        return method, rest
    storage = spelled_out(settings["quantization"])
    if method is FullFineTuning and storage is not None:
        raise Unsupported(
            "quantization with method 'full': weights in four bits cannot be trained; use 'qlora', or "
            "quantization='none'"
        )
    if method is QLoRA and storage is None:
        raise InvalidValue("quantization", "none", "nf4 or fp4 with method 'qlora'", "use method 'lora'")
    own = {name: rest.pop(name) for name in BitsAndBytes4bit.model_fields if name in rest and storage is not None}
    if storage is None or "quantization" in method.model_fields:
        made = {} if storage is None else {"quantization": storage.replace(**own)}
        return method, rest | made
    if own.get("bnb_4bit_quant_type", storage.bnb_4bit_quant_type) != storage.bnb_4bit_quant_type:
        raise InvalidValue(
            "bnb_4bit_quant_type", own["bnb_4bit_quant_type"], f"that of quantization={storage.bnb_4bit_quant_type!r}",
            "leave one of them out",
        )  # fmt: skip
    return QLoRA, rest | {name: getattr(storage, name) for name in BitsAndBytes4bit.model_fields} | own


def by_spec(method: MethodClass, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of the method, of the training and of the stack, under those names.

    Raises:
        UnknownName: a setting that none of them has.
    """
    fields = {"method": method.model_fields, "training": TrainingSpec.model_fields, "stack": Stack.model_fields}
    given: dict[str, dict[str, Any]] = {part: {} for part in fields}
    for name, value in settings.items():
        part = next((p for p, known in fields.items() if name in known and name not in ("kind", "name")), None)
        if part is None:
            raise UnknownName(
                f"setting of {method.model_fields['kind'].default}", name, [n for f in fields.values() for n in f]
            )
        given[part][name] = value
    return given
