"""A user's own calibration: the shipped recipes and the user's own runs, kept only where they help."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vramcalc.accuracy.intervals.fitted_calibration import fit_calibration, merged, profiled
from vramcalc.accuracy.intervals.held_out import Coverage, Held, coverage, held, score
from vramcalc.errors import DataError
from vramcalc.files.folders import data_folder
from vramcalc.files.reading import read_bytes
from vramcalc.files.writing import write_whole
from vramcalc.memory.calibration.calibration import Calibration, MeasuredRecipe
from vramcalc.memory.calibration.file import current, digest, own_path, read, shipped, to_json
from vramcalc.profiling.rows import ProfileRow, read_profiles

_NOISE = 0.02
"""Share by which the score moves as one recipe more or less is left out; a fit that is worse by more is refused."""


@dataclass(frozen=True)
class Refit:
    """A new calibration beside the one in force.

    Attributes:
        before: in force.
        after: with the user's runs.
        own: recipes of those runs.
        score_before: mean interval score of the old one on what it has not seen.
        score_after: the same of the new one; it is kept where this is not clearly larger.
        coverage_before: of the old one, by quantity.
        coverage_after: of the new one.
        worst: figures of the user's runs that are furthest from what was predicted.
        path: where it was written, None where it was not.
        previous: where the one before was put, None where there was none.
    """

    before: Calibration
    after: Calibration
    own: tuple[MeasuredRecipe, ...]
    score_before: float
    score_after: float
    coverage_before: tuple[Coverage, ...]
    coverage_after: tuple[Coverage, ...]
    worst: tuple[Held, ...]
    path: Path | None = None
    previous: Path | None = None

    @property
    def helps(self) -> bool:
        """Whether the new one does at least as well on what it has not seen."""
        return self.score_after <= self.score_before * (1 + _NOISE)


def own_profiles(path: Path | None = None) -> list[ProfileRow]:
    """Rows of a file or a folder, by default of the user's data folder.

    Raises:
        DataError: there are none, or a row is broken: which file, line and field.
    """
    place = path or data_folder() / "profiles"
    files = sorted(place.glob("*.jsonl")) if os.path.isdir(place) else [place]
    rows = [row for file in files for row in read_profiles(file)] if files and (path or os.path.isdir(place)) else []
    if not rows:
        raise DataError(f"{place}: no profile rows; 'vramcalc profile' and 'vramcalc campaign' write them")
    return rows


def refit(rows: Iterable[ProfileRow]) -> Refit:
    """Fit to the shipped recipes and to profiles, and judge old and new on what neither has seen."""
    own = profiled(rows)
    if not own:
        raise DataError("no profile row says how much memory a run on a GPU took; measure one with 'vramcalc profile'")
    base = shipped()
    names = {r.recipe_id for r in own}
    recipes = merged(base.recipes, own)
    before = current()
    after = fit_calibration(recipes)
    old, new = ([h for r in recipes for h in held(r, c.without_recipe(r.recipe_id))] for c in (before, after))
    mine = [h for h in new if h.recipe.recipe_id in names]
    worst = sorted(mine, key=lambda h: -abs(h.error))[:5]
    return Refit(
        *(before, after, tuple(own), score(old), score(new)),
        *(_overall(old), _overall(new), tuple(worst)),
    )


def _overall(found: Sequence[Held]) -> tuple[Coverage, ...]:
    return tuple(c for c in coverage(found, "recipe") if c.method == "all")


def keep(found: Refit, path: Path | None = None) -> Refit:
    """Write a calibration that helps, whole or not at all; the one before is kept beside it.

    Raises:
        DataError: it does worse on what it has not seen; nothing is written.
        OutputError: the file cannot be written.
    """
    if not found.helps:
        raise DataError(
            f"the new calibration does worse on runs it has not seen (interval score {found.score_after:.4f}, before "
            f"{found.score_before:.4f}); nothing was written. Look at the worst rows with --dry-run, and take out "
            "those that measured something else"
        )
    place = path or own_path()
    previous = None
    with contextlib.suppress(OSError):  # no file, or none that can be read: there is nothing to keep
        before = read_bytes(place).decode("utf-8", errors="replace")
        write_whole(place.with_name(f"{place.name}.previous"), before)
        previous = place.with_name(f"{place.name}.previous")
    write_whole(place, to_json(found.after, digest()), check=read)
    return replace(found, path=place, previous=previous)
