"""What README.md says in tables: what is supported, and how good predictions are."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from commands import output

from vramcalc.inputs.families import FAMILIES
from vramcalc.inputs.presets import PRESETS
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.inputs.stack import LossKind, OptimizerName, Stack

TRACES = "vramcalc accuracy traces --stored --json"
MEMORY = "vramcalc accuracy tables/measurements.csv --json"
TIME = "vramcalc accuracy --time tables/throughput.csv --json"


def supported() -> str:
    """Families, methods, trainers, GPUs and releases, as the code lists them."""
    models, gpus = _json("vramcalc models --json"), _json("vramcalc gpus --known --json")["known"]
    traced = _json(TRACES)
    families = ", ".join(FAMILIES[name].title for name in sorted(traced["settings"]["family"]))
    boards = Counter(gpu["architecture"] for gpu in gpus)
    rows = [
        ("model families", f"{families}; {len(models)} models by name, any other by its `config.json`"),
        ("methods", _quoted(METHOD_CLASSES)),
        ("trainers (`--stack`)", _quoted(PRESETS)),
        ("optimizers", f"{len(get_args(OptimizerName))}, of torch, torchao and bitsandbytes"),
        ("attention", _quoted(get_args(Stack.model_fields["attn_implementation"].annotation))),
        ("loss", _quoted(get_args(LossKind))),
        ("GPUs", f"one NVIDIA GPU; {len(gpus)} by name: " + ", ".join(f"{n} {name}" for name, n in boards.items())),
        ("releases traced", "; ".join(_span(name, traced["versions"][name]) for name in _LIBRARIES)),
    ]
    return _table(("", "supported"), rows)


_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")


def _span(library: str, versions: Sequence[str]) -> str:
    first, last = (".".join(version.split(".")[:2]) for version in (versions[0], versions[-1]))
    return f"{library} {first} to {last}" if first != last else f"{library} {first}"


def six_numbers() -> str:
    """Accuracy in one table."""
    traces, memory = _json(TRACES), _json(MEMORY)
    time = next(g for g in _json(TIME)["groups"] if (g["left_out"], g["gpu"]) == ("source", "all"))
    out = memory["out_of_memory"]
    n = sum(count for status, count in traces["counts"].items() if status != "not_traced")
    worst = max((abs(regime["allocated_error"]) for regime in traces["regimes"]), default=0.0)
    rows = [
        _row("live tensors at the peak", f"{n} traces of the real libraries", f"at most {worst:.4%}", "", "traces"),
        _memory_row(memory, "`max_memory_allocated`", "allocated_max"),
        _memory_row(memory, "`max_memory_reserved`", "reserved_max"),
        _memory_row(memory, "nvidia-smi", "process_used", "device_used"),
        _row("out of memory", f"{out['predicted']} runs that were", f"{out['foreseen']} foreseen", "", "memory"),
        _row(
            "time of a step",
            f"{time['count']} published speeds",
            f"{time['mape']:.0%} on average",
            f"{time['coverage']:.0%}",
            "time",
        ),
    ]
    return _table(("predicted", "held against", "off by", "in the 90 % interval"), rows)


def _memory_row(memory: dict[str, Any], what: str, *metrics: str) -> tuple[str, ...]:
    """Groups of a metric, each counting by its rows."""
    groups = [g for g in memory["metrics"] if g["metric"] in metrics]
    n = sum(g["count"] for g in groups)
    error, covered = (sum(g[key] * g["count"] for g in groups) / n for key in ("mape", "covered"))
    return _row(what, f"{n} published measurements", f"{error:.2%} on average", f"{covered:.0%}", "memory")


def _row(what: str, against: str, error: str, covered: str, document: str) -> tuple[str, ...]:
    spaced = (text.replace("%", " %") for text in (error, covered))
    return (what, f"[{against}](tables/accuracy/{document}.md)", *spaced)


def _json(command: str) -> Any:
    return json.loads(output(command))


def _quoted(names: Sequence[str] | Any) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
