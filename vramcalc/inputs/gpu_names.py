"""Which GPUs of the table a name may mean: ids, what NVML reports, what clouds and tables of figures write."""

from __future__ import annotations

import re
from collections.abc import Iterable

from vramcalc import tables

_NOISE = frozenset({"nvidia", "geforce", "tesla", "gpu", "generation", "edition"})
_MAKERS = frozenset({"rtx"})
_USUAL_FORM = {"a100-40": "a100-sxm-40", "a100-80": "a100-sxm-80", "h100-80": "h100-sxm"}
"""Names that published tables give a server's GPU, which is on a board with others unless they say PCIe."""


def meant(name: str, rows: Iterable[tables.Row]) -> list[str]:
    """Ids of the GPUs that a name may mean: one where it says enough, none where no GPU is called so.

    Args:
        name: such as ``rtx4090``, ``Tesla T4``, ``NVIDIA A100 80GB PCIe``, ``a100-80``.
        rows: of the table of GPUs.
    """
    if usual := _USUAL_FORM.get(name.lower()):
        return [usual]
    asked = _words(name)
    called = {row["gpu_id"]: (_words(row["gpu_id"]), _words(row["name"]), row["memory_gb"]) for row in rows}
    same = [gpu for gpu, (by_id, by_name, _) in called.items() if asked in (by_id, by_name)]
    if same or not asked - _MAKERS or all(word.isdigit() and len(word) < 4 for word in asked):
        return same
    return [
        gpu
        for gpu, (by_id, by_name, memory_gb) in called.items()
        if asked <= by_id | by_name | _MAKERS | {f"{float(memory_gb):g}"}
    ]


def _words(text: str) -> set[str]:
    """What tells GPUs apart: ``NVIDIA A100-SXM4-80GB`` is ``a100``, ``sxm`` and ``80``."""
    text = re.sub(r"[\s_-]+", " ", text.lower()[:200])
    text = re.sub(r"(\d) ?gb\b", r"\1", text)
    text = re.sub(r"\brtx(\d)", r"rtx \1", text)
    text = re.sub(r"\bsxm\d\b", "sxm", text)
    return set(text.split()) - _NOISE
