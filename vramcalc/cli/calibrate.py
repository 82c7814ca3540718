"""The command about calibration: ``calibrate``."""

from pathlib import Path
from typing import Annotated

import typer

from vramcalc.cli.common import Json
from vramcalc.cli.terminal import print_json, print_text


def calibrate(
    profiles: Annotated[
        Path | None,
        typer.Argument(help="Profile rows, a file or a folder; by default those of the user's data folder."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would change.")] = False,
    show: Annotated[bool, typer.Option("--show", help="Only say what the calibration in force holds.")] = False,
    left_out: Annotated[
        bool,
        typer.Option("--left-out", help="Only check intervals without a recipe, family, model, GPU or source."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Refine the intervals with runs measured on your own GPU.

    The new calibration comes before the shipped one where it does no worse on runs that it has not seen.
    """
    if show or left_out:
        _shown(left_out, as_json)
        return
    from vramcalc.accuracy.intervals.own_calibration import keep, own_profiles, refit
    from vramcalc.show.text.calibration import refit_text

    found = refit(own_profiles(profiles))
    if not dry_run:
        found = keep(found)
    if as_json:
        print_json(
            {
                "score_before": found.score_before,
                "score_after": found.score_after,
                "coverage_before": [vars(c) for c in found.coverage_before],
                "coverage_after": [vars(c) for c in found.coverage_after],
                "recipes": len(found.own),
                "path": str(found.path) if found.path else None,
                "previous": str(found.previous) if found.previous else None,
            }
        )
    else:
        print_text(refit_text(found))


def _shown(left_out: bool, as_json: bool) -> None:
    from vramcalc.accuracy.intervals.held_out import LEFT_OUT, coverage, held_out
    from vramcalc.memory.calibration.conformal import LEVEL
    from vramcalc.memory.calibration.file import current
    from vramcalc.show.text.calibration import calibration_text, coverage_text

    found = current()
    if not left_out:
        plain = {"note": found.note, "contexts": {n: vars(t) for n, t in found.contexts.items()}}
        tried = [{**vars(t), "kept": t.kept} for t in found.tried]
        print_json({**plain, "tried": tried}) if as_json else print_text(calibration_text(found))
        return
    checked = [c for what in LEFT_OUT for c in coverage(held_out(found.recipes, what), what)]
    print_json([vars(c) for c in checked]) if as_json else print_text(coverage_text(checked, LEVEL))
