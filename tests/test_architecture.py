"""Heavy and optional libraries have one home each, nothing imports itself through others, and modules stay small.

Which way imports point is said in ``pyproject.toml``, and ``lint-imports`` looks.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import vramcalc
from vramcalc.inputs.settings import METHOD_CLASSES

ROOT = Path(vramcalc.__file__).parent

DOOR = {"vramcalc.display"}
"""What may import modules above it, when something is shown."""

INTO_PROFILING = {"vramcalc.accuracy.traces.compare", "vramcalc.accuracy.traces.first_difference"}
"""Modules that set an estimate beside a trace of the real libraries, when they run."""

HOMES = {
    "accelerate": {"vramcalc.profiling"},
    "bitsandbytes": {"vramcalc.profiling"},
    "filelock": {"vramcalc.profiling.row_log"},
    "gpuhunt": {"vramcalc.planning.refresh_prices"},
    "huggingface_hub": {"vramcalc.inputs.hub"},
    "liger_kernel": {"vramcalc.profiling"},
    "matplotlib": {"vramcalc.show.figures"},
    "peft": {"vramcalc.profiling"},
    "platformdirs": {"vramcalc.files.folders"},
    "pynvml": {"vramcalc.inputs.machine.detect", "vramcalc.inputs.machine.device_use"},
    "rich": {"vramcalc.show.progress"},
    "tabulate": {"vramcalc.show.plaintext", "vramcalc.show.formats"},
    "torch": {"vramcalc.profiling"},
    "torchao": {"vramcalc.profiling"},
    "transformers": {"vramcalc.profiling"},
    "triton": {"vramcalc.profiling"},
    "trl": {"vramcalc.profiling"},
    "typer": {
        "vramcalc.cli.main",
        "vramcalc.cli",
        "vramcalc.cli.options",
        "vramcalc.cli.plan_options",
        "vramcalc.cli.terminal",
    },
    "yaml": {"vramcalc.profiling.campaign", "vramcalc.profiling.campaign_yaml"},
}
"""Libraries that only some rooms or modules may import."""

HINTED = {"matplotlib"}
"""Libraries whose types may stand in signatures elsewhere."""

AT_THE_TOP = {
    "matplotlib": {"vramcalc.show.figures.picture"},
    "numpy": {"vramcalc.show.figures.curves", "vramcalc.memory.grid", "vramcalc.shadow.depth.counts"},
    "pydantic": {
        "vramcalc.inputs.base",
        "vramcalc.inputs.gpu",
        "vramcalc.inputs.method",
        "vramcalc.inputs.model",
        "vramcalc.inputs.prompt_learning",
        "vramcalc.inputs.quantization",
        "vramcalc.inputs.stack",
        "vramcalc.inputs.training",
        "vramcalc.cli.options",
        "vramcalc.planning.cost",
        "vramcalc.profiling.rows",
        "vramcalc.planning.workload",
    },
    "tabulate": {"vramcalc.show.plaintext"},
    "yaml": {"vramcalc.profiling.campaign_yaml"},
}
"""Libraries that cost start-up time: the modules that may import them when they are imported themselves."""

LONGEST = 320


@dataclass(frozen=True)
class Import:
    """A module that another one imports; ``lazy`` inside a function, ``typing`` under ``TYPE_CHECKING``."""

    by: str
    name: str
    line: int
    lazy: bool
    typing: bool

    @property
    def own(self) -> bool:
        """Whether it is of the package."""
        return self.name.split(".")[0] == "vramcalc"

    def __str__(self) -> str:
        return f"{self.by}, line {self.line}, imports {self.name}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, path in MODULES.items() for found in _imports(name, ast.parse(path.read_text())))


def _imports(by: str, tree: ast.AST, *, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(by, alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{by}, line {node.lineno}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield Import(by, full if full in MODULES else str(node.module), node.lineno, lazy, typing)
        else:
            yield from _imports(
                by,
                node,
                lazy=lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)),
                typing=typing or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"),
            )


def within(module: str, homes: set[str]) -> bool:
    return any(module == home or module.startswith(f"{home}.") for home in homes)


def test_no_module_imports_itself_through_others() -> None:
    edges = {m: {i.name for i in imports() if i.by == m and i.own and not (i.lazy or i.typing)} for m in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join((*path, module))
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_only_the_door_imports_upwards_and_only_when_something_is_shown() -> None:
    assert [str(i) for i in imports() if i.by in DOOR and i.own and not (i.lazy or i.typing)] == []


def test_only_comparisons_import_what_runs_the_real_libraries_and_only_when_they_run() -> None:
    needs = {i.by for i in imports() if i.name.split(".")[0] == "torch" and not (i.lazy or i.typing)}
    found = [i for i in imports() if i.name in needs and not within(i.by, HOMES["torch"])]
    assert [str(i) for i in found if i.by not in INTO_PROFILING or not (i.lazy or i.typing)] == []


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_is_imported_in_its_home_only(library: str) -> None:
    by = {i.by for i in imports() if i.name.split(".")[0] == library and not (i.typing and library in HINTED)}
    assert {module for module in by if not within(module, HOMES[library])} == set()
    assert by, f"nothing imports {library}: take it out of HOMES"


@pytest.mark.parametrize("library", sorted(AT_THE_TOP))
def test_what_is_slow_to_import_waits_until_it_is_needed(library: str) -> None:
    top = {i.by for i in imports() if i.name.split(".")[0] == library and not (i.lazy or i.typing)}
    assert top == AT_THE_TOP[library]


METHODS = {spec.__name__ for spec in METHOD_CLASSES.values()}


def test_methods_answer_for_themselves() -> None:
    """Outside the files of the methods, nothing asks a method which it is: a new one would be taken for another."""
    found: Counter[str] = Counter()
    for name, path in MODULES.items():
        if name.startswith("vramcalc.shadow.methods") or name == "vramcalc.inputs.method":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name("isinstance"), args=[_, kinds]) | ast.MatchClass(cls=kinds):
                    found[name.split(".")[1]] += bool(
                        {n.id for n in ast.walk(kinds) if isinstance(n, ast.Name)} & METHODS
                    )
    assert +found == {}


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, vramcalc; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "vramcalc" in loaded
    assert loaded.isdisjoint({"numpy", "pydantic", "typer", "tabulate", *HOMES})


@pytest.mark.parametrize("name", [*vramcalc.__all__, "figures"])
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(vramcalc, name) is not None


def test_a_name_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'estimat'"):
        vramcalc.estimat  # noqa: B018
