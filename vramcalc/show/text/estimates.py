"""Estimates, verdicts and fits as plain text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vramcalc.planning.remedies import first_that_fits
from vramcalc.planning.verdict import SAFE
from vramcalc.show.plaintext import filled_table, table, warning_parts, wrapped, wrapped_lines
from vramcalc.show.words import (
    SHORT_DTYPES,
    calibration_notes,
    ends,
    interval_notes,
    method_line,
    recipe_lines,
    room,
    shared_recipe_lines,
    span,
)
from vramcalc.units import gib, human_bytes, percent

if TYPE_CHECKING:
    from vramcalc.inputs.job import Job
    from vramcalc.inputs.stack import Gpu
    from vramcalc.memory.estimate import Estimate
    from vramcalc.memory.ledger import Row
    from vramcalc.planning.largest import Largest
    from vramcalc.planning.verdict import Verdict

_BAR = 32
_NO_REMEDY = "a larger GPU or a smaller model"


def estimate_text(e: Estimate, *, largest: int = 12) -> str:
    """An estimate: the recipe, the groups at the peak, the three numbers, instants, the largest rows, warnings."""
    job = e.job
    assumed = f"  no GPU named: compute capability {'.'.join(map(str, job.compute_capability))} assumed"
    parts = [
        _heading(job, e.gpu),
        wrapped_lines(recipe_lines(job)) + ("" if e.gpu else f"\n{assumed}"),
        f"  {e.total_params:,} parameters, {e.trainable_params:,} of them train",
        f"Memory at the peak ({e.peak.name})\n{_groups(e)}",
        _totals(e),
        f"Instants, in the order of the step\n{_instants(e)}",
        f"Largest rows at the peak\n{_rows(e.rows, largest)}",
    ]
    parts += warning_parts(e.warnings)
    return "\n\n".join(parts)


def _heading(job: Job, gpu: Gpu | None) -> str:
    return wrapped(f"{job.model.name}: {method_line(job)}{f' on {gpu.gpu_id}' if gpu else ''}")


def _groups(e: Estimate) -> str:
    total = sum(e.groups.values())
    rows = [
        (group, gib(n), f"{100 * n / total:.1f} %", "#" * max(1, round(_BAR * n / total)))
        for group, n in e.groups.items()
    ]
    return table(rows, ("", "", "", ""), right=(1, 2))


def _totals(e: Estimate) -> str:
    mode = ", expandable_segments" if e.job.stack.allocator.expandable_segments else ""
    context = f"a CUDA context of {gib(e.context.n_bytes)} ({e.context.basis})"
    of = {name: span(*ends(e.interval(name))) for name in ("allocated", "blocks", "reserved", "process")}
    rows = [
        ("allocated", gib(e.allocated_bytes), of["allocated"], "live tensors"),
        ("", gib(e.block_bytes), of["blocks"], "in blocks: torch.cuda.max_memory_allocated()"),
        ("reserved", gib(e.reserved_bytes), of["reserved"], f"torch.cuda.max_memory_reserved(), replayed{mode}"),
        ("process", gib(e.process_bytes), of["process"], f"nvidia-smi: with {context}"),
    ]
    if e.paged_bytes:
        rows.append(("paged", gib(e.paged_bytes), "", "optimizer state in managed memory, not counted above"))
    return "\n".join(
        [table(rows, ("", "", "90 %", ""), right=(1, 2)), *(wrapped(note, "  ") for note in interval_notes(e))]
    )


def _instants(e: Estimate) -> str:
    rows = []
    for instant in e.instants:
        mark = "<- peak" if instant == e.peak else "<- runner-up" if instant == e.runner_up else ""
        rows.append((instant.name, gib(instant.n_bytes), mark))
    return table(rows, ("", "", ""), right=(1,))


def _rows(rows: Sequence[Row], largest: int) -> str:
    shown = sorted(rows, key=lambda r: -r.n_bytes)[:largest]
    rest = sum(r.n_bytes for r in rows) - sum(r.n_bytes for r in shown)
    body: list[tuple[str, ...]] = [
        (
            human_bytes(r.n_bytes),
            f"{r.count} x",
            "x".join(map(str, r.shape)) or "scalar",
            SHORT_DTYPES.get(r.dtype, r.dtype),
            _short(r.module),
            f"{r.what}, {r.why}" if r.basis == "exact" else f"{r.what} ({r.basis})",
        )
        for r in shown
    ]
    body.append((human_bytes(rest), "", "", "", f"{len(rows) - len(shown)} more rows", ""))
    headers = ("bytes", "", "shape", "dtype", "module", "what, why alive")
    return filled_table(body, headers, right=(0, 1))


def _short(module: str) -> str:
    """A module without what the number of its tensors says: that it is in every layer."""
    bare = module.removeprefix("model.").removesuffix(".weight")
    return "decoder layer" if bare == "layers.*" else bare.removeprefix("layers.*.") or "loss"


def verdict_text(v: Verdict) -> str:
    """A verdict, and what would help when it is not a plain yes."""
    lines = [wrapped(f"{v.gpu.gpu_id}: {_status(v)}")]
    if v.status != "fits" and v.remedies:
        rows = [(r.change, gib(r.saves_bytes), gib(r.needed_bytes), r.status) for r in v.remedies]
        lines.append(table(rows, ("change, least intrusive first", "saves", "then needs", ""), right=(1, 2), wrap=36))
        if all(r.status == "does not fit" for r in v.remedies):
            lines.append(f"  None of these is enough; {_NO_REMEDY} would be.")
    elif v.status == "does not fit":
        lines.append(f"  No change that is known here saves anything; {_NO_REMEDY} would.")
    return "\n".join(lines)


def _status(v: Verdict) -> str:
    low, _, high = v.needed_interval
    needed = f"{gib(v.needed_bytes)} needed ({span(low, high)})"
    part = (
        "" if v.probability == v.probability_as_is else f" to run, {percent(v.probability_as_is)} without giving back"
    )
    return f"{v.status}, {percent(v.probability)}{part}. {needed}, {gib(v.usable_bytes)} {room(v.gpu)}: {v.reason}."


def fit_text(verdicts: Sequence[Verdict], *, hints: bool = True) -> str:
    """Methods by GPUs, one row each, under the recipe they assume; then what would make the others fit."""
    rows = _counted(
        (
            *(v.estimate.job.method.kind, v.gpu.gpu_id, gib(v.needed_bytes), span(*ends(v.needed_interval))),
            *(gib(v.usable_bytes), percent(v.probability), v.status),
        )
        for v in verdicts
    )
    job = verdicts[0].estimate.job
    parts = [
        f"{job.model.name}: {job.model.params_total:,} parameters",
        wrapped_lines(shared_recipe_lines([(v.estimate.job, v.gpu.gpu_id) for v in verdicts])),
        table(rows, ("method", "GPU", "needed", "90 %", room(verdicts[0].gpu), "chance", "verdict"), right=(2, 3, 4, 5))
        + "\n  needed: what torch's allocator reserves, and the CUDA context; with its 90 % interval"
        + "\n  and the chance that it runs, by giving cached memory back if need be",
    ]
    too_much = [v for v in verdicts if v.status == "does not fit"]
    if hints and too_much:
        parts.append(f"The least that would make it fit\n{_hints(too_much)}")
    parts += warning_parts([*(w for v in verdicts for w in v.estimate.warnings), *calibration_notes()])
    return "\n\n".join(parts)


def _hints(verdicts: Iterable[Verdict]) -> str:
    rows = []
    for v in verdicts:
        found = first_that_fits(v)
        change, needs = (found.change, gib(found.needed_bytes)) if found else (_NO_REMEDY, "")
        rows.append((v.estimate.job.method.kind, v.gpu.gpu_id, change, needs, found.status if found else ""))
    return table(_counted(rows), ("", "", "", "", ""), right=(3,), wrap=36)


def _counted(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Rows without repetition; the second cell, a GPU, says how many there are."""
    times = Counter(rows)
    return [(first, f"{n} x {gpu}" if n > 1 else gpu, *rest) for (first, gpu, *rest), n in times.items()]


def largest_text(found: Largest) -> str:
    """The largest value that fits, what stopped the search, and the largest that surely does."""
    v, name = found.verdict, found.setting
    stop = {
        "memory": f"{name} {found.value + 1:,} does not fit.",
        "limit": "The search ends there; a higher limit may find more.",
        "max_position_embeddings": "That is the model's max_position_embeddings.",
    }[found.limited_by]
    sure = f"a probability of {percent(SAFE)}"
    margin = f"The largest with {sure}: {found.comfortable:,}." if found.comfortable else f"None has {sure}."
    lines = [f"{name} {found.value:,}: {_status(v)}", stop, *([margin] if found.comfortable != found.value else [])]
    parts = [
        _heading(v.estimate.job, v.gpu),
        wrapped_lines(recipe_lines(v.estimate.job)),
        wrapped_lines(lines, ""),
        *warning_parts([*v.estimate.warnings, *calibration_notes()]),
    ]
    return "\n\n".join(parts)
