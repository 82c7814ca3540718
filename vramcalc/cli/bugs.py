"""How a command ends on an error that nobody meant: one line that says so, and an exit status of its own.

A gate that reads the exit status must never take a bug for "does not fit".
"""

from __future__ import annotations

import os
import sys
import traceback
from typing import NoReturn

import vramcalc
from vramcalc.errors import one_line, printable

STATUS = 70
"""``EX_SOFTWARE`` of BSD's sysexits.h: an internal error of the program."""
TRACEBACK = "VRAMCALC_TRACEBACK"
"""Environment variable: set to anything but 0, it shows where a bug is."""


def end_with(err: BaseException) -> NoReturn:
    """Say on stderr that this is a bug and how to report it, and end the process."""
    if os.environ.get(TRACEBACK, "0") not in ("", "0"):
        _say(printable("".join(traceback.format_exception(err))))
    what = one_line(f"{type(err).__name__}: {err}".rstrip(": "))
    _say(
        f"vramcalc: a bug in vramcalc, not in what was given: {what[:300]}{_place(err)}; please report it with the "
        f"command line, what 'vramcalc --version' says and what is shown with {TRACEBACK}=1\n"
    )
    sys.exit(STATUS)


def _place(err: BaseException) -> str:
    """The innermost line of vramcalc that was on the way."""
    folder = os.path.dirname(vramcalc.__file__)
    frames = [f for f in traceback.extract_tb(err.__traceback__) if f.filename.startswith(folder)]
    return f" ({os.path.relpath(frames[-1].filename, folder)}, line {frames[-1].lineno})" if frames else ""


def _say(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        # Nobody reads stderr; the exit status still tells.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
