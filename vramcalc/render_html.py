"""Results as HTML for a notebook: a table and a stacked bar in inline SVG; readable on light and on dark."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from vramcalc.describe import method_line, recipe_lines, room
from vramcalc.units import gib

if TYPE_CHECKING:
    from vramcalc.estimation import Estimate
    from vramcalc.verdicts import Verdict

COLOURS = {
    "parameters": "#0072B2",
    "gradients": "#56B4E9",
    "optimizer": "#009E73",
    "activations": "#E69F00",
    "temporaries": "#D55E00",
    "workspace": "#CC79A7",
    "context": "#999999",
}
"""Okabe and Ito's colours, told apart by colour-blind readers too."""
_WIDTH, _HEIGHT = 640, 26
_VERDICTS = {"fits": "#009E73", "tight": "#E69F00", "does not fit": "#D55E00"}


def estimate_html(e: Estimate) -> str:
    """Recipe, stacked bar, groups and the three numbers."""
    recipe = "".join(f"<li>{escape(line)}</li>" for line in recipe_lines(e.job))
    rows = "".join(_row(group, n, sum(e.groups.values())) for group, n in e.groups.items())
    totals = "".join(
        f"<tr><th style='text-align:left'>{name}</th><td style='text-align:right'>{gib(n)}</td>"
        f"<td>{escape(why)}</td></tr>"
        for name, n, why in (
            ("allocated", e.allocated_bytes, "live tensors at the peak"),
            ("reserved", e.reserved_bytes, "torch's caching allocator, replayed"),
            ("process", e.process_bytes, f"with the CUDA context ({e.context.basis})"),
        )
    )
    warnings = "".join(f"<p>&#9888; {escape(w)}</p>" for w in e.warnings)
    where = f" on {escape(e.gpu.gpu_id)}" if e.gpu else ""
    return (
        f"<div><p><b>{escape(e.job.model.name)}</b>: {escape(method_line(e.job))}{where}</p>"
        f"<ul style='margin:0'>{recipe}</ul>{_bar(e)}"
        f"<p>at the peak: {escape(e.peak.name)}</p>"
        f"<table>{rows}</table><table>{totals}</table>{warnings}</div>"
    )


def _row(group: str, n_bytes: int, total: int) -> str:
    return (
        f"<tr><td><span style='color:{COLOURS[group]}'>&#9632;</span> {group}</td>"
        f"<td style='text-align:right'>{gib(n_bytes)}</td>"
        f"<td style='text-align:right'>{100 * n_bytes / total:.1f} %</td></tr>"
    )


def _bar(e: Estimate) -> str:
    """One stacked bar; the outline is the GPU's memory when one was named."""
    total = sum(e.groups.values())
    scale = _WIDTH / max(total, e.gpu.usable_bytes if e.gpu else 0)
    x, parts = 0.0, []
    for group, n in e.groups.items():
        width = n * scale
        parts.append(
            f"<rect x='{x:.1f}' y='1' width='{width:.1f}' height='{_HEIGHT - 2}' fill='{COLOURS[group]}'>"
            f"<title>{group}: {gib(n)}</title></rect>"
        )
        x += width
    if e.gpu:
        parts.append(
            f"<rect x='0.5' y='0.5' width='{e.gpu.usable_bytes * scale - 1:.1f}' height='{_HEIGHT - 1}' fill='none' "
            "stroke='currentColor'>"
            f"<title>{escape(e.gpu.gpu_id)}: {gib(e.gpu.usable_bytes)} {room(e.gpu)}</title></rect>"
        )
    return (
        f"<svg role='img' aria-label='memory by group' viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' "
        f"style='max-width:100%'>{''.join(parts)}</svg>"
    )


def verdict_html(v: Verdict) -> str:
    """The verdict, and what would help when it is not a plain yes."""
    head = (
        f"<p><b style='color:{_VERDICTS[v.status]}'>{v.status}</b> on {escape(v.gpu.gpu_id)}: "
        f"{gib(v.needed_bytes)} needed, {gib(v.usable_bytes)} {room(v.gpu)}: {escape(v.reason)}</p>"
    )
    if v.status == "fits" or not v.remedies:
        return f"<div>{head}</div>"
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(r.change)}</td><td>{gib(r.saves_bytes)}</td>"
        f"<td>{gib(r.needed_bytes)}</td><td>{r.status}</td></tr>"
        for r in v.remedies
    )
    return f"<div>{head}<table><tr><th>change</th><th>saves</th><th>then needs</th><th></th></tr>{rows}</table></div>"
