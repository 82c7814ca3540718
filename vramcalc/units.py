"""Bytes, seconds and dollars as people write them; the only module that knows 1024.

Everywhere else a size is an ``int`` of bytes, and a unit stands in the name of what holds it.
"""

from __future__ import annotations

import math
import re

from vramcalc.errors import InvalidValue

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_SUFFIXES = {
    "": 1,
    "b": 1,
    **dict.fromkeys(("k", "kib"), KIB),
    **dict.fromkeys(("m", "mib"), MIB),
    **dict.fromkeys(("g", "gib"), GIB),
    **dict.fromkeys(("t", "tib"), 1 << 40),
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_BYTES = re.compile(r"([0-9]{1,18})(?:\.([0-9]{1,18}))?\s*([a-z]*)", re.IGNORECASE)


def parse_bytes(text: str, *, name: str = "size") -> int:
    """Bytes in a string such as ``"80GiB"``, ``"24 GB"`` or ``"25769803776"``.

    Binary suffixes (KiB, MiB, GiB, TiB, and K, M, G, T as schedulers write them) are powers of 1024, decimal ones (kB,
    MB, GB, TB) powers of 1000.

    Args:
        text: a number and an optional suffix.
        name: what the size is, for the error.

    Returns:
        The size, rounded down to a whole byte. [B]

    Raises:
        InvalidValue: the text is not a number followed by a known suffix, or a bare number under a megabyte, which
            is more likely to lack its unit.
    """
    match = _BYTES.fullmatch(text.strip())
    factor = _SUFFIXES.get(match[3].lower()) if match else None
    if match is None or factor is None:
        raise InvalidValue(name, text, "a number of bytes, or a number followed by KiB, MiB, GiB, kB, MB or GB")
    if not match[3] and 0 < float(f"{match[1]}.{match[2] or 0}") < MIB:
        raise InvalidValue(name, text, "a unit behind so small a number", f"{text.strip()}GiB, or {text.strip()}B")
    decimals = match[2] or ""
    scale: int = 10 ** len(decimals)
    return int(match[1] + decimals) * factor // scale


def gib(n_bytes: float) -> str:
    """``n_bytes`` in GiB with two decimals: ``"15.08 GiB"``."""
    return f"{n_bytes / GIB:.2f} GiB"


def percent(share: float) -> str:
    """A probability as people read it: ``"96 %"``, never 0 or 100, as no model is so sure."""
    return "> 99 %" if share > 0.99 else "< 1 %" if share < 0.01 else f"{math.floor(100 * share)} %"


def human_bytes(n_bytes: float) -> str:
    """``n_bytes`` in the smallest binary unit below a thousand of it: ``"512 B"``, ``"8.1 MiB"``, ``"15.1 GiB"``."""
    sign, n = ("-", -n_bytes) if n_bytes < 0 else ("", n_bytes)
    if n < 1000:
        return f"{sign}{n:.0f} B"
    size, unit = next(((s, u) for s, u in ((KIB, "KiB"), (MIB, "MiB")) if n < 999.95 * s), (GIB, "GiB"))
    return f"{sign}{n / size:,.1f} {unit}"


def human_hours(hours: float, *others: float) -> str:
    """Hours as people say them: ``"40 s"``, ``"25 min"``, ``"3.2 h"``, ``"5.1 days"``.

    Args:
        hours: decides the unit.
        others: bounds around it, which follow in brackets: ``"25 min (20 to 31)"``.
    """
    scales = ((0.025, 3600.0, "s"), (1.5, 60.0, "min"), (72.0, 1.0, "h"), (float("inf"), 1 / 24, "days"))
    size, unit = next((size, unit) for limit, size, unit in scales if hours < limit)
    shown = [f"{n:.{0 if n >= 10 else 1 if n >= 1 else 2}f}" for n in (size * h for h in (hours, *others))]
    return f"{shown[0]} {unit}" + (f" ({' to '.join(shown[1:])})" if others else "")


def usd(amount: float) -> str:
    """``amount`` of dollars to the cent: ``"1,234.50"``; below a cent ``"0.01"``, as nothing is free."""
    return f"{max(amount, 0.01):,.2f}" if amount > 0 else "0.00"


def round_up(n: int, multiple: int) -> int:
    """The smallest multiple of ``multiple`` that is not below ``n``."""
    return -(-n // multiple) * multiple
