"""Execute the notebooks and store their outputs; with ``--check`` only say which stored outputs are stale.

Texts are compared word for word, pictures only by being there: their pixels belong to the version of matplotlib. What
libraries write to stderr is neither stored nor compared, nor is anything else that depends on the machine.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
PICTURES = ("image/png",)
TIMEOUT_S = 120
"""Of one cell."""


def main() -> int:
    """Execute each, then write or compare."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100", "NO_COLOR": "1"}
    stale = 0
    for path in sorted(FOLDER.glob("*.ipynb")):
        stored = nbformat.read(path, as_version=4)
        fresh = executed(stored, FOLDER)
        if "--check" not in sys.argv:
            nbformat.write(fresh, path)
            continue
        found = list(differences(stored, fresh))
        stale += bool(found)
        for line in found:
            print(f"{path.relative_to(FOLDER.parent)}: {line}", file=sys.stderr)
    if stale:
        print("stale notebooks: run 'python .ci/notebooks.py' and commit the result", file=sys.stderr)
    return int(stale > 0)


def executed(notebook: Any, folder: Path) -> Any:
    """A copy of a notebook run from its first cell in a fresh kernel.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises.
    """
    fresh = nbformat.from_dict(notebook)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    place = {"metadata": {"path": str(folder)}}
    client = NotebookClient(
        fresh, kernel_name="python3", timeout=TIMEOUT_S, record_timing=False, resources=place,
        extra_arguments=["--log-level=ERROR"],
    )  # fmt: skip
    client.execute()
    for cell in fresh.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [_kept(o) for o in cell.outputs if o.get("name") != "stderr"]
    fresh.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return fresh


def _kept(output: Any) -> Any:
    """An output without the plain text that stands in for a page or a picture."""
    data = output.get("data", {})
    if {"text/html", *PICTURES} & data.keys():
        data.pop("text/plain", None)
    return output


def differences(stored: Any, fresh: Any) -> Iterator[str]:
    """What of a stored notebook is not what its cells say today."""
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True), start=1):
        if new.cell_type != "code":
            continue
        if old.execution_count != new.execution_count:
            yield f"cell {number} was not run in order"
        before, after = list(texts(old)), list(texts(new))
        if before != after:
            changed = difflib.unified_diff(before, after, "stored", "today", lineterm="", n=0)
            yield f"cell {number} is stale:\n" + "\n".join(changed)


def texts(cell: Any) -> Iterator[str]:
    """Lines of a cell's outputs; a picture is one line that says so."""
    for output in cell.outputs:
        if output.output_type == "stream":
            yield from output.text.splitlines()
            continue
        for kind, value in sorted(output.get("data", {}).items()):
            if kind in PICTURES:
                yield f"[{kind}]"
            else:
                yield from f"[{kind}] {value}".splitlines()


if __name__ == "__main__":
    raise SystemExit(main())
