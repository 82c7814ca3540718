"""Commands run for a document, and what of their output is shown."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = (
    "fit", "estimate", "max", "plan", "table", "trace", "profile", "campaign", "calibrate", "gpus", "models",
    "accuracy", "prices",
)  # fmt: skip
"""All there are, in the order of ``vramcalc --help``; a test compares."""
CUT = "  ..."


def run(command: str, start: str = "", lines: int = 0, *, width: int = 80) -> str:
    """A command and its output, as a block of Markdown.

    Args:
        command: begins with ``vramcalc``.
        start: beginning of the first line shown; a mark says that others come before it.
        lines: how many are shown, 0 for all; a mark says that there are more.
        width: of the terminal.

    Raises:
        SystemExit: the command failed, or has no such line.
    """
    shown = output(command, width).splitlines()
    first = next((n for n, line in enumerate(shown) if line.startswith(start)), None)
    if first is None:
        raise SystemExit(f"{command} has no line that begins with {start!r}")
    last = first + lines if lines else len(shown)
    body = [*([CUT] if first else []), *shown[first:last], *([CUT] if last < len(shown) else [])]
    return "\n".join(["```text", f"$ {_folded(command)}", *body, "```", ""])


def _folded(command: str) -> str:
    """Over several lines where one is too long, as a shell reads it; an option stays with its value."""
    parts = re.split(r" (?=--)", command)
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) < 75:
            lines[-1] += f" {part}"
        else:
            lines.append(part)
    return " \\\n    ".join(lines)


@cache
def output(command: str, width: int = 80) -> str:
    """What a command prints on a machine without a GPU.

    Raises:
        SystemExit: it failed.
    """
    program = [sys.executable, "-m", "vramcalc", *shlex.split(command)[1:]]
    columns = {"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)}
    environment = {**os.environ, **columns, "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(  # noqa: S603 - commands of our own documents
        program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def help_of() -> str:
    """``--help`` of every command, folded away; what ``estimate`` explains is not said again."""
    settings = set(_entries(output("vramcalc estimate --help")))
    blocks = []
    for name in COMMANDS:
        command = f"vramcalc {name} --help"
        entries = _entries(output(command))
        own = entries if name == "estimate" else [e for e in entries if e not in settings or e.startswith("  -h")]
        shared = len(entries) - len(own)
        if shared:
            own.insert(len(own) - 1, f"  {shared} more, as those of 'vramcalc estimate'")
        text = "\n".join(["```text", f"$ {command}", *own, "```"])
        blocks.append(f"<details><summary><code>{command}</code></summary>\n\n{text}\n\n</details>\n")
    return "\n".join(blocks)


def _entries(text: str) -> list[str]:
    """What is said before the options, in one piece, then each option with its lines."""
    head, found, options = text.partition("\nOptions:\n")
    return [head + found.rstrip(), *re.split(r"\n(?=  -)", options)] if found else [text]
