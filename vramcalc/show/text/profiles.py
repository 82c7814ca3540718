"""Profile rows and campaigns as plain text for a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from vramcalc.errors import VramcalcError
from vramcalc.inputs.job import Job
from vramcalc.memory.estimate import estimate_job
from vramcalc.profiling.campaign import Campaign
from vramcalc.profiling.row_figures import FirstStep, as_measurement, inconsistencies, job_of
from vramcalc.profiling.rows import Peaks, ProfileRow, RunSettings
from vramcalc.profiling.run_campaign import Summary
from vramcalc.show.plaintext import table, wrapped, wrapped_lines
from vramcalc.show.words import SHORT_DTYPES, method_line, recipe_lines
from vramcalc.units import gib

_OUTCOMES = {"measured": "measured", "out_of_memory": "out of memory", "failed": "failed"}


def profile_text(row: ProfileRow, path: Path | None = None) -> str:
    """One row: what ran, what was measured beside what is predicted, what it does not say."""
    job = job_of(row)
    gpu = row.machine.gpu
    parts = [
        f"{job.model.name}, {job.model.num_hidden_layers} layers: {method_line(job)}\n"
        f"  on {gpu.name if gpu else 'the CPU'}",
        wrapped_lines(recipe_lines(job)),
        wrapped("ran with " + ", ".join(f"{name} {v}" for name, v in row.versions.items()), "  "),
        f"{_OUTCOMES[row.outcome]}{_failure(row)}",
        *_memory(row, job),
        *_speed(row),
        *_smallest(row),
        *_blocks(row),
        *_remarks(row),
    ]
    if path is not None:
        parts.append(f"added to {path}")
    return "\n\n".join(parts)


def _failure(row: ProfileRow) -> str:
    if row.failure is None:
        return ""
    asked = f", asked for {gib(row.failure.asked_bytes)}" if row.failure.asked_bytes else ""
    last = row.failure.message.strip().splitlines()[-1:] or [""]
    return f" in {row.failure.phase}{asked}\n  {row.failure.kind}: {last[0][:300]}"


def _memory(row: ProfileRow, job: Job) -> list[str]:
    if row.memory is None:
        return ["memory: not measured on a CPU"] if row.recipe.device == "cpu" else []
    m = row.memory
    phases = {"load": m.load, "forward": m.forward, "backward": m.backward, "optimizer": m.optimizer, "whole": m.whole}
    cells = [(name, *_pair(peaks)) for name, peaks in phases.items() if peaks is not None]
    found = [table(cells, ("highest memory", "allocated", "reserved"), right=(1, 2))]
    _, metrics = as_measurement(row)
    estimates = predicted(row) if "allocated_max" in metrics else {}
    return [*found, compared(estimates, metrics)] if estimates else found


def _pair(peaks: Peaks) -> tuple[str, str]:
    return gib(peaks.allocated_bytes), gib(peaks.reserved_bytes)


def predicted(row: ProfileRow) -> dict[str, int]:
    """Predictions for a row, by the names of its metrics; none where its job is not modelled. [B]"""
    try:
        found = estimate_job(job_of(row), row.machine.gpu)
    except VramcalcError:
        return {}
    return {
        "allocated_max": found.block_bytes,
        "reserved_max": found.reserved_bytes,
        "context": found.context.n_bytes,
        "process_used": found.process_bytes,
    }


def compared(estimates: dict[str, int], metrics: dict[str, float]) -> str:
    """Predicted beside measured."""
    cells = [
        (name, gib(estimates[name]), gib(metrics[name]), f"{100 * (estimates[name] / metrics[name] - 1):+.2f} %")
        for name in estimates
        if metrics.get(name)
    ]
    return table(cells, ("bytes", "predicted", "measured", "difference"), right=(1, 2, 3))


def _speed(row: ProfileRow) -> list[str]:
    t = row.timing
    if t is None:
        return []
    return [f"step {t.step_s:.4g} s, median of {len(t.steps_s)} after {t.warmup_steps}: {t.tokens_per_s:,.0f} tokens/s"]


def _smallest(row: ProfileRow) -> list[str]:
    s = row.smallest
    if s is None:
        return []
    return [
        f"smallest memory that suffices: {gib(s.suffices_bytes)} for torch's allocator; {gib(s.fails_bytes)} does not "
        f"do\n  {len(s.trials)} trials"
    ]


def _blocks(row: ProfileRow) -> list[str]:
    if not row.blocks:
        return []
    cells = [(gib(b.n_bytes), b.count, b.where) for b in row.blocks]
    return [table(cells, ("at the peak", "blocks", "asked for in"), right=(0, 1))]


def _remarks(row: ProfileRow) -> list[str]:
    told = [f"contradicts itself: {text}" for text in inconsistencies(row)]
    told += [f"note: {note}" for note in row.notes]
    if row.sdpa_backend and row.recipe.device == "cuda":
        told.append(f"attention that torch chose: {row.sdpa_backend}")
    told += [f"unchecked: the recipe models another release than ran: {v}" for v in row.unchecked_versions]
    return ["\n".join(told)] if told else []


def recipe_line(recipe: RunSettings) -> str:
    """One job in a line."""
    t, job = recipe.training, Job(recipe.model, recipe.method, recipe.training, recipe.stack)
    extra = "".join(
        f", {word}"
        for word, there in (
            (recipe.stack.name, recipe.stack.name != "transformers-trainer"),
            (f"{SHORT_DTYPES[recipe.stack.dtype]} weights", recipe.stack.dtype != "bfloat16"),
            ("no autocast", recipe.stack.autocast is None and recipe.stack.name == "transformers-trainer"),
            ("expandable segments", recipe.stack.allocator.expandable_segments),
            ("padded", t.padded),
            ("no attention_mask", not recipe.stack.passes_attention_mask),
            ("gradients zeroed in place", not recipe.stack.zero_grad_set_to_none),
            (f"{t.gradient_accumulation_steps} micro-steps", t.gradient_accumulation_steps > 1),
            (f"{t.gradient_checkpointing} checkpointing", t.gradient_checkpointing != "none"),
            (recipe.stack.attn_implementation, recipe.stack.attn_implementation != "sdpa"),
            (recipe.stack.sdpa_kernel, recipe.stack.sdpa_kernel != "auto"),
            (f"{recipe.stack.loss} loss", recipe.stack.loss != "full"),
            ("smallest", recipe.find_smallest),
        )
        if there
    )
    name = recipe.model.name.rpartition("/")[2]
    return f"{name} {method_line(job)}, {t.micro_batch_size} x {t.seq_len:,}, {t.optim}{extra}"


def row_line(row: ProfileRow) -> str:
    """One row in a line."""
    return f"{_OUTCOMES[row.outcome]}: {recipe_line(row.recipe)}"


def jobs_text(campaign: Campaign) -> str:
    """Jobs of a campaign in their order, with the time they are expected to take."""
    total, cells = 0.0, []
    for planned in campaign.jobs:
        total += planned.expected_s
        cells.append((f"{total / 60:.1f}", f"{planned.expected_s:g}", recipe_line(planned.recipe)))
    head = f"{campaign.name}: {len(campaign.jobs)} jobs, {total / 60:.0f} minutes by the file's own estimate"
    return f"{head}\n\n{table(cells, ('until min', 's', 'job'), right=(0, 1))}"


def summary_text(summary: Summary, path: Path) -> str:
    """What a run of a campaign did."""
    n = sum(summary.outcomes.values())
    by_outcome = ", ".join(
        f"{summary.outcomes[name]} {word}" for name, word in _OUTCOMES.items() if summary.outcomes[name]
    )
    lines = [
        f"{n} jobs run{': ' + by_outcome if by_outcome else ''}; {summary.resumed} done before; {summary.left} left"
    ]
    lines += [f"note: {note}" for note in summary.notes]
    lines += [f"contradicts itself: {problem}" for problem in summary.problems]
    return "\n".join([*lines, f"rows in {path}"])


def summary_dict(summary: Summary, path: Path) -> dict[str, Any]:
    """The same as plain values."""
    return {**vars(summary), "outcomes": dict(summary.outcomes), "output": str(path)}


def first_step_text(step: FirstStep) -> str:
    """Predicted against measured for the first optimizer step of a run."""
    row, measured = step.row, step.peaks
    training = row.recipe.training
    length = training.seq_lens[0] if training.seq_lens else training.seq_len
    head = f"vramcalc, first step: {recipe_line(row.recipe)}"
    found = estimate_job(replace(job_of(row), training=training.replace(seq_lens=(length,))), row.machine.gpu)
    estimates = {"allocated_max": found.block_bytes, "reserved_max": found.reserved_bytes}
    if measured is None:
        told = ", ".join(f"{name} {gib(n)}" for name, n in estimates.items())
        return f"{head}\n  predicted for a GPU: {told}; memory is not measured on a CPU"
    metrics = {"allocated_max": measured["allocated_bytes"], "reserved_max": measured["reserved_bytes"]}
    return f"{head}\n{compared(estimates, {name: float(n) for name, n in metrics.items()})}"
