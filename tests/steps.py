"""A step time that is given, for tests of what is made of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GivenStep:
    """Seconds of an optimizer step, and their bounds."""

    s: float
    low_s: float
    high_s: float
    basis: str = "given"
    notes: tuple[str, ...] = ()
