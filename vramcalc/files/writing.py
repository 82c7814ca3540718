"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from vramcalc.errors import OutputError


def write_whole(path: Path, text: str, check: Callable[[Path], object] | None = None) -> None:
    """Write text to a file so that a reader finds the old content or the new, never a part of either.

    The text goes to a temporary file in the same folder, is forced to the disk and then takes the name. Through a link
    the file that it stands for is written. What is no regular file, such as a device or a pipe, is never replaced: the
    text is written into it.

    Args:
        path: of the file; folders on the way to it are made.
        text: written as UTF-8, line ends as they are.
        check: is given the temporary file before it takes the name; what it raises leaves the old file alone.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        kind = _kind(target)
        if kind == stat.S_IFDIR:
            raise IsADirectoryError(None, "is a folder")
        if kind not in (None, stat.S_IFREG):
            _write_into(target, kind, text)
            return
        descriptor, name = tempfile.mkstemp(
            dir=target.parent, prefix=f".{os.fsdecode(os.fsencode(target.name)[:100])}."
        )
    except (OSError, ValueError) as err:  # ValueError: a null character, or text that is none
        raise _refused(path, err) from err
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        temporary.chmod(target.stat().st_mode & 0o777 if kind else 0o666 & ~_umask())
        os.replace(temporary, target)
    except (OSError, ValueError) as err:
        raise _refused(path, err) from err
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync_folder(target.parent)


def _kind(path: Path) -> int | None:
    """What is at a path, by :func:`stat.S_IFMT`; None where nothing is.

    Raises:
        OSError: links that stand for each other, a path too long, or one that may not be looked at.
    """
    try:
        return stat.S_IFMT(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write_into(path: Path, kind: int, text: str) -> None:
    """Write text to a device or a pipe that somebody reads.

    Raises:
        OSError: nobody reads the pipe, it is a socket, or it cannot be written.
    """
    # A pipe without a reader is an error instead of a wait; a reader that is slow is waited for.
    waits = getattr(os, "O_NONBLOCK", 0) if kind == stat.S_IFIFO else 0
    descriptor = os.open(path, os.O_WRONLY | waits)
    os.set_blocking(descriptor, True)
    with open(descriptor, "w", encoding="utf-8", newline="") as file:
        file.write(text)


def _refused(path: Path, err: OSError | ValueError) -> OutputError:
    return OutputError(f"{path} cannot be written: {getattr(err, 'strerror', None) or err}; give another path")


def _umask() -> int:
    """The process's mask; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Force the new name to the disk, where folders can be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
