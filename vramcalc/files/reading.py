"""Reading files that users name: whole, of a bounded size, and never a pipe or a device.

A pipe, a device or a socket could be read for ever; a file of gigabytes is not what was meant. Both are told from a
good file before anything is read, and every refusal is an ``OSError`` whose ``strerror`` says why, as those of the
system are, so that callers turn both into errors of their own in one place.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

MOST_BYTES = 64 << 20
"""Of a table: the largest shipped one has two hundredths of it."""


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Content of a regular file.

    Args:
        path: of the file.
        most_bytes: that it may have.

    Raises:
        OSError: no such file, no regular one, a larger one, or one that cannot be read.
    """
    _refuse_special(path)
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            # What the name stands for may have changed since it was looked at.
            if not os.path.isfile(file.fileno()):
                raise _special()
            content = file.read(most_bytes + 1)
    except ValueError as err:  # a null character
        raise OSError(errno.EINVAL, str(err)) from err
    if len(content) > most_bytes:
        raise OSError(errno.EFBIG, f"has more than {most_bytes:,} bytes")
    return content


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Text of a regular file in UTF-8, with or without the byte order mark that Windows editors put before it.

    Raises:
        OSError: as :func:`read_bytes`.
        UnicodeDecodeError: it is no UTF-8.
    """
    return read_bytes(path, most_bytes).decode("utf-8-sig")


def _refuse_special(path: Path) -> None:
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise _special()


def _special() -> OSError:
    return OSError(errno.EINVAL, "is no regular file")


def _without_waiting(path: str, flags: int) -> int:
    """Opening a pipe would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
