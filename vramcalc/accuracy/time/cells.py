"""Published speeds that differ in the method alone: rows of one source, GPU, model, batch, length and checkpointing.

What is wrong with a source, its host, its trainer or its clock, is wrong with every row of a cell, and cancels in a
ratio. So does a length that nobody published: where only the longest there may be is known, but all rows of a cell ran
over the same data, the length is the one at which the cell's fastest row takes as long as it did. Such rows say nothing
of how long a step takes, and what they have to say of ratios.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from vramcalc.accuracy.published_rows import Row
from vramcalc.accuracy.time.throughput import MeasuredStep, measured_step
from vramcalc.errors import Unsupported
from vramcalc.inputs import catalog
from vramcalc.timing.roofline import KINDS, Coefficients, Prediction, least_seconds, predict, rates

Cell = tuple[str, ...]
_HOST_DECIDES = 0.5
"""Share of a step that follows the host's speed, from which on its duration says nothing of its tokens."""
_CELL = ("model", "micro_batch", "seq_len", "seq_kind", "tokens_per_step")
"""Columns that rows of a cell agree on, beside source, GPU and checkpointing."""
_EXPECTED = Coefficients(
    {name: kind.prior for name, kind in KINDS.items()}, {}, tuple((0.0,) * len(KINDS) for _ in KINDS)
)
"""What is to be expected before any measurement."""


def cell_of(row: Row) -> Cell:
    """What a row has in common with those that it may be compared with."""
    source = row["source"].partition("@")[0].split(" ")[0]
    model = row["model"].removesuffix("-Chat")
    return (source, row["gpu"], model, *(row[c] for c in _CELL[1:]), str(row["checkpointing"] != "none"))


def steps_of(rows: Sequence[Row]) -> tuple[list[MeasuredStep], dict[str, str]]:
    """Rows that can be predicted, and why the others cannot, by id."""
    found, reasons = [], {}
    lengths = _lengths(rows)
    for row in rows:
        try:
            found.append(measured_step(row, lengths.get(cell_of(row))))
        except Unsupported as err:
            reasons[row["case_id"]] = str(err)
    return found, reasons


def _lengths(rows: Sequence[Row]) -> Mapping[Cell, int]:
    """Lengths by cell, where they are not published and more than one method ran."""
    cells: dict[Cell, list[Row]] = defaultdict(list)
    for row in rows:
        if row["seq_kind"] == "max_not_reached" and _known_but_for_lengths(row):
            cells[cell_of(row)].append(row)
    several = {cell: mine for cell, mine in cells.items() if len({r["method"] + r["quant"] for r in mine}) > 1}
    return {cell: length for cell, mine in several.items() if (length := _length(mine)) is not None}


def _known_but_for_lengths(row: Row) -> bool:
    try:
        measured_step(row, int(row["seq_len"] or 1))
    except Unsupported:
        return False
    return True


def _length(rows: Sequence[Row]) -> int | None:
    """The length at which the fastest of some rows is expected to take as long as it did, at most the longest.

    None where launching kernels takes that long by itself.
    """
    longest = int(rows[0]["seq_len"])
    fastest = min(rows, key=lambda row: _per_token_s(measured_step(row, longest)))
    low, high = 1, longest
    while low < high:
        middle = (low + high) // 2
        step = measured_step(fastest, middle)
        low, high = (middle + 1, high) if _expected(step).s < step.step_s else (low, middle)
    return low if _expected(measured_step(fastest, low)).host_share < _HOST_DECIDES else None


def _per_token_s(step: MeasuredStep) -> float:
    return step.step_s / step.work.computed_tokens


def _expected(step: MeasuredStep) -> Prediction:
    at = rates(catalog.gpu_row(step.gpu))
    if at is None:
        raise Unsupported(f"the speed of {step.gpu} is not known")
    return predict(least_seconds(step.work.quantities, at), step.gpu, {"flops_16": 1.0, "flops_32": 1.0}, _EXPECTED)
