"""PEFT's published comparison of methods: the runs that an estimate does not know, traced.

``python tests/reference/peft_runs.py`` traces every row of ``peft_runs.csv`` that has no number, about a minute each.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vramcalc.accuracy.memory.unpublished_lengths import PEFT_METAMATHQA
from vramcalc.inputs import catalog
from vramcalc.inputs.presets import stack_of
from vramcalc.inputs.stack import FullFineTuning, TrainingSpec
from vramcalc.units import MIB

PATH = Path(__file__).with_name("peft_runs.csv")


@dataclass(frozen=True)
class Run:
    """One run of ``method_comparison/MetaMathQA``: Llama-3.2-3B, batches of four, an L40S.

    ``settings`` are those of a LoRA run as text, ``config`` names the configuration of another method. ``traced_bytes``
    is what the trace reserves, less the segment the benchmark subtracts; empty where an estimate answers. [B]
    """

    name: str
    config: str
    reserved_bytes: str
    source: str
    traced_bytes: str
    versions: str
    checked_on: str


def runs() -> list[Run]:
    """Every row of the table."""
    with PATH.open(newline="") as file:
        return [Run(**r) for r in csv.DictReader(file)]


def traced(run: Run) -> Run:
    """The run with what the installed libraries reserve: the end of a bucket, then the bucket of the longest batch."""
    import peft

    from vramcalc.profiling.trace.trace import trace

    kind, _, arguments = run.config.partition(" ")
    settings = dict(part.split("=") for part in arguments.split())
    config = getattr(peft, kind)(task_type="CAUSAL_LM", **{k: _value(v) for k, v in settings.items()})
    usual = PEFT_METAMATHQA.usual
    lengths = (*usual[-2:], PEFT_METAMATHQA.longest, *usual[1:3])
    training = TrainingSpec(micro_batch_size=4, seq_lens=lengths, padded=True, optim="adamw_torch")
    adapt: Callable[[Any], Any] = lambda model: peft.get_peft_model(model, config)  # noqa: E731
    found = trace(
        catalog.model("llama-3.2-3b"),
        FullFineTuning(),
        training,
        stack_of("peft-loop", method="lora"),
        compute_capability=(8, 9),
        steps=len(lengths),
        seq_lens=lengths,
        adapt=adapt,
    )
    return replace(
        run,
        traced_bytes=str(found.replay(empty_before=(2,)).peak_reserved_bytes - 2 * MIB),
        versions=", ".join(f"{library} {version}" for library, version in found.versions.items()),
        checked_on=datetime.now(tz=UTC).date().isoformat(),
    )


def _value(text: str) -> Any:
    return {"True": True, "False": False}.get(text, int(text) if text.isdigit() else text.split(";"))


def main() -> None:
    """Trace and rewrite the table."""
    table = runs()
    for number, run in enumerate(table):
        if run.config and ("--all" in sys.argv or not run.traced_bytes):
            table[number] = traced(run)
            error = int(table[number].traced_bytes) / int(run.reserved_bytes) - 1
            print(f"{run.name} {error:+.3%}", flush=True)
            with PATH.open("w", newline="") as file:
                writer = csv.DictWriter(file, [f.name for f in fields(Run)], lineterminator="\n")
                writer.writeheader()
                writer.writerows(vars(r) for r in table)


if __name__ == "__main__":
    main()
