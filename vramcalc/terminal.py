"""What a command writes to stdout: text with its verdicts in colour, or JSON."""

from __future__ import annotations

import json
import os
import re
import sys

import typer

_COLOURS = {"fits": typer.colors.GREEN, "tight": typer.colors.YELLOW, "does not fit": typer.colors.RED}
_STATUS = re.compile(r"(?m)(?<=  |: )(does not fit|tight|fits)(?=$|,)")
"""A verdict: the last cell of a row, or the first words after a GPU's name."""


def painted(text: str) -> str:
    """A verdict's text with its verdicts in colour; click takes the colours out when stdout is no terminal."""
    if os.environ.get("NO_COLOR"):
        return text
    return _STATUS.sub(lambda m: typer.style(m[0], fg=_COLOURS[m[0]], bold=True), text)


def print_text(text: str) -> None:
    """Write to stdout, if anybody still reads it."""
    try:
        typer.echo(text)
    except BrokenPipeError:
        # The reader went away, as in `vramcalc models | head`; the exit status still says what was found.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def print_json(value: object) -> None:
    """Write plain values as JSON."""
    print_text(json.dumps(value, indent=2))
