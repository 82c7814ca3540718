"""Imports point one way, heavy and optional libraries have one home each, and modules stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import vramcalc

ROOT = Path(vramcalc.__file__).parent

LAYERS = (
    {"errors", "version"},
    {"display"},
    {"conformal"},
    {
        "bugs",
        "fetching",
        "files",
        "folders",
        "formats",
        "installed",
        "interval",
        "lengths",
        "nvml_errors",
        "palette",
        "patterns",
        "plaintext",
        "progress",
        "reading",
        "releases",
        "residuals",
        "row_log",
        "units",
        "visible",
    },
    {"alloc_conf", "published_rows", "release_dates", "tables", "torch_releases"},
    {"spec_base"},
    {"gpu_names", "gpu_spec", "model_spec", "published_speeds"},
    {"timing_model"},
    {"specs"},
    {
        "catalog",
        "detect",
        "device_use",
        "hfconfig",
        "hub",
        "matrices",
        "presets",
        "runtime",
        "settings",
        "timing_table",
    },
    {"prices"},
    {"cost", "refresh"},
    {"targets"},
    {"shadow"},
    {"families"},
    {"methods"},
    {"refusals"},
    {"job"},
    {"release_span"},
    {"likeness"},
    {"calibration"},
    {"calibration_files"},
    {"flops"},
    {"workload"},
    {"timing_terms"},
    {"timing_expected", "throughput"},
    {"timing", "timing_cells", "timing_ratio"},
    {"timing_fit"},
    {"timing_intervals"},
    {"timing_pairs"},
    {"timing_generate", "time_accuracy"},
    {"profiles"},
    {"profile_metrics", "measuring"},
    {"step"},
    {"unexplained"},
    {"ledger", "loading", "warn"},
    {"stream", "timeline"},
    {"walk"},
    {"estimation", "difference", "snapshots"},
    {"verdicts", "grid", "measured_jobs", "campaign_yaml"},
    {"measurements", "campaign"},
    {"calibration_families"},
    {"calibration_fit"},
    {"calibration_checks"},
    {"calibration_generate", "calibrating"},
    {"campaign_run"},
    {"accuracy", "planning", "regimes", "trace_grid"},
    {"claims"},
    {"largest"},
    {"remedies", "fitting"},
    {"describe"},
    {"render", "render_html", "choices", "figures"},
    {"listings", "options", "render_accuracy", "render_plan", "render_profile", "render_time_accuracy"},
    {"render_calibration", "renderings"},
    {"agreement", "terminal"},
    {"trace_accuracy"},
    {"render_traces"},
    {"plan_options"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
"""Rooms and single modules; each imports from its own layer and from those above it in this list."""

UPWARD = {
    ("display", "renderings"): "showing a result",
    ("display", "progress"): "a bar while somebody watches",
    ("verdicts", "remedies"): "remedies are verdicts themselves, worked out when asked for",
}
"""Imports against the order, inside functions only, and what for."""

HOMES = {
    "accelerate": {"profiling"},
    "bitsandbytes": {"profiling"},
    "filelock": {"row_log"},
    "gpuhunt": {"refresh"},
    "huggingface_hub": {"hub"},
    "liger_kernel": {"profiling"},
    "matplotlib": {"figures"},
    "peft": {"profiling"},
    "platformdirs": {"folders"},
    "pynvml": {"detect", "device_use"},
    "rich": {"progress"},
    "tabulate": {"plaintext", "formats"},
    "torch": {"profiling"},
    "torchao": {"profiling"},
    "transformers": {"profiling"},
    "triton": {"profiling"},
    "trl": {"profiling"},
    "typer": {"cli", "commands", "options", "plan_options", "terminal"},
    "yaml": {"campaign", "campaign_yaml"},
}
"""Libraries that only some rooms may import."""

HINTED = {"matplotlib"}
"""Libraries whose types may stand in signatures elsewhere."""

COMPARISONS = {"agreement", "difference"}
"""Modules that set an estimate beside a trace of the real libraries."""

REPORTING = {"profiling.callback"}
"""Modules of the profiling room that write rows and show predictions, when they run."""

AT_THE_TOP = {
    "matplotlib": {"figures.picture"},
    "numpy": {"figures.curves", "grid", "shadow.counts"},
    "pydantic": {"spec_base", "gpu_spec", "model_spec", "specs", "options", "cost", "profiles", "workload"},
    "tabulate": {"plaintext"},
    "yaml": {"campaign_yaml"},
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
    def own(self) -> str | None:
        """The module of the package that is imported, None for others."""
        return self.name.removeprefix("vramcalc").removeprefix(".") if is_own(self.name) else None

    def __str__(self) -> str:
        return f"vramcalc.{self.by}, line {self.line}, imports {self.name}"


def is_own(name: str) -> bool:
    return name.split(".")[0] == "vramcalc"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def room(module: str) -> str:
    return module.split(".")[0]


@cache
def imports() -> tuple[Import, ...]:
    return tuple(found for name, path in MODULES.items() for found in _imports(name, ast.parse(path.read_text())))


def _imports(by: str, tree: ast.AST, *, lazy: bool = False, typing: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(by, alias.name, node.lineno, lazy, typing) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"vramcalc.{by}, line {node.lineno}: imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                is_module = full.removeprefix("vramcalc.") in MODULES and is_own(full)
                yield Import(by, full if is_module else str(node.module), node.lineno, lazy, typing)
        else:
            yield from _imports(
                by,
                node,
                lazy=lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)),
                typing=typing or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"),
            )


def level(module: str) -> int:
    return next(n for n, names in enumerate(LAYERS) if room(module) in names)


def test_every_module_has_its_layer() -> None:
    layered = [name for names in LAYERS for name in names]
    assert len(layered) == len(set(layered))
    assert {*layered, "", "profiling"} == {room(module) for module in MODULES}


def test_imports_point_one_way() -> None:
    against = [
        str(i)
        for i in imports()
        if i.own and not i.typing and i.by and room(i.by) != "profiling" and room(i.own) != "profiling"
        if level(i.own) > level(i.by) and not (i.lazy and (i.by, i.own) in UPWARD)
    ]
    assert against == []


def test_every_exception_to_the_order_is_used() -> None:
    assert {(i.by, i.own) for i in imports() if i.lazy and i.own} >= UPWARD.keys()


def test_no_module_imports_itself_through_others() -> None:
    edges = {m: {i.own for i in imports() if i.by == m and i.own and not (i.lazy or i.typing)} for m in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " imports ".join((*path, module))
        if module not in done:
            for other in sorted(edges[module]):
                visit(other, (*path, module))
            done.add(module)

    for module in edges:
        visit(module, ())


def test_only_comparisons_import_profiling_and_only_when_they_run() -> None:
    found = [i for i in imports() if i.own and room(i.own) == "profiling" and room(i.by) != "profiling"]
    assert [str(i) for i in found if i.by not in COMPARISONS or not (i.lazy or i.typing)] == []
    assert {i.by for i in found} == COMPARISONS


def test_profiling_stands_on_facts_and_inputs_alone() -> None:
    found = [i for i in imports() if i.own and room(i.by) == "profiling"]
    rooms = {room(i.own) for i in found if i.own and not (i.by in REPORTING and i.lazy)}
    rooms_below = {
        "alloc_conf",
        "device_use",
        "errors",
        "installed",
        "units",
        "specs",
        "tables",
        "torch_releases",
        "shadow",
    }
    assert rooms <= {"profiling"} | rooms_below
    assert {i.by for i in found if i.lazy and i.own and room(i.own) != "profiling"} >= REPORTING


@pytest.mark.parametrize("library", sorted(HOMES))
def test_a_library_is_imported_in_its_home_only(library: str) -> None:
    by = {room(i.by) for i in imports() if i.name.split(".")[0] == library and not (i.typing and library in HINTED)}
    assert by <= HOMES[library]
    assert by, f"nothing imports {library}: take it out of HOMES"


@pytest.mark.parametrize("library", sorted(AT_THE_TOP))
def test_what_is_slow_to_import_waits_until_it_is_needed(library: str) -> None:
    top = {i.by for i in imports() if i.name.split(".")[0] == library and not (i.lazy or i.typing)}
    assert top == AT_THE_TOP[library]


def test_modules_are_short() -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > LONGEST} == {}


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = "import sys, vramcalc; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "vramcalc" in loaded
    assert loaded.isdisjoint({"numpy", "pydantic", "typer", "tabulate", *HOMES})


@pytest.mark.parametrize("name", vramcalc.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(vramcalc, name) is not None


def test_a_name_the_package_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'estimat'"):
        vramcalc.estimat  # noqa: B018
