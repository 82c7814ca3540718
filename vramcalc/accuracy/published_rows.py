"""Rows of published figures: the words that their columns allow, and why a row is not predicted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from vramcalc import tables
from vramcalc.errors import Unsupported
from vramcalc.inputs.settings import METHOD_CLASSES

Row = Mapping[str, str]

DTYPES: dict[str, Any] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Their names for dtypes, and torch's."""


_WIDTHS = ("rank", "init_r")
"""What methods call the width of adapters."""


class Reason(Unsupported):
    """Why a row is not predicted, in few words: rows are counted by it."""


def require(checks: Iterable[tuple[object, str]]) -> None:
    """Go through what has to hold, and why a row is not predicted where it does not.

    Raises:
        Reason: the first that does not hold.
    """
    for holds, reason in checks:
        if not holds:
            raise Reason(reason)


def fields_of(row: Row) -> dict[str, Any] | None:
    """What ``tables/method_fields.csv`` says of a run whose method has fields that no column is for, else None."""
    name = row.get("run_id") or row["case_id"]
    found = (known["fields"] for known in tables.read("method_fields") if name.startswith(known["runs"]))
    fields: dict[str, Any] | None = next(map(json.loads, found), None)
    return fields


def adapters_known(row: Row) -> bool:
    """Whether a row says all about its adapters, if it has any, or what else its method learns."""
    if fields_of(row) is not None:
        return True
    return row["method"] == "full" or (bool(row["rank"]) and row["targets"] not in ("", "peft-default"))


def adapters_of(row: Row) -> dict[str, Any]:
    """The fields of its method that a row gives: those of :class:`vramcalc.inputs.stack.LoRA`, or of a table.

    The rank goes by the name that the method has for it.
    """
    fields = fields_of(row)
    if fields is not None:
        return fields
    return {
        next(name for name in _WIDTHS if name in METHOD_CLASSES[row["method"]].model_fields): int(row["rank"]),
        "lora_dropout": float(row["lora_dropout"] or 0),
        "target_modules": "all-linear" if row["targets"] == "all-linear" else row["targets"].split(";"),
        "modules_to_save": [m for m in row["modules_to_save"].split(";") if m],
    }
