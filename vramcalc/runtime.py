"""What a program's text cannot show: the CUDA context of a process, as documented or assumed.

Values come from ``tables/runtime.csv``, each with its basis: ``calibrated`` where a measurement stands behind it,
``assumed`` where none does. What measured runs say comes first, see :mod:`vramcalc.calibration`.
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
        low_bytes: lower end of its 90 % interval. [B]
        high_bytes: upper end. [B]
    """

    n_bytes: int
    basis: str
    source: str
    low_bytes: int
    high_bytes: int


def documented_contexts() -> dict[str, Context]:
    """Every generation of the table."""
    found = {}
    for row in tables.read("runtime"):
        size = int(row["context_mib"]) * MIB
        found[row["architecture"]] = Context(size, row["basis"], row["source"], size, size)
    return found


def documented(architecture: str | None) -> Context:
    """The CUDA context and kernel modules on a GPU generation; Ampere's where none is named."""
    known = documented_contexts()
    row = known.get(architecture or _FALLBACK)
    if row is not None:
        return row
    other = known[_FALLBACK]
    return Context(other.n_bytes, "assumed", other.source, other.low_bytes, other.high_bytes)
