"""Rows of ``tables/traces.csv`` that a family still lacks.

    python tests/reference/rows.py arcee afm-4.5b

adds one without numbers for every combination of method, checkpointing and attention that no row of the family has, and
lets the other settings take turns in them. Pairs that none of them brings are left to be written by hand;
``covered.py`` names them.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from typing import Any

import covered
from traces import write

from vramcalc.accuracy.traces.table import COLUMNS, path, raw_rows, read_traces
from vramcalc.errors import VramcalcError
from vramcalc.inputs import catalog
from vramcalc.inputs.job import Job
from vramcalc.inputs.settings import METHOD_CLASSES
from vramcalc.inputs.stack import Stack, TrainingSpec
from vramcalc.memory.estimate import estimate_job
from vramcalc.tables import Row

CHOICE = random.Random(0)  # noqa: S311
TRIES = 60
"""Random settings that are tried for a combination; that with the most new pairs is taken."""
LENGTHS = {"even": (512, 768, 1024), "odd": (333, 515, 777)}
TARGETS: dict[str, Any] = {
    "all-linear": "all-linear",
    "attention": ["q_proj", "v_proj"],
    "mlp": ["up_proj", "down_proj"],
    "both": ["q_proj", "up_proj"],
    "pattern": r".*\.(q|o)_proj",
    "embeddings or head": ["lm_head", "v_proj"],
}
BATCHES = {"1": 1, "2": 2, "odd": 3}


def row_of(chosen: dict[str, Any], trace_id: str, model: str) -> Row:
    """Values of axes as a row."""
    weights = chosen["weights"].split(" autocast ")
    kernel = chosen["attention"].split()
    method: dict[str, Any] = {"kind": chosen["method"]}
    stack = {"dtype": weights[0], "attn_implementation": kernel[0], "loss": chosen["loss"]}
    stack |= {"autocast": weights[1]} if weights[1:] else {}
    stack |= {"sdpa_kernel": kernel[1]} if kernel[1:] else {}
    if chosen["method"] != "full":
        method |= {"rank": chosen["rank"], "target_modules": TARGETS[chosen["targets"]]}
        method |= {"modules_to_save": chosen["modules_to_save"].split(), "lora_dropout": 0.1 * chosen["dropout"]}
        stack["adapter_dtype"] = chosen["adapters"]
    training = {
        "seq_len": CHOICE.choice(LENGTHS[chosen["length"]]),
        "micro_batch_size": BATCHES[chosen["batch"]],
        "gradient_accumulation_steps": 1 + chosen["accumulation"],
        "gradient_checkpointing": chosen["checkpointing"],
        "optim": chosen["optimizer"],
        "padded": chosen["padding"],
    }
    changes = {"num_hidden_layers": chosen["layers"], "tie_word_embeddings": chosen["tied head"]}
    settings = {"changes": changes, "method": method, "training": training, "stack": stack}
    plain = {name: json.dumps(value) for name, value in settings.items()}
    return {**dict.fromkeys(COLUMNS, ""), "trace_id": trace_id, "model": model, **plain, "compute_capability": "8.0"}


def job_of(row: Row) -> Job:
    """The job of a row.

    Raises:
        VramcalcError: it is refused.
    """
    changes, method, training, stack = (json.loads(row[name]) for name in ("changes", "method", "training", "stack"))
    kind = METHOD_CLASSES[method["kind"]]
    model = catalog.model(row["model"]).replace(**changes)
    job = Job(model, kind(**method), TrainingSpec(**training), Stack(**stack), (8, 0))
    estimate_job(job)
    return job


def proposed(family: str, model: str) -> Iterator[Row]:
    """Rows for every combination that is missing."""
    jobs = [row.job for row in read_traces()]
    missing = {pair for pair in covered.missing(jobs) if ("family", family) in pair}
    axes = {name: values for name, (values, _) in {**covered.AXES, **covered.ADAPTER_AXES}.items()}
    for number, (_, *core) in enumerate((c for c in covered.missing_core(jobs) if c[0] == family), 1):
        best: tuple[int, Row, set[covered.Pair]] | None = None
        for _ in range(TRIES):
            chosen = {name: CHOICE.choice(values) for name, values in axes.items()}
            chosen |= dict(zip(covered.CORE, (family, *core), strict=True))
            row = row_of(chosen, f"{model}-{core[0]}-{number}", model)
            try:
                brings = missing & set(covered.pairs_of(job_of(row)))
            except VramcalcError:
                continue
            if best is None or len(brings) > best[0]:
                best = len(brings), row, brings
        if best is None:
            raise SystemExit(f"{family}, {', '.join(map(str, core))}: every setting that was tried is refused")
        missing -= best[2]
        yield best[1]
    for pair in missing:
        print("not brought:", *(f"{name} = {value}" for name, value in pair))


if __name__ == "__main__":
    where = path()
    write([*raw_rows(where), *proposed(*sys.argv[1:3])], where)
