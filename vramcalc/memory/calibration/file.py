"""The calibration as a file: the shipped ``tables/calibration.json``, and a user's own, which comes before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from vramcalc import tables
from vramcalc.errors import DataError, shown
from vramcalc.files.folders import data_folder
from vramcalc.files.reading import read_text
from vramcalc.memory.calibration.calibration import Calibration, ContextTerm, MeasuredRecipe, Tried
from vramcalc.memory.calibration.similarity import Likeness

SCHEMA, VERSION = "vramcalc-calibration", 2
_FIGURES = 6
"""Decimals of errors that are kept: a megabyte of a terabyte."""
_LARGEST = 1 << 63
"""No number of a calibration reaches it."""
_TEXTS, _COUNTS = {"*": str}, {"*": int}
_TERM = {"n_bytes": int, "low_bytes": int, "high_bytes": int, "runs": int, "recipes": int, "sources": [str]}
_RECIPE = {
    "recipe_id": str, "model": str, "gpu": str, "architecture": str, "sources": [str], "regime": [str],
    "traits": _TEXTS, "sizes": _COUNTS, "errors": {"*": [float]}, "predicted_bytes": _COUNTS, "process_bytes": [int],
    "context_bytes": [int],
}  # fmt: skip
_TRIED = {"name": str, "pool": str, "size": float, "unit": str, "without": float, "with_it": float}
_SHAPE: dict[str, Any] = {
    "schema": str, "version": int, "made_from": str, "contexts": {"*": _TERM},
    "tried": [_TRIED], "stretch": {"*": float}, "recipes": [_RECIPE],
}  # fmt: skip
_WORDS = {str: "text", int: "a whole number, at least 0", float: "a finite number", list: "a list", dict: "an object"}


class _Wrong(Exception):
    """A field that is not what it has to be: the way to it, what it holds, what it should."""


def shipped_path() -> Path:
    """The calibration that comes with the package."""
    return tables.directory() / "calibration.json"


def own_path() -> Path:
    """Where ``vramcalc calibrate`` puts a user's own."""
    return data_folder() / "calibration.json"


def current() -> Calibration:
    """The user's own calibration where there is a good one, else the shipped one, whose note says why.

    Raises:
        DataError: the shipped file is missing or broken.
    """
    path = own_path()
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        return shipped()
    return _own(path, changed)


@lru_cache(maxsize=4)
def _own(path: Path, changed: int) -> Calibration:
    try:
        found, made_from = read(path)
    except DataError as err:
        return replace(shipped(), note=f"{err}; the shipped calibration stays in force", _made={})
    stale = "" if made_from == digest() else ", made with another release's: 'vramcalc calibrate' makes it anew"
    return replace(found, note=f"calibration from {path}, not the shipped one{stale}", _made={})


@cache
def shipped() -> Calibration:
    """The calibration that comes with the package.

    Raises:
        DataError: the file is missing or broken.
    """
    return read(shipped_path(), "reinstall the package")[0]


@cache
def digest() -> str:
    """Of the shipped file."""
    return hashlib.sha256(shipped_path().read_bytes()).hexdigest()[:16]


def read(path: Path, remedy: str = "run 'vramcalc calibrate', or remove the file") -> tuple[Calibration, str]:
    """A calibration, and the digest of the shipped one that it was made from.

    Raises:
        DataError: no such file, no JSON, of another version, or a field is wrong; line and field are named.
    """
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as err:
        raise DataError(f"{path} cannot be read: {err}; {remedy}") from err
    return parse(text, str(path), remedy)


def parse(text: str, where: str, remedy: str = "") -> tuple[Calibration, str]:
    """As :func:`read`, of text."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as err:
        line = getattr(err, "lineno", 1)
        raise DataError(f"{where}, line {line}: no JSON ({err}); {remedy}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        given = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise DataError(f"{where}, line 1: schema = {shown(given)}: expected {SCHEMA!r}; {remedy}")
    version = data.get("version")
    if isinstance(version, int) and version > VERSION:
        raise DataError(
            f"{where}, line 1: version = {shown(version)}: this vramcalc reads up to {VERSION}; update vramcalc"
        )
    if isinstance(version, int) and version < VERSION:
        raise DataError(
            f"{where}, line 1: version = {shown(version)}: this vramcalc reads {VERSION}; make the file again with "
            "'vramcalc calibrate'"
        )
    try:
        _check(data, _SHAPE, ())
        return _made(data), data["made_from"]
    except _Wrong as err:
        way, given, expected = err.args
        field = ".".join(map(str, way))
        raise DataError(
            f"{where}, line {_line(text, way)}: {field} = {str(given)[:60]!r}: expected {expected}; {remedy}"
        ) from None


def _check(value: Any, shape: Any, way: tuple[str | int, ...]) -> None:
    kind = shape if isinstance(shape, type) else type(shape)
    good = isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool)
    if good and kind in (int, float):
        good = -_LARGEST < value < _LARGEST and (kind is float or value >= 0)
    if not good:
        raise _Wrong(way, value, _WORDS[kind])
    if isinstance(shape, list):
        for n, item in enumerate(value):
            _check(item, shape[0], (*way, n))
    elif isinstance(shape, dict):
        names = value.keys() if "*" in shape else shape.keys() | value.keys()
        for name in names:
            of = shape.get("*", shape.get(name))
            if of is None or name not in value:
                raise _Wrong((*way, name), value.get(name, "nothing"), "no such field" if of is None else "a value")
            _check(value[name], of, (*way, name))


def _line(text: str, way: tuple[str | int, ...]) -> int:
    """The line of a field: one recipe to a line, one field of the rest."""
    lines = text.splitlines()
    top = next((n for n, line in enumerate(lines, 1) if way and line.startswith(f'"{way[0]}":')), 1)
    if len(way) > 1 and isinstance(way[1], int):
        return min(top + 1 + way[1], len(lines))
    named = [f'"{part}":' for part in way[1:] if isinstance(part, str)]
    return next((n for n, line in enumerate(lines, 1) if n >= top and named and named[0] in line), top)


def _made(data: Mapping[str, Any]) -> Calibration:
    for n, row in enumerate(data["recipes"]):
        if len(row["regime"]) != 2:
            raise _Wrong(("recipes", n, "regime"), row["regime"], "method and attention")
        missing = {"params", "seq_len", "tokens"} - row["sizes"].keys()
        if missing or any(not e for e in row["errors"].values()):
            raise _Wrong(("recipes", n, "sizes" if missing else "errors"), row["sizes"], "params, seq_len and tokens")
    for name, term in data["contexts"].items():
        if not term["low_bytes"] <= term["n_bytes"] <= term["high_bytes"]:
            raise _Wrong(("contexts", name, "n_bytes"), term["n_bytes"], "a size between its bounds")
    return Calibration(
        recipes=tuple(map(_recipe, data["recipes"])),
        contexts={n: ContextTerm(**{**t, "sources": tuple(t["sources"])}) for n, t in data["contexts"].items()},
        tried=tuple(Tried(**t) for t in data["tried"]),
        stretch=dict(data["stretch"]),
    )


def _recipe(row: Mapping[str, Any]) -> MeasuredRecipe:
    plain = {n: v for n, v in row.items() if n not in ("regime", "traits", "sizes")}
    method, attention = row["regime"]
    tuples = {n: tuple(v) for n, v in plain.items() if isinstance(v, list)}
    errors = {pool: tuple(found) for pool, found in row["errors"].items()}
    like = Likeness((method, attention), row["traits"], row["sizes"])
    return MeasuredRecipe(**{**plain, **tuples, "errors": errors, "like": like})


def to_json(c: Calibration, made_from: str = "") -> str:
    """As the file holds it: a recipe to a line, errors rounded."""
    head = {
        "schema": SCHEMA,
        "version": VERSION,
        "made_from": made_from,
        "contexts": {name: asdict(term) for name, term in c.contexts.items()},
    }
    head["stretch"] = {name: round(factor, _FIGURES) for name, factor in c.stretch.items()}
    lines = [f'"{name}": {json.dumps(value)}' for name, value in head.items() if name not in ("contexts",)]
    contexts = ",\n".join(f' "{n}": {json.dumps(t)}' for n, t in head["contexts"].items())  # type: ignore[attr-defined]
    tried = ",\n".join(f" {json.dumps(_rounded(asdict(t)))}" for t in c.tried)
    recipes = ",\n".join(f" {json.dumps(_row(r))}" for r in c.recipes)
    lines += [f'"contexts": {{\n{contexts}\n}}', f'"tried": [\n{tried}\n]', f'"recipes": [\n{recipes}\n]']
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _rounded(plain: dict[str, Any]) -> dict[str, Any]:
    return {n: round(v, _FIGURES) if isinstance(v, float) else v for n, v in plain.items()}


def _row(r: MeasuredRecipe) -> dict[str, Any]:
    like = r.like
    return {
        **{n: getattr(r, n) for n in ("recipe_id", "model", "gpu", "architecture", "sources")},
        "regime": like.regime,
        "traits": like.traits,
        "sizes": like.sizes,
        "errors": {pool: [round(e, _FIGURES) for e in found] for pool, found in r.errors.items()},
        **{n: getattr(r, n) for n in ("predicted_bytes", "process_bytes", "context_bytes")},
    }
