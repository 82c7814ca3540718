"""Writing a file whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from vramcalc.errors import OutputError


def write_whole(path: Path, text: str, check: Callable[[Path], object] | None = None) -> None:
    """Write text to a file so that a reader finds the old content or the new, never a part of either.

    The text goes to a temporary file in the same folder, is forced to the disk and then takes the name.

    Args:
        path: of the file; folders on the way to it are made.
        text: written as UTF-8, line ends as they are.
        check: is given the temporary file before it takes the name; what it raises leaves the old file alone.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(None, "is a folder")
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
    except OSError as err:
        raise _refused(path, err) from err
    temporary = Path(name)
    try:
        with open(descriptor, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as err:
        raise _refused(path, err) from err
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
    _sync_folder(path.parent)


def _refused(path: Path, err: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {err.strerror or err}; give another path")


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
