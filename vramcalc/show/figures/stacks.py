"""What several jobs hold at their peaks, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vramcalc.errors import InvalidValue
from vramcalc.show.figures.canvas import drawing, in_gib, ink, limit_label, to_gib, whole
from vramcalc.show.palette import CACHED, GROUPS
from vramcalc.show.words import CACHE, method_line, process_groups
from vramcalc.units import gib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vramcalc.memory.estimate import Estimate


def ledgers(estimates: Sequence[Estimate], *, labels: Sequence[str] | None = None, ax: Axes | None = None) -> Figure:
    """One bar per job, stacked by group up to what nvidia-smi shows, with the lines of the GPUs named.

    Args:
        estimates: at least one.
        labels: of the bars; by default the method and whatever else differs.
        ax: axes to draw on, None for a new picture.

    Raises:
        InvalidValue: no estimates, or another number of labels.
        MissingExtra: matplotlib is not installed.
    """
    if not estimates:
        raise InvalidValue("estimates", estimates, "at least one estimate")
    names = list(labels) if labels is not None else labels_of(estimates)
    if len(names) != len(estimates):
        raise InvalidValue("labels", names, f"one for each of {len(estimates)} estimates")
    with drawing(ax, height=1.6 + 0.55 * len(estimates)) as (on,):
        totals = _bars(on, estimates)
        _gpus(on, estimates, max(totals))
        on.set_yticks(range(len(names)), names)
        on.tick_params(axis="y", length=0)
        on.invert_yaxis()
        on.grid(visible=False, axis="y")
        on.grid(visible=True, axis="x")
        in_gib(on.xaxis, "memory of the process at the peak")
        on.set_title(_title(estimates))
        on.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return whole(on)


def _bars(on: Axes, estimates: Sequence[Estimate]) -> list[int]:
    """A bar per estimate with its total in words.

    Returns:
        The totals. [B]
    """
    rows, left = range(len(estimates)), [0] * len(estimates)
    for group, colour in (*GROUPS.items(), (CACHE, CACHED)):
        widths = [process_groups(e).get(group, 0) for e in estimates]
        if any(widths):
            hatch = "////" if group == CACHE else None
            on.barh(rows, [*map(to_gib, widths)], 0.62, [*map(to_gib, left)], label=group, color=colour,
                    hatch=hatch, edgecolor=on.get_facecolor(), linewidth=0.8)  # fmt: skip
            left = [a + b for a, b in zip(left, widths, strict=True)]
    patch = {"facecolor": on.get_facecolor(), "edgecolor": "none", "pad": 0.5}
    for row, total in enumerate(left):
        on.text(to_gib(total), row, f" {gib(total)} ", va="center", fontsize=9, zorder=3, bbox=patch)
    return left


def labels_of(estimates: Sequence[Estimate]) -> list[str]:
    """Methods, and whatever else differs."""
    jobs = [e.job for e in estimates]
    columns: list[list[str]] = [
        [job.model.name for job in jobs],
        [method_line(job).replace(" on all-linear", "").replace(" double-quantised", "") for job in jobs],
        [f"{job.training.micro_batch_size} x {job.training.seq_len:,} tokens" for job in jobs],
        [{"none": "no checkpointing"}.get(job.training.gradient_checkpointing, "checkpointing") for job in jobs],
        [job.training.optim for job in jobs],
        [f"{job.stack.loss} loss" for job in jobs],
        [job.stack.name for job in jobs],
    ]
    telling = [c for n, c in enumerate(columns) if n == 1 or len(set(c)) > 1]
    return [_two_lines(words) for words in zip(*telling, strict=True)]


def _two_lines(words: tuple[str, ...]) -> str:
    return words[0] + ("\n" + ", ".join(words[1:]) if words[1:] else "")


def _title(estimates: Sequence[Estimate]) -> str:
    jobs = [e.job for e in estimates]
    parts = []
    if len({job.model.name for job in jobs}) == 1:
        parts.append(jobs[0].model.name)
    sizes = {f"micro batch {job.training.micro_batch_size} x {job.training.seq_len:,} tokens" for job in jobs}
    if len(sizes) == 1:
        parts.append(sizes.pop())
    return ", ".join(parts)


def _gpus(on: Axes, estimates: Sequence[Estimate], highest: int) -> None:
    """A line per GPU that was named, where it is not far off."""
    gpus = {e.gpu.gpu_id: e.gpu for e in estimates if e.gpu is not None}
    near = [g for g in gpus.values() if g.usable_bytes <= 2 * highest]
    styles = ("-", "--", "-.", ":")
    for n, gpu in enumerate(near):
        label = limit_label(gpu, gpu.usable_bytes)
        on.axvline(to_gib(gpu.usable_bytes), color=ink(on), linewidth=1.6, linestyle=styles[n % 4], label=label)
    on.set_xlim(0, to_gib(max([highest, *(g.usable_bytes for g in near)])) * 1.18)
