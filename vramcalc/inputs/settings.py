"""Settings by name, told apart by the spec whose fields they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vramcalc.errors import InvalidValue, UnknownName
from vramcalc.inputs.stack import FullFineTuning, LoRA, QLoRA, Stack, TrainingSpec

MethodClass = type[FullFineTuning] | type[LoRA]
_NAMED = {"method": "lora", "stack": "transformers-trainer"}
METHOD_CLASSES: dict[str, MethodClass] = {"full": FullFineTuning, "lora": LoRA, "qlora": QLoRA}
"""Methods by name."""


def kind_of(method: object, training: object, stack: object) -> MethodClass:
    """The class of a method that is given by name or as a spec.

    Raises:
        UnknownName: no such method.
        InvalidValue: neither a name nor a spec, of any of the three.
    """
    for what, value, kinds in (("method", method, (str, FullFineTuning, LoRA)), ("stack", stack, (str, Stack))):
        if not isinstance(value, kinds):
            raise InvalidValue(what, value, "a name or a spec", f"such as {_NAMED[what]!r}")
    if training is not None and not isinstance(training, TrainingSpec):
        raise InvalidValue("training", training, "a TrainingSpec", "or give its fields as keywords")
    if isinstance(method, (FullFineTuning, LoRA)):
        return type(method)
    if str(method) not in METHOD_CLASSES:
        raise UnknownName("method", str(method), METHOD_CLASSES)
    return METHOD_CLASSES[str(method)]


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
