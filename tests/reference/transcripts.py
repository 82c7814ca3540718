"""Write down everything that the real libraries ask for: ``transcripts.csv``, of rows of ``tables/traces.csv``.

    python tests/reference/transcripts.py --limit-s 300   rows of every kind that take so long together
    python tests/reference/transcripts.py --again         those that are there
    python tests/reference/transcripts.py full-12 ...     these rows

Only rows whose recipe names the releases that are installed can be traced, as in ``traces.py``; others stay as they
are. Each phase of a step is kept at the strictest level at which a walk is alike, if there is one: review the diff, no
line may go or get weaker.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

if version("transformers").startswith("4."):
    # Releases of that time import what today's torchao has no more.
    sys.modules["torchao"] = None  # type: ignore[assignment]

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import transcripts

from vramcalc.accuracy.traces.accuracy import pull, untraceable
from vramcalc.accuracy.traces.table import TracedRow, read_traces
from vramcalc.errors import VramcalcError
from vramcalc.profiling.trace.trace import trace

MICRO_STEPS = 3
"""A walk goes through no more of a step."""


def traced(row: TracedRow) -> list[transcripts.Phase]:
    """What the libraries ask for in a row's steps, as far as a walk does."""
    job, lengths = row.job, transcripts.lengths_of(row.job)
    found = trace(
        job.model, job.method, job.training, job.stack,
        compute_capability=job.compute_capability, steps=len(lengths), seq_lens=lengths,
    )  # fmt: skip
    names = ["load"] * found.start
    for (_, name), (stop, _) in pairwise([*found.marks, (len(found.events), "")]):
        if name != "exit":
            names += [transcripts.common(name)] * (stop - len(names))
    events = zip(found.events, names, strict=False)
    return transcripts.alike(
        transcripts.phases(events, [a.n_bytes for a in found.allocations]), transcripts.predicted(job)
    )


def main() -> None:
    """Trace and rewrite the table, row by row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-s", type=float)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("rows", nargs="*")
    asked = parser.parse_args()
    kept = transcripts.read() if transcripts.FILE.exists() else {}
    rows = [r for r in read_traces() if r.job.training.gradient_accumulation_steps <= MICRO_STEPS]
    rows = [r for r in rows if not untraceable(r.job)]
    wanted = {*asked.rows, *(kept if asked.again else ())}
    for row in pull(rows, asked.limit_s) if asked.limit_s else [row for row in rows if row.trace_id in wanted]:
        try:
            kept[row.trace_id] = traced(row)
        except VramcalcError as err:
            print(f"{row.trace_id}: {err}", flush=True)
            continue
        print(row.trace_id, dict(Counter(phase.level for phase in kept[row.trace_id])), flush=True)
        transcripts.write(kept)


if __name__ == "__main__":
    main()
