"""The fitted timing model as it ships: ``tables/timing.json``, which ``vramcalc.accuracy.time.generate`` writes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from vramcalc import tables
from vramcalc.errors import DataError
from vramcalc.files.reading import read_text
from vramcalc.timing.roofline import KINDS, Coefficients

_FIGURES = 4
"""Significant figures that are kept."""


@dataclass(frozen=True)
class Spreads:
    """From expected errors to intervals.

    Attributes:
        measured: half-width over expected error, on a GPU with rows: the larger of those without model and source.
        other: the same on a GPU without rows, each left-out GPU counting alike.
        repeated: half-width, as a logarithm, of a step whose time was measured.
        scaled: the same where another batch or length of the same run was measured.
        ratio: half-width over expected error of the ratio of two methods: the larger of those without model and source.
    """

    measured: float
    other: float
    repeated: float
    scaled: float
    ratio: float


@dataclass(frozen=True)
class Checked:
    """What the rows cover.

    Attributes:
        rows: how many there are, those that say nothing but ratios not counted.
        sources: repositories that they are from.
        longest: length of the longest sequence.
        micro_tokens: most tokens of a micro-batch.
        methods: rows by GPU and method.
        pairs: two methods in one cell, which ratios were checked against.
    """

    rows: int
    sources: int
    longest: int
    micro_tokens: int
    methods: Mapping[str, Mapping[str, int]]
    pairs: int

    def rows_on(self, gpu: str) -> int:
        """Rows of a GPU."""
        return sum(self.methods.get(gpu, {}).values())


@dataclass(frozen=True)
class TimingTable:
    """The fit, its intervals and what it covers."""

    coefficients: Coefficients
    spreads: Spreads
    checked: Checked

    def to_json(self) -> str:
        """As the file holds it: rounded, a row of numbers to a line."""
        text = json.dumps(_rounded(asdict(self)), indent=1, allow_nan=False)
        return re.sub(r"\[\s+([^][]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> TimingTable:
        """As the file holds it.

        Raises:
            DataError: no JSON, or not of this shape.
        """
        try:
            data = json.loads(text)
            c = data["coefficients"]
            made = cls(
                Coefficients(c["factors"], c["products"], tuple(tuple(row) for row in c["covariance"])),
                Spreads(**data["spreads"]),
                Checked(**data["checked"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as err:
            expected = "expected what 'python -m vramcalc.accuracy.time.generate' writes"
            raise DataError(f"{where}: {err!r}: {expected}") from err
        known = made.coefficients
        size = len(KINDS) + len(known.products)
        if list(known.factors) != list(KINDS) or [len(row) for row in known.covariance] != [size] * size:
            raise DataError(f"{where} is of another version; run 'python -m vramcalc.accuracy.time.generate'")
        return made


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_FIGURES}g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(v) for v in value]
    return value


@cache
def timing_table() -> TimingTable:
    """The shipped fit.

    Raises:
        DataError: the file is missing or broken.
    """
    path = tables.directory() / "timing.json"
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read: {err}; run 'python -m vramcalc.accuracy.time.generate'") from err
    return TimingTable.from_json(text, str(path))


def agree(a: TimingTable, b: TimingTable, tolerance: float = 0.01) -> bool:
    """Whether two fits are the same but for the rounding of another machine's arithmetic."""
    if asdict(a.checked) != asdict(b.checked) or list(a.coefficients.products) != list(b.coefficients.products):
        return False
    pairs = [
        *zip(a.coefficients.factors.values(), b.coefficients.factors.values(), strict=True),
        *zip(a.coefficients.products.values(), b.coefficients.products.values(), strict=True),
        *zip(asdict(a.spreads).values(), asdict(b.spreads).values(), strict=True),
    ]
    return all(math.isclose(x, y, rel_tol=tolerance) for x, y in pairs)
