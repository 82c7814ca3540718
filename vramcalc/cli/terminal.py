"""What a command writes: text with its verdicts in colour, or JSON, on stdout; notes and errors on stderr.

Names come from files, users and catalogs; what would steer a terminal is spelled out before it gets there.
"""

from __future__ import annotations

import json
import os
import re
import sys

import typer

from vramcalc.errors import OutputError, one_line, printable

_COLOURS = {"fits": typer.colors.GREEN, "tight": typer.colors.YELLOW, "does not fit": typer.colors.RED}
_STATUS = re.compile(r"(?m)(?<=  |: )(does not fit|tight|fits)(?=$|,)")
"""A verdict: the last cell of a row, or the first words after a GPU's name."""


class _Painted(str):
    """Text whose only escapes are the colours put into it here."""


def painted(text: str) -> str:
    """A verdict's text with its verdicts in colour; click takes the colours out when stdout is no terminal."""
    if os.environ.get("NO_COLOR"):
        return text
    return _Painted(_STATUS.sub(lambda m: typer.style(m[0], fg=_COLOURS[m[0]], bold=True), printable(text)))


def print_text(text: str) -> None:
    """Write to stdout, if anybody still reads it.

    Raises:
        OutputError: stdout cannot be written, as on a full disk.
    """
    _write(text if isinstance(text, _Painted) else printable(text), err=False)


def print_json(value: object) -> None:
    """Write plain values as JSON."""
    # JSON escapes every control character but the last.
    print_text(json.dumps(value, indent=2).replace("\x7f", "\\u007f"))


def print_note(text: str) -> None:
    """Write a note, one line on stderr."""
    print_error(f"note: {text}")


def print_error(text: str) -> None:
    """Write one line to stderr."""
    _write(one_line(text), err=True)


def _write(text: str, *, err: bool) -> None:
    stream = sys.stderr if err else sys.stdout
    try:
        typer.echo(
            text.encode(stream.encoding or "utf-8", "backslashreplace").decode(stream.encoding or "utf-8"), err=err
        )
    except BrokenPipeError:
        # The reader went away, as in `vramcalc models | head`; the exit status still says what was found.
        _into_nothing(stream.fileno())
    except OSError as failed:
        _into_nothing(stream.fileno())
        if not err:
            raise OutputError(
                f"stdout cannot be written: {failed.strerror or failed}; give it a place to go"
            ) from failed


def _into_nothing(descriptor: int) -> None:
    """What is left in a stream's buffer must not fail once more when the process ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
