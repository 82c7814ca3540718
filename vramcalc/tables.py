"""Reading the shipped tables: facts with their sources, one row each."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from vramcalc.errors import DataError
from vramcalc.files.reading import read_text

Row = dict[str, str]


def directory() -> Path:
    """Where the tables are: inside an installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "tables"
    return inside if inside.is_dir() else here.parent / "tables"


@cache
def read(name: str) -> tuple[Row, ...]:
    """Rows of a shipped table.

    Args:
        name: file name without ``.csv``.

    Raises:
        DataError: as :func:`read_file`.
    """
    return read_file(directory() / f"{name}.csv")


def read_file(path: Path, remedy: str = "reinstall the package", columns: Sequence[str] = ()) -> tuple[Row, ...]:
    """Rows of a CSV file with a header.

    Args:
        path: of the file.
        remedy: what to do where it cannot be read.
        columns: that it must have; others are carried along.

    Raises:
        DataError: the file is missing or no text, it lacks columns, or a row has more or fewer fields than the header.
    """
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        header, rows = reader.fieldnames or (), tuple(reader)
    except OSError as err:
        raise DataError(f"{path}: {err.strerror}: cannot be read; expected a table; {remedy}") from err
    except (UnicodeDecodeError, csv.Error) as err:
        raise DataError(f"{path}: {err}: expected comma-separated UTF-8 text; {remedy}") from err
    if missing := [name for name in columns if name not in header]:
        raise DataError(f"{path} lacks the columns {', '.join(missing)}; {remedy}")
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            raise DataError(f"{path}, row {number}: expected {len(header)} fields; quote those with commas")
    return rows


def checked_on(row: Row) -> datetime.date:
    """Date a row was last held against its source.

    Raises:
        DataError: none, or not as YYYY-MM-DD.
    """
    text = row.get("checked_on", "")
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as err:
        raise DataError(f"checked_on = {text!r}: expected a date; write it as YYYY-MM-DD") from err
