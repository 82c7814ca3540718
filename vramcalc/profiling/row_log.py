"""Files of one row per line that survive being killed: rows are only ever added, each whole or not at all.

A row is one ``write`` and one ``fsync`` under a lock that all writers take. A line that a crash of the machine tore off
is recognised by its missing line break: readers leave it out, the next writer removes it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from vramcalc.errors import DataError
from vramcalc.files.reading import read_bytes

_MOST_BYTES = 1 << 28
"""Of a file of rows: some fifty thousand of them."""


def read_lines(path: Path) -> tuple[list[str], str]:
    """Whole lines of a file, and what is left of a torn last one.

    Raises:
        FileNotFoundError: no such file.
        DataError: it cannot be read as text.
    """
    _refuse_devices(path)
    try:
        return _split(read_bytes(path, _MOST_BYTES), path)
    except FileNotFoundError:
        raise
    except OSError as err:
        raise DataError(f"{path}: {err.strerror or err}; give a file of profile rows") from err


def append(path: Path, line: str, *, unless: Callable[[list[str]], bool] = lambda _: False) -> bool:
    """Add one line, on the disk when this returns.

    Args:
        path: the file, made with its folder where there is none.
        line: without a line break.
        unless: given the lines that are there, says whether to leave this one out; other writers wait meanwhile.

    Returns:
        Whether it was added.

    Raises:
        DataError: the file cannot be written.
    """
    assert "\n" not in line, "a row is one line"
    _refuse_devices(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path):
            return _append(path, line, unless)
    except (OSError, ValueError) as err:  # ValueError: a null character in the name
        raise DataError(f"{path}: {getattr(err, 'strerror', None) or err}; give a file that can be written") from err


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock that every writer of a file takes; it goes with its process, however that ends."""
    from filelock import FileLock

    with FileLock(f"{path}.lock"):
        yield


def _append(path: Path, line: str, unless: Callable[[list[str]], bool]) -> bool:
    is_new = not path.exists()
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        content = read_bytes(path, _MOST_BYTES)
        lines, torn = _split(content, path)
        if unless(lines):
            return False
        whole = len(content) - len(torn.encode("utf-8", "surrogateescape"))
        if torn:
            os.ftruncate(file, whole)
        start = b"\n" if whole and content[whole - 1 : whole] != b"\n" else b""
        data = start + line.encode() + b"\n"
        written = os.write(file, data)
        if written != len(data):
            os.ftruncate(file, whole)
            raise DataError(f"{path}: the disk took {written} of {len(data)} bytes; make room on it")
        os.fsync(file)
    finally:
        os.close(file)
    if is_new:
        _sync_folder(path.parent)
    return True


def _refuse_devices(path: Path) -> None:
    """A pipe or a device could be read forever."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(f"{path} is no regular file; give a file of profile rows")


def _split(content: bytes, path: Path) -> tuple[list[str], str]:
    """Whole lines and the torn rest; a last line that lacks its break alone is whole."""
    body, line_break, rest = content.rpartition(b"\n")
    # A tear may go through a character.
    tail = rest.decode("utf-8", errors="surrogateescape")
    alone = tail if line_break else tail.removeprefix(_MARK)
    try:
        lines = body.decode("utf-8").removeprefix(_MARK).split("\n") if line_break else []
    except UnicodeDecodeError as err:
        number = body.count(b"\n", 0, err.start) + 1
        raise DataError(f"{path}, line {number}: not UTF-8 text; restore the file, or take the line out") from err
    return ([*lines, alone], "") if _is_json_object(alone) else (lines, tail)


_MARK = "\N{BYTE ORDER MARK}"


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _sync_folder(folder: Path) -> None:
    """A new file's name reaches the disk with its folder; Windows has no such call."""
    if os.name == "posix":
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
