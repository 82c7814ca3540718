"""A table as Markdown, CSV, HTML, LaTeX or JSON: the same cells in each."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence

from vramcalc.errors import InvalidValue

Cell = str | float | int | None
Texts = Sequence[str]
_ALIGNED = ("left", "right")
_MARKDOWN = re.compile(r"[\\`*|<>\[\]]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown reads as markup; an underscore inside a word is none."""


_FORMULA = "=+-@\t\r\n\uff1d\uff0b\uff0d\uff20"
"""How formulas begin, in full-width characters too."""
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)


def significant(value: float, digits: int = 3) -> float:
    """A number cut to what is known of it: ``1234.5 -> 1230.0``, ``0.012345 -> 0.0123``."""
    return float(f"{value:.{digits}g}")


def text_of(cell: Cell, decimals: int | None = None) -> str:
    """A cell as text: nothing for None, numbers without an exponent and, where asked for, with so many decimals."""
    if cell is None:
        return ""
    if isinstance(cell, float):
        shown = f"{cell:.{10 if decimals is None else decimals}f}"
        return shown if decimals is not None else shown.rstrip("0").rstrip(".")
    return str(cell)


def formatted(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    format: str,  # noqa: A002 - as the option
    decimals: Mapping[str, int] | None = None,
) -> str:
    """Rows under their column names.

    Args:
        columns: names.
        rows: cells, one per column.
        format: ``md``, ``csv``, ``html``, ``latex`` or ``json``. In CSV an apostrophe goes before text that a
            spreadsheet would run as a formula.
        decimals: by column, of numbers where they are text; JSON has the numbers themselves.

    Raises:
        InvalidValue: no such format.
    """
    if format not in FORMATS:
        raise InvalidValue("format", format, f"one of {', '.join(FORMATS)}")
    if format == "json":
        return json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2)
    places = [(decimals or {}).get(name) for name in columns]
    texts = [[text_of(cell, n) for cell, n in zip(row, places, strict=True)] for row in rows]
    if format == "csv":
        columns = [_inert(name) for name in columns]
        texts = [
            [_inert(t) if isinstance(c, str) else t for c, t in zip(*both, strict=True)]
            for both in zip(rows, texts, strict=True)
        ]
    numeric = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    return _WRITERS[format](columns, texts, numeric)


def _inert(text: str) -> str:
    """Text that a spreadsheet does not take for a formula: with an apostrophe before what would begin one."""
    return f"'{text}" if text[:1] in _FORMULA and text and not _NUMBER.fullmatch(text) else text


def _csv(columns: Texts, rows: Sequence[Texts], numeric: Sequence[bool]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\r\n")  # so that cells with either are quoted
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue().replace("\r\n", "\n").rstrip("\n")


def _markdown(columns: Texts, rows: Sequence[Texts], numeric: Sequence[bool]) -> str:
    """GitHub's pipe tables; what would be markup is escaped."""
    escaped = [[_MARKDOWN.sub(r"\\\g<0>", " ".join(text.split())) for text in row] for row in (columns, *rows)]
    return _tabulated("pipe", escaped[0], escaped[1:], numeric)


def _html(columns: Texts, rows: Sequence[Texts], numeric: Sequence[bool]) -> str:
    return _tabulated("html", columns, rows, numeric)


def _latex(columns: Texts, rows: Sequence[Texts], numeric: Sequence[bool]) -> str:
    return _tabulated("latex", columns, rows, numeric)


def _tabulated(tablefmt: str, columns: Texts, rows: Sequence[Texts], numeric: Sequence[bool]) -> str:
    from tabulate import tabulate

    align = [_ALIGNED[n] for n in numeric] if rows else None
    return str(tabulate(rows, headers=list(columns), tablefmt=tablefmt, colalign=align, disable_numparse=True))


_Writer = Callable[[Texts, Sequence[Texts], Sequence[bool]], str]
_WRITERS: dict[str, _Writer] = {"md": _markdown, "csv": _csv, "html": _html, "latex": _latex}
FORMATS = (*_WRITERS, "json")
