"""Every request of a step, in its order, as the real libraries made it when it was traced (tests/transcripts.py)."""

from __future__ import annotations

import pytest
import transcripts

from vramcalc.accuracy.traces.table import read_traces

TRANSCRIPTS = transcripts.read()
JOBS = {row.trace_id: row.job for row in read_traces()}


@pytest.mark.parametrize("trace_id", TRANSCRIPTS)
def test_a_step_asks_for_what_the_libraries_asked_for(trace_id: str) -> None:
    found = transcripts.predicted(JOBS[trace_id])
    assert [found.get((phase.name, phase.level)) for phase in TRANSCRIPTS[trace_id]] == TRANSCRIPTS[trace_id]
