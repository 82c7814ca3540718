"""Stored notebooks were run in order, are small and hold nothing of the machine; the check sees what is stale.

That their outputs are those of today is checked by ``.ci/notebooks.py --check``, which runs them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parent.parent
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
stored = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("notebooks", ROOT / ".ci" / "notebooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_notebooks() -> None:
    assert len(PATHS) >= 3


@stored
def test_a_notebook_is_valid_and_was_run_in_order_without_an_error(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert {output.output_type for output in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    assert path.stat().st_size < 300_000


@stored
def test_a_notebook_asks_checks_shows_and_answers(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    words = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert words.index("**Question.**") < words.index("## Checks") < words.index("**Answer.**")
    printed = "".join(output.text for output in outputs(notebook) if output.output_type == "stream")
    ratios = [float(n) for n in re.findall(r" / [\d,.]+(?: %)? = (\d+\.\d+)$", printed, re.MULTILINE)]
    assert len(ratios) >= 2
    assert all(abs(ratio - 1) < 0.05 for ratio in ratios)
    assert sum("image/png" in output.get("data", {}) for output in outputs(notebook)) >= 1


@stored
def test_a_notebook_holds_nothing_of_the_machine_it_ran_on(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    texts = [
        o.get("text", "") + json.dumps({k: v for k, v in o.get("data", {}).items() if k != "image/png"})
        for o in outputs(notebook)
    ]
    for text in texts:
        assert not re.search(
            r"(?<![\w.<])/(home|root|tmp|work|usr|Users)/|object at 0x|CUDA_VISIBLE_DEVICES|[A-Z]:\\\\", text
        )
    assert all(cell.metadata == {} for cell in notebook.cells)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata["language_info"]) == {"name"}


def small() -> Any:
    cells = [
        new_markdown_cell("words"),
        new_code_cell("import sys\nx = 2\nprint('two', x)\nprint('noise', file=sys.stderr)"),
        new_code_cell("class Shown:\n    def _repr_html_(self):\n        return '<b>2</b>'\nShown()"),
        new_code_cell("x + 1"),
    ]
    return new_notebook(cells=cells)


def test_what_is_stored_is_what_the_cells_say(check: ModuleType, tmp_path: Path) -> None:
    before = small()
    fresh = check.executed(before, tmp_path)
    assert all(cell.get("outputs", []) == [] for cell in before.cells)
    assert [list(check.texts(cell)) for cell in fresh.cells[1:]] == [
        ["two 2"],
        ["[text/html] <b>2</b>"],
        ["[text/plain] 3"],
    ]
    assert list(check.differences(fresh, fresh)) == []
    assert [line.splitlines()[0] for line in check.differences(before, fresh)] == [
        f"cell {n} {what}" for n in (2, 3, 4) for what in ("was not run in order", "is stale:")
    ]

    edited = nbformat.from_dict(fresh)
    edited.cells[1].outputs[0].text = "two 3\n"
    (found,) = check.differences(edited, fresh)
    assert found.startswith("cell 2 is stale:")
    assert "-two 3\n+two 2" in found


def test_pictures_are_compared_by_being_there(check: ModuleType) -> None:
    def cell(**data: str) -> Any:
        output = nbformat.v4.new_output("display_data", data=data)
        return new_notebook(cells=[new_code_cell("draw()", execution_count=1, outputs=[output])])

    assert not list(check.differences(cell(**{"image/png": "a"}), cell(**{"image/png": "b"})))
    assert list(check.differences(cell(**{"image/png": "a"}), cell(**{"text/html": "a"})))


def test_a_cell_that_raises_stops_the_check(check: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        check.executed(new_notebook(cells=[new_code_cell("1 / 0")]), tmp_path)
