"""A campaign in a process of its own whose jobs take no time: what is tested is the file, not the measuring.

Arguments: the campaign's YAML, the file of rows, and whether to wait for a line on stdin before each job.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from profile_rows import CPU, cpu_row

from vramcalc.profiling.campaign import Planned, read_campaign
from vramcalc.profiling.in_a_process import Place
from vramcalc.profiling.rows import ProfileRow
from vramcalc.profiling.run_campaign import Rows, run


def measured(jobs: Iterable[Planned], where: Place) -> Iterator[ProfileRow]:
    assert where == CPU
    for job in jobs:
        yield cpu_row(job.recipe)


if __name__ == "__main__":
    campaign = read_campaign(Path(sys.argv[1]), device="cpu")
    summary = run(campaign, Rows(Path(sys.argv[2])), CPU, measure=measured)
    print(sum(summary.outcomes.values()), summary.resumed, flush=True)
