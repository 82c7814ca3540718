"""Pieces of plain text for a terminal: tables, wrapped lines, warnings."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence

from tabulate import tabulate

WIDTH, WIDEST = 80, 100
"""Of running text, and of tables. [characters]"""
_NARROWEST = 20


def table(
    rows: Iterable[Sequence[object]],
    headers: Sequence[str],
    right: Sequence[int] = (),
    wrap: int | Sequence[int | None] | None = None,
) -> str:
    """A plain table, indented by two; ``right`` are the columns to align right, ``wrap`` the widest a cell may be."""
    align = ["right" if i in right else "left" for i in range(len(headers))]
    titles = headers if any(headers) else ()
    text = tabulate(
        list(rows), headers=titles, tablefmt="plain", colalign=align, disable_numparse=True, maxcolwidths=wrap
    )
    return "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def filled_table(rows: Sequence[Sequence[object]], headers: Sequence[str], right: Sequence[int]) -> str:
    """A table whose last column takes what the others leave of the widest that tables may be."""
    columns = list(zip(headers, *rows, strict=True))[:-1]
    taken = sum(max(len(title) + 2, *(len(str(cell)) for cell in cells)) + 2 for title, *cells in columns)
    return table(rows, headers, right, wrap=[*[None] * len(columns), max(_NARROWEST, WIDEST - 2 - taken)])


def counted(title: str, counts: Counter[str], widest: int | None = None) -> str:
    """How many rows there are, and a table of how many for which reason, the most frequent first."""
    body = [(f"{n:,}", reason) for reason, n in counts.most_common()]
    return (
        f"{title}: {sum(counts.values()):,} rows\n{table(body, ('', ''), right=(0,), wrap=widest and (None, widest))}"
    )


def wrapped(line: str, indent: str = "", width: int = WIDTH) -> str:
    """A line, continued with two more spaces."""
    return textwrap.fill(
        line,
        width,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def wrapped_lines(lines: Iterable[str], indent: str = "  ") -> str:
    """Lines, each wrapped by itself."""
    return "\n".join(wrapped(line, indent) for line in lines)


def warning_parts(warnings: Iterable[str]) -> list[str]:
    """One paragraph of warnings, each said once; none where there are none."""
    found = dict.fromkeys(warnings)
    return [wrapped_lines((f"warning: {w}" for w in found), "")] if found else []
