"""Accuracy on published measurements as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from vramcalc.accuracy.memory.accuracy import Accuracy, Group
from vramcalc.memory.calibration.conformal import LEVEL
from vramcalc.show.plaintext import counted, table
from vramcalc.show.words import span
from vramcalc.units import gib


def accuracy_text(found: Accuracy, *, rows: bool = False) -> str:
    """Groups, rows that are reported apart, unsupported rows by reason; on request every row."""
    total, predicted = len(found.predictions), sum(p.predicted_bytes is not None for p in found.predictions)
    ours, of_ours = found.hugging_face
    head = [f"{predicted:,} of {total:,} rows predicted"]
    if ours:
        head.append(
            f"{of_ours:,} of the {ours:,} ({of_ours / ours:.0%}) of transformers, TRL and PEFT on one GPU, "
            "full, LoRA and 4-bit QLoRA"
        )
    parts = ["\n".join(head), _groups(found.groups)]
    if found.metrics:
        parts.append(f"the same by metric\n{_groups(found.metrics)}")
    if found.unnamed:
        parts.append(
            "apart: no release of transformers named; predicted for the likeliest of the run's date, intervals span\n"
            f"the others\n{_groups(found.unnamed)}"
        )
    if found.apart:
        parts.append(f"apart: only the cap on the length is known\n{_groups(found.apart)}")
    if found.out_of_memory[0]:
        rows_out, foreseen = found.out_of_memory
        parts.append(f"runs that ended out of memory: {rows_out}; predicted to need more than the GPU has: {foreseen}")
    if found.unsupported:
        parts.append(counted("unsupported", found.unsupported))
    parts.append(_intervals(found))
    if rows:
        parts.append(_rows(found))
    return "\n\n".join(parts)


def _groups(groups: Sequence[Group]) -> str:
    body = [
        (
            g.stack,
            g.method,
            g.metric,
            g.count,
            f"{100 * g.mape:.2f} %",
            f"{100 * g.bias:+.2f} %",
            f"{100 * g.median:.2f} %",
            f"{100 * g.worst:+.2f} %",
            f"{100 * g.covered:.0f} %",
            f"{100 * g.width:.1f} %",
            g.worst_case,
        )
        for g in groups
    ]
    headers = ("stack", "method", "metric", "rows", "MAPE", "bias", "median", "worst", "covered", "width", "worst row")
    return table(body, headers, right=(3, 4, 5, 6, 7, 8, 9))


def _intervals(found: Accuracy) -> str:
    """How intervals did on figures whose recipe they had not seen."""
    rows = [p for p in found.predictions if p.error is not None]
    inside = sum(p.covered for p in rows)
    share = f"{inside:,} of {len(rows):,} ({inside / len(rows):.0%})" if rows else "none"
    return (
        f"covered: rows within the {LEVEL:.0%} interval, made without any run of their recipe: {share}\n"
        "width: of that interval from end to end, over what is predicted"
    )


def _rows(found: Accuracy) -> str:
    body = [
        (
            p.row["case_id"],
            p.row["metric"],
            gib(p.value_bytes) if p.value_bytes else "",
            gib(p.predicted_bytes) if p.predicted_bytes is not None else "",
            span(p.low_bytes, p.high_bytes) if p.low_bytes is not None and p.high_bytes is not None else "",
            f"{100 * p.error:+.2f} %" if p.error is not None else p.reason,
        )
        for p in found.predictions
    ]
    return table(body, ("row", "metric", "measured", "predicted", "90 %", "error"), right=(2, 3, 4))
