"""Rewrite tables/timing.json, tables/calibration.json, tables/planning and the generated parts of README.md.

With ``--check`` only say what is stale; ``--planning`` limits it to the documents of tables/planning.

A part stands between ``<!-- generated: COMMAND -->`` and ``<!-- end -->``. COMMAND is ``tree``, or a command line
that is run with this interpreter.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import planning

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PLANNING = ROOT / "tables" / "planning"
PART = re.compile(r"(<!-- generated: (?P<command>.*?) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> int:
    """Generate, then write or compare; the documents rest on the times and intervals, and README.md shows both."""
    check = ["--check"] if "--check" in sys.argv else []
    if "--planning" in sys.argv:
        return _settled(_documents())
    for module in ("vramcalc.timing_generate", "vramcalc.calibration_generate"):
        fitted = subprocess.run(  # noqa: S603 - modules of our own
            [sys.executable, "-m", module, *check], cwd=ROOT, check=False
        )
        if fitted.returncode:
            return fitted.returncode
    readme = PART.sub(lambda m: f"{m[1]}{_made(m['command'])}{m[3]}", README.read_text())
    return _settled({README: readme}) or _settled(_documents())


def _settled(made: dict[Path, str]) -> int:
    """Write what differs from what is there; with ``--check`` name it."""
    stale = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
    if made.keys() != {README}:
        stale += [path for path in PLANNING.glob("*") if path not in made]
    if "--check" not in sys.argv:
        for path in stale:
            path.write_text(made[path]) if path in made else path.unlink()
        return 0
    for path in stale:
        print(f"{path.relative_to(ROOT)} is stale: run 'python .ci/generate.py' and commit the result", file=sys.stderr)
    return int(bool(stale))


def _documents() -> dict[Path, str]:
    PLANNING.mkdir(exist_ok=True)
    return {PLANNING / f"{name}.md": write() for name, write in planning.DOCUMENTS.items()}


def _made(command: str) -> str:
    if command == "tree":
        return f"```text\n{_tree()}\n```\n"
    return f"```text\n$ {command}\n{_output(command)}\n```\n"


def _output(command: str) -> str:
    words = shlex.split(command)
    program = {"vramcalc": [sys.executable, "-m", "vramcalc"], "python": [sys.executable]}[words[0]]
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(  # noqa: S603 - commands of our own README
        [*program, *words[1:]], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())


def _tree() -> str:
    """Every module with the first sentence of its docstring."""
    lines = []
    for path in sorted((ROOT / "vramcalc").rglob("*.py"), key=lambda p: (len(p.parts) > len(ROOT.parts) + 2, p)):
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].replace("\n", " ")
        name = str(path.relative_to(ROOT))
        if path.name != "__init__.py" or first:
            lines.append(f"{name:34} {first}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
