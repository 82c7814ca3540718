"""Which GPU of the table a name means: ids, what NVML reports, what clouds, schedulers and people write."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vramcalc import tables

_NOISE = frozenset({"nvidia", "geforce", "tesla", "gpu", "generation", "edition"})
_MAKERS = frozenset({"rtx"})
"""Words that people leave out."""
_USUAL_FORM = {
    frozenset({"a100", "40"}): "a100-sxm-40",
    frozenset({"a100", "80"}): "a100-sxm-80",
    frozenset({"h100", "80"}): "h100-sxm",
}
"""What tables of figures and clouds mean by a server's GPU and its memory, unless they say PCIe."""

_COUNTED = (
    r"(?:--gres=)?(?:gres[:/])?gpu:(?P<name>[^:]*[a-z][^:]*)(?::(?P<n>\d{1,6}))?",  # Slurm: gpu:a100:2
    r"(?P<n>\d{1,6}) ?[x*] ?(?P<name>.+)",  # 8xA100
    r"(?P<name>.+) ?: ?(?P<n>\d{1,6})",  # A100-80GB:8
    r"(?P<name>.+)(?: |(?<=\d))x ?(?P<n>\d{1,3})",  # A100 x 8
)


def counted(text: str) -> tuple[str, int]:
    """A GPU's name without the number of them, and that number, 1 where none is said.

    Args:
        text: such as ``8xA100``, ``A100-80GB:8``, ``H100 x 4`` or Slurm's ``gpu:a100:2``.
    """
    text = " ".join(text[:200].split())
    for form in _COUNTED:
        if match := re.fullmatch(form, text, re.IGNORECASE):
            return match["name"].strip(), int(match["n"] or 1)
    return text, 1


def meant(name: str, rows: Iterable[tables.Row]) -> list[str]:
    """Ids of the GPUs that a name may mean: one where it says enough, none where no GPU is called so.

    Args:
        name: such as ``3090``, ``rtx4090``, ``Tesla T4``, ``NVIDIA A100 80GB PCIe``, ``a100-80gb``.
        rows: of the table of GPUs.
    """
    asked = _words(name)
    if usual := _USUAL_FORM.get(frozenset(asked)):
        return [usual]
    called = {row["gpu_id"]: (_words(row["gpu_id"]), _words(row["name"]), _memory(row)) for row in rows}
    same = [
        gpu
        for gpu, (by_id, by_name, memory) in called.items()
        if any(asked == words or _told_apart(asked, memory) == _told_apart(words, memory) for words in (by_id, by_name))
    ]
    if same or all(word.isdigit() for word in asked - _MAKERS):
        return same
    return [gpu for gpu, (by_id, by_name, memory) in called.items() if asked <= by_id | by_name | _MAKERS | {memory}]


def _memory(row: tables.Row) -> str:
    return f"{float(row['memory_gb']):g}"


def _told_apart(words: set[str], memory: str) -> set[str]:
    """Words without those that say no more than which GPU of that memory it is."""
    return words - _MAKERS - {memory}


def _words(text: str) -> set[str]:
    """What tells GPUs apart: ``NVIDIA A100-SXM4-80GB`` is ``a100``, ``sxm`` and ``80``."""
    text = re.sub(r"[\s_/-]+", " ", text.lower()[:200])
    text = re.sub(r"\b(\d+) ?g(i?b)?\b", r"\1", text)
    text = re.sub(r"\b(rtx|gtx)(\d)", r"\1 \2", text)
    text = re.sub(r"(\d)(ti|super)\b", r"\1 \2", text)
    text = re.sub(r"\bsxm\d\b", "sxm", text)
    return set(text.split()) - _NOISE
