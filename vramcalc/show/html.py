"""Results as HTML for a notebook: tables and a stacked bar in inline SVG.

Nothing sets a colour of text without its background: text and lines take the colour of the page (``inherit``,
``currentColor``), so that a page reads the same on light and on dark, and where a host drops all styles the tables are
still tables.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from vramcalc.show.palette import CACHED, GROUPS, VERDICTS
from vramcalc.show.words import CACHE, ends, interval_notes, method_line, process_groups, recipe_lines, room, span
from vramcalc.units import gib, percent

if TYPE_CHECKING:
    from vramcalc.accuracy.memory.accuracy import Accuracy, Group
    from vramcalc.memory.estimate import Estimate
    from vramcalc.memory.grid import Grid
    from vramcalc.planning.verdict import Verdict

COLOURS = {**GROUPS, CACHE: CACHED}
_WIDTH, _HEIGHT = 640, 26
_CELL = "padding:.15em .7em;border-bottom:1px solid rgba(128,128,128,.35)"
_MOST = 12
"""Rows and columns of a grid that are shown crosswise; also the points that are listed."""


def estimate_html(e: Estimate) -> str:
    """Recipe, stacked bar, groups and the three numbers."""
    recipe = "".join(f"<li>{escape(line)}</li>" for line in recipe_lines(e.job))
    groups = process_groups(e)
    total = sum(groups.values())
    rows = [(f"{_square(g)} {escape(g)}", gib(n), f"{100 * n / total:.1f} %") for g, n in groups.items()]
    of = {name: span(*ends(e.interval(name))) for name in ("allocated", "reserved", "process")}
    context = f"nvidia-smi: with the CUDA context ({escape(e.context.basis)})"
    totals = [
        ("allocated", gib(e.allocated_bytes), of["allocated"], "live tensors at the peak"),
        ("reserved", gib(e.reserved_bytes), of["reserved"], "torch's caching allocator, replayed"),
        ("process", gib(e.process_bytes), of["process"], context),
    ]
    where = f" on {escape(e.gpu.gpu_id)}" if e.gpu else ""
    peak = f"Memory at the peak ({escape(e.peak.name)})"
    return (
        f"<div><p><b>{escape(e.job.model.name)}</b>: {escape(method_line(e.job))}{where}</p>"
        f"<ul style='margin:0'>{recipe}</ul>{_bar(e, groups)}"
        f"{_table(peak, ('group', 'memory', 'share'), rows, right=(1, 2))}"
        f"{_table('Totals', ('number', 'memory', '90 %', 'what it is'), totals, right=(1, 2))}"
        f"{''.join(f'<p>{escape(note)}</p>' for note in interval_notes(e))}"
        f"{''.join(f'<p>&#9888; {escape(w)}</p>' for w in e.warnings)}</div>"
    )


def verdict_html(v: Verdict) -> str:
    """The verdict, and what would help when it is not a plain yes."""
    head = (
        f"<p><b style='background:{VERDICTS[v.status]};color:#000;padding:.1em .4em;border-radius:.2em'>{v.status}</b>"
        f" on {escape(v.gpu.gpu_id)}, {escape(percent(v.probability))}: "
        f"{gib(v.needed_bytes)} needed ({span(*ends(v.needed_interval))}), "
        f"{gib(v.usable_bytes)} {room(v.gpu)}: {escape(v.reason)}</p>"
    )
    if v.status == "fits" or not v.remedies:
        return f"<div>{head}</div>"
    rows = [(escape(r.change), gib(r.saves_bytes), gib(r.needed_bytes), r.status) for r in v.remedies]
    headers = ("change", "saves", "then needs", "verdict")
    return f"<div>{head}{_table('What would help', headers, rows, right=(1, 2))}</div>"


def grid_html(g: Grid) -> str:
    """Peaks crosswise where two sizes differ, else point by point; the largest grids in part."""
    recipe = "".join(f"<li>{escape(line)}</li>" for line in recipe_lines(g.job)[:2])
    n, low, high = g.allocated_bytes.size, int(g.allocated_bytes.min()), int(g.allocated_bytes.max())
    return (
        f"<div><p><b>{escape(g.job.model.name)}</b>: {escape(method_line(g.job))}</p><ul style='margin:0'>{recipe}"
        f"</ul>{_crosswise(g) or _listed(g)}<p>{n:,} points, {gib(low)} to {gib(high)} of live tensors</p></div>"
    )


def accuracy_html(a: Accuracy) -> str:
    """Errors by group, those reported apart, and why rows are not predicted."""
    predicted = sum(group.count for group in a.groups)
    parts = [_errors(f"{predicted:,} of {len(a.predictions):,} rows predicted", a.groups)]
    if a.apart:
        parts.append(_errors("Apart: only the cap on the length is known", a.apart))
    if a.unsupported:
        rows = [(escape(reason), f"{n:,}") for reason, n in a.unsupported.most_common()]
        table = _table("", ("reason", "rows"), rows, right=(1,))
        parts.append(f"<details><summary>unsupported: {sum(a.unsupported.values()):,} rows</summary>{table}</details>")
    note = "covered: rows within the 90 % interval, made without any run of their recipe; width: of that interval"
    return f"<div>{''.join(parts)}<p>{note}</p></div>"


# -- pieces ------------------------------------------------------------------------------------------------------------


def _table(caption: str, headers: Sequence[str], rows: Iterable[Sequence[str]], *, right: Collection[int] = ()) -> str:
    """A table with a head and row headers; cells are HTML."""

    def cell(tag: str, column: int, text: str, scope: str = "") -> str:
        side = "right" if column in right else "left"
        wraps = ";white-space:nowrap" if column else ""
        return f"<{tag}{scope} style='text-align:{side};{_CELL}{wraps}'>{text}</{tag}>"

    row_scope = " scope='row'"
    head = "".join(cell("th", n, text, " scope='col'") for n, text in enumerate(headers))
    body = ""
    for row in rows:
        cells = "".join(cell("td", n, text) for n, text in enumerate(row[1:], 1))
        body += f"<tr>{cell('th', 0, row[0], row_scope)}{cells}</tr>"
    over = f"<caption style='text-align:left;color:inherit'>{caption}</caption>" if caption else ""
    return (
        "<table style='border-collapse:collapse;margin:.6em 0;color:inherit;background:transparent'>"
        f"{over}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _square(group: str) -> str:
    return f"<span aria-hidden='true' style='color:{COLOURS[group]}'>&#9632;</span>"


def _bar(e: Estimate, groups: dict[str, int]) -> str:
    """One stacked bar; the outline is the GPU's memory when one was named."""
    scale = _WIDTH / max(sum(groups.values()), e.gpu.usable_bytes if e.gpu else 0)
    x, parts = 0.0, []
    for group, n in groups.items():
        width = n * scale
        parts.append(
            f"<rect x='{x:.1f}' y='1' width='{width:.1f}' height='{_HEIGHT - 2}' fill='{COLOURS[group]}'>"
            f"<title>{escape(group)}: {gib(n)}</title></rect>"
        )
        x += width
    if e.gpu:
        parts.append(
            f"<rect x='0.5' y='0.5' width='{e.gpu.usable_bytes * scale - 1:.1f}' height='{_HEIGHT - 1}' fill='none' "
            "stroke='currentColor'>"
            f"<title>{escape(e.gpu.gpu_id)}: {gib(e.gpu.usable_bytes)} {room(e.gpu)}</title></rect>"
        )
    words = escape(", ".join(f"{group} {gib(n)}" for group, n in groups.items()), quote=True)
    return (
        f"<svg role='img' aria-label='memory by group: {words}' viewBox='0 0 {_WIDTH} {_HEIGHT}' width='{_WIDTH}' "
        f"style='max-width:100%;margin-top:.6em'>{''.join(parts)}</svg>"
    )


def _crosswise(g: Grid) -> str:
    """A table of two sizes against each other, empty where that is not what the grid is."""
    if len(g.varying) != 2:
        return ""
    down, across = sorted(g.varying, key=("micro_batch_size", "rank", "seq_len").index)
    rows, columns = (sorted(set(getattr(g, name).ravel().tolist())) for name in (down, across))
    points = zip(getattr(g, down).ravel().tolist(), getattr(g, across).ravel().tolist(), strict=True)
    peaks = dict(zip(points, g.allocated_bytes.ravel().tolist(), strict=True))
    if max(len(rows), len(columns)) > _MOST:
        return ""
    body = [[f"{r:,}", *(gib(peaks[r, c]) if (r, c) in peaks else "" for c in columns)] for r in rows]
    headers = [f"{down} \\ {across}", *(f"{c:,}" for c in columns)]
    return _table("Peak of live tensors", headers, body, right=range(len(headers)))


def _listed(g: Grid) -> str:
    names = [n for n in ("micro_batch_size", "seq_len", "rank") if getattr(g, n) is not None]
    columns = [getattr(g, n).ravel()[:_MOST].tolist() for n in names]
    peaks = g.allocated_bytes.ravel()[:_MOST].tolist()
    rows = [
        [*(f"{v:,}" for v in sizes), gib(peak), escape(instant)]
        for sizes, peak, instant in zip(zip(*columns, strict=True), peaks, g.instant.ravel().tolist(), strict=False)
    ]
    more = g.allocated_bytes.size - len(rows)
    table = _table("", [*names, "peak", "at"], rows, right=range(len(names) + 1))
    return table + (f"<p>and {more:,} more points</p>" if more else "")


def _errors(caption: str, groups: Iterable[Group]) -> str:
    rows = [
        [
            escape(f"{g.stack}, {g.method}, {g.metric}"),
            f"{g.count:,}",
            *(f"{100 * n:.2f} %" for n in (g.mape, g.median)),
            *(f"{100 * n:+.2f} %" for n in (g.bias, g.worst)),
            f"{100 * g.covered:.0f} %",
            f"{100 * g.width:.1f} %",
        ]
        for g in groups
    ]
    headers = ("what", "rows", "MAPE", "median", "bias", "worst", "covered", "width")
    return _table(caption, headers, rows, right=range(1, 8))
