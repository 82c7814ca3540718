"""What a program's text cannot show: the CUDA context of a process.

Values come from ``tables/runtime.csv``, each with its basis: ``calibrated`` where a measurement stands behind it,
``assumed`` where none does.
"""

from __future__ import annotations

from dataclasses import dataclass

from vramcalc import tables
from vramcalc.units import MIB

_FALLBACK = "Ampere"


@dataclass(frozen=True)
class Context:
    """Memory that a process takes on the device before its first tensor.

    Attributes:
        n_bytes: size. [B]
        basis: ``calibrated`` or ``assumed``.
        source: where it comes from.
    """

    n_bytes: int
    basis: str
    source: str


def cuda_context(architecture: str | None) -> Context:
    """The CUDA context and kernel modules on a GPU generation; Ampere's where none is named."""
    rows = {row["architecture"]: row for row in tables.read("runtime")}
    row = rows.get(architecture or _FALLBACK)
    if row is None:
        row, basis = rows[_FALLBACK], "assumed"
    else:
        basis = row["basis"]
    return Context(int(row["context_mib"]) * MIB, basis, row["source"])
