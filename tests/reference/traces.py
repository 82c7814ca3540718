"""Reference traces: ``traces.csv`` read back, and traced again.

``python tests/reference/traces.py`` traces the rows without numbers, with ``--all`` every row.
"""

from __future__ import annotations

import csv
import json
import sys
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from vramcalc import catalog
from vramcalc.job import Job
from vramcalc.specs import FullFineTuning, LoRA, QLoRA, Stack, TrainingSpec

PATH = Path(__file__).with_name("traces.csv")
METHODS = {"full": FullFineTuning, "lora": LoRA, "qlora": QLoRA}


@dataclass(frozen=True)
class Row:
    """A job, and what the real libraries allocate for it.

    ``model`` is a name of the catalog, ``changes`` overrides its fields; ``method``, ``training`` and ``stack`` hold
    the fields that differ from the defaults, as JSON. ``allocated_bytes`` is the highest sum of live storages, each
    rounded up to 512; ``reserved_bytes`` is that sequence through the replay of the caching allocator. [B]
    """

    model: str
    changes: str
    method: str
    training: str
    stack: str
    compute_capability: str
    allocated_bytes: str
    reserved_bytes: str
    versions: str
    checked_on: str

    def job(self) -> Job:
        """The job of the row."""
        model = catalog.model(self.model).replace(**json.loads(self.changes))
        method = json.loads(self.method)
        major, minor = self.compute_capability.split(".")
        return Job(
            model,
            METHODS[method.pop("kind")](**method),
            TrainingSpec(**json.loads(self.training)),
            Stack(**json.loads(self.stack)),
            (int(major), int(minor)),
        )

    @property
    def name(self) -> str:
        """What sets the row apart."""
        parts = [self.model, self.changes, self.method, self.training, self.stack, self.compute_capability]
        return " ".join(parts).translate(str.maketrans("", "", '{}"'))


def rows() -> list[Row]:
    """Every row of the table."""
    with PATH.open(newline="") as file:
        return [Row(**r) for r in csv.DictReader(file)]


def traced(row: Row) -> Row:
    """The row with numbers from the libraries that are installed."""
    from vramcalc.profiling.trace import trace

    job = row.job()
    found = trace(job.model, job.method, job.training, job.stack, compute_capability=job.compute_capability)
    today = datetime.now(tz=UTC).date().isoformat()
    return replace(
        row,
        allocated_bytes=str(found.peak()[0]),
        reserved_bytes=str(found.replay().peak_reserved_bytes),
        versions=", ".join(f"{library} {version}" for library, version in found.versions.items()),
        checked_on=today,
    )


def main() -> None:
    """Trace and rewrite the table."""
    table = rows()
    again = "--all" in sys.argv
    for number, row in enumerate(table):
        if again or not row.allocated_bytes:
            table[number] = traced(row)
            print(f"{number + 1}/{len(table)} {table[number].allocated_bytes} {row.name}", flush=True)
            with PATH.open("w", newline="") as file:
                writer = csv.DictWriter(file, [f.name for f in fields(Row)], lineterminator="\n")
                writer.writeheader()
                writer.writerows(vars(r) for r in table)


if __name__ == "__main__":
    main()
