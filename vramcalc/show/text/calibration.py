"""Calibrations as plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vramcalc.accuracy.intervals.held_out import Coverage
from vramcalc.accuracy.intervals.own_calibration import Refit
from vramcalc.memory.calibration.calibration import Calibration, Tried
from vramcalc.show.plaintext import table
from vramcalc.units import MIB

_HEADERS = ("left out", "quantity", "method", "attention", "figures", "recipes", "covered", "width", "5 % under")


def calibration_text(found: Calibration) -> str:
    """What a calibration holds: contexts, terms that were tried, runs."""
    figures = sum(len(e) for r in found.recipes for e in r.errors.values()) + sum(
        len(r.process_bytes) for r in found.recipes
    )
    sources = sorted({s for r in found.recipes for s in r.sources})
    head = f"{figures:,} figures of {len(found.recipes)} recipes from {', '.join(sources)}"
    return "\n\n".join([head, _contexts(found), _tried(found.tried), *([found.note] if found.note else [])])


def _contexts(found: Calibration) -> str:
    rows = [
        (
            *(name, f"{t.n_bytes / MIB:,.1f} MiB", f"{t.low_bytes / MIB:,.1f}, {t.high_bytes / MIB:,.1f}"),
            *(t.runs, t.recipes, ", ".join(t.sources)),
        )
        for name, t in found.contexts.items()
    ]
    body = table(rows, ("GPU generation", "CUDA context", "from, to", "runs", "recipes", "sources"), right=(1, 2, 3, 4))
    rest = "  that of other generations is assumed, see tables/runtime.csv"
    return f"Calibrated\n{body if rows else '  no context'}\n{rest}"


def _tried(found: Sequence[Tried]) -> str:
    rows = [
        (
            *(t.name, t.pool, f"{t.size:,.1f} MiB" if t.unit == "MiB" else f"{100 * t.size:.2f} %"),
            *(f"{100 * t.without:.3f} %", f"{100 * t.with_it:.3f} %", "helps" if t.kept else "does not help: left out"),
        )
        for t in found
    ]
    headers = ("term", "added to", "size", "error without", "with", "")
    return "Terms tried: mean errors on what their fits had not seen\n" + table(rows, headers, right=(2, 3, 4), wrap=34)


def coverage_text(found: Sequence[Coverage], level: float) -> str:
    """Coverage and width of intervals on what they have not seen."""
    rows = [
        (
            *(c.left_out, c.quantity, c.method, c.attention, f"{c.figures:,}", c.recipes),
            *(f"{100 * c.covered:.0f} %", f"{100 * c.width:.1f} %", f"{100 * c.under:.0f} %"),
        )
        for c in found
    ]
    note = (
        f"  covered: figures within the {100 * level:.0f} % interval, every recipe counting alike\n"
        "  width: from end to end, as a share of the prediction\n"
        "  5 % under: figures more than 5 % above what is predicted\n"
        "  family: a source of runs with one method, loss, kind of kernels and release of transformers"
    )
    return f"{table(rows, _HEADERS, right=(4, 5, 6, 7, 8))}\n{note}"


def refit_text(found: Refit) -> str:
    """What a new calibration changes."""
    names = ("contexts", "recipes")
    rows = [
        (names[0], ", ".join(found.before.contexts) or "none", ", ".join(found.after.contexts) or "none"),
        (names[1], len(found.before.recipes), len(found.after.recipes)),
        ("interval score, lower is better", f"{found.score_before:.4f}", f"{found.score_after:.4f}"),
    ]
    before = {c.quantity: c for c in found.coverage_before}
    rows += [(f"{c.quantity}: covered, width", _both(before.get(c.quantity)), _both(c)) for c in found.coverage_after]
    for name in sorted(found.after.contexts):
        was, now = (x.contexts.get(name) for x in (found.before, found.after))
        if now is not None and was != now:
            size = f"{was.n_bytes / MIB:,.1f} MiB" if was else "assumed"
            rows.append((f"CUDA context on {name}", size, f"{now.n_bytes / MIB:,.1f} MiB"))
    worst = [
        (h.recipe.model, h.recipe.like.regime[0], h.recipe.gpu, h.quantity, f"{100 * math.expm1(-h.error):+.1f} %",
         "inside" if h.covered else "outside")
        for h in found.worst
    ]  # fmt: skip
    parts = [
        table(rows, ("held out", "before", "after"), right=(1, 2)),
        "Your rows furthest off\n"
        + table(worst, ("model", "method", "GPU", "quantity", "error", "interval"), right=(4,)),
    ]
    if found.path is not None:
        kept = f"; the one before is {found.previous}" if found.previous else ""
        parts.append(f"written to {found.path}, which now comes before the shipped calibration{kept}")
    return "\n\n".join(parts)


def _both(c: Coverage | None) -> str:
    return f"{100 * c.covered:.0f} %, {100 * c.width:.1f} %" if c else ""
