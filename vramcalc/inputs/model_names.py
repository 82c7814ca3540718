"""Which model of the table a name means: ids of tunes and mirrors, addresses, tags of model runners, plain words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vramcalc import tables

MIRRORS = frozenset({"unsloth", "nousresearch"})
"""Owners on the hub who copy models under their makers' names, with the makers' configuration."""
_VARIANTS = frozenset({"meta", "instruct", "chat", "it", "text", "base", "pt", "hf", "bf16", "fp16"})
"""Words for tunes and copies that have the shape of the model they were made from."""
_FOUR_BITS = re.compile(r"(-unsloth)?-bnb-4bit$", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/\s?#]+/[^/\s?#]+)(?:[/?#].*)?")
_MOST = 8
"""Models worth listing for one name."""


def without_address(name: str) -> str:
    """``owner/name`` of a model's page on the hub; other names as they are."""
    match = _ADDRESS.fullmatch(name)
    return match[1] if match else name


def copied_in_four_bits(name: str) -> str | None:
    """The name of the model that a copy quantised by bitsandbytes was made from, None for other names."""
    return _FOUR_BITS.sub("", name) if _FOUR_BITS.search(name) else None


def names(row: tables.Row) -> list[str]:
    """Every name that the table has for a model."""
    return [row["hf_id"], row["alias"], *row["also"].split()]


def meant(name: str, rows: Iterable[tables.Row]) -> list[tables.Row]:
    """Models that a name may mean: one where it says enough, none where no model of the table is called so.

    Args:
        name: such as ``llama3.1:8b``, ``Llama 3.1 8B``, ``unsloth/Llama-3.2-1B-Instruct`` or ``llama3``.
        rows: of the table of models.
    """
    owner, _, rest = name.rpartition("/")
    asked = _words(rest)
    if not asked or "/" in owner:
        return []
    rows = [row for row in rows if not owner or owner.lower() in MIRRORS | _owners(row)]
    called = [(row, [_words(other.rpartition("/")[2]) for other in names(row)]) for row in rows]
    same = [row for row, known in called if asked in known]
    if same or owner:
        return same[:1]
    begun = [row for row, known in called if any(words[: len(asked)] == asked for words in known)]
    return begun if 1 < len(begun) <= _MOST else []


def _owners(row: tables.Row) -> set[str]:
    return {name.partition("/")[0].lower() for name in names(row) if "/" in name}


def _words(text: str) -> list[str]:
    """Words and figures: ``llama3.1:8b-instruct`` is ``llama``, ``3.1`` and ``8b``."""
    return [word for word in re.findall(r"[a-z]+|\d[\d.]*[a-z]*", text.lower()[:200]) if word not in _VARIANTS]
