"""The ``vramcalc`` command, in this process or in one of its own."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

from vramcalc.cli import main as cli


@dataclass(frozen=True)
class Ran:
    """What a command answered."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def run(*arguments: object) -> Ran:
    """The command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["vramcalc", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as stopped:
            return Ran(int(stopped.code or 0), out.getvalue(), err.getvalue())
    raise AssertionError("the command ends with an exit status")


def process(*arguments: object, python: tuple[str, ...] = ("-m", "vramcalc"), **how: Any) -> Ran:
    """The command in a process of its own; ``python`` is what the interpreter is given to start it."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    done = subprocess.run([sys.executable, *python, *map(str, arguments)], text=True, check=False, **how)
    return Ran(done.returncode, done.stdout or "", done.stderr or "")
