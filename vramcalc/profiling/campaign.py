"""Lists of jobs to measure, read from YAML: each entry one job, or the product of the values it lists.

A file has ``jobs``, and may have ``name`` and ``defaults``. An entry has ``model``, and may have ``method``,
``layers``, ``device``, ``find_smallest``, ``live_blocks``, ``expected_s``, ``product`` and any setting of
:func:`vramcalc.estimate`; ``product`` maps names of settings to lists of values, and every combination is a job.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from vramcalc import tables
from vramcalc.errors import DataError, UnknownName, VramcalcError, shown
from vramcalc.files.reading import read_text
from vramcalc.inputs.job import Job
from vramcalc.memory.estimate import make_job
from vramcalc.profiling.in_a_process import Place
from vramcalc.profiling.rows import RunSettings

_TOP = ("name", "defaults", "jobs")
_OWN = ("model", "method", "layers", "device", "find_smallest", "live_blocks", "expected_s")
EXPECTED_S = 60.0
"""Taken for a job of a file that does not say how long it may take. [s]"""
MOST_JOBS = 10_000
_MOST_BYTES = 1 << 20


@dataclass(frozen=True)
class Planned:
    """One job of a campaign.

    Attributes:
        recipe: what to measure.
        expected_s: how long the file says that it takes. [s]
        where: in the file.
    """

    recipe: RunSettings
    expected_s: float
    where: str


@dataclass(frozen=True)
class Campaign:
    """Jobs in the order they are to be measured.

    Attributes:
        name: what the file is called, or calls itself.
        jobs: no two with the same recipe.
        repeated: how many entries were left out for being there already.
    """

    name: str
    jobs: tuple[Planned, ...]
    repeated: int


def find(name: str) -> Path:
    """A campaign's file: a path, or the name of one that comes with the package.

    Returns:
        What is there, be it a file or not: :func:`read_campaign` looks at it.

    Raises:
        UnknownName: there is none.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path):
        return path
    shipped = {p.stem: p for p in sorted((tables.directory() / "campaigns").glob("*.yaml"))}
    if name not in shipped:
        if os.path.exists(path):
            return path
        raise UnknownName("campaign", name, shipped, f"give a YAML file, or one of {', '.join(shipped)}")
    return shipped[name]


def read_campaign(path: Path, *, device: str = "cuda", where: Place | None = None) -> Campaign:
    """Jobs of a file; every one is checked before any runs.

    Args:
        path: of a YAML file.
        device: for entries that name none.
        where: whose GPU generation decides which recipes can run.

    Raises:
        DataError: no such file, no YAML, or an entry that is no job: where, what was given, what to do.
    """
    plain = _loaded(path)
    _known(plain, _TOP, path, "a campaign")
    defaults, entries = plain.get("defaults") or {}, plain.get("jobs")
    if not isinstance(entries, list) or not entries:
        raise DataError(f"{path}: jobs = {shown(entries)}: expected a list of jobs, each with a model; see hopper.yaml")
    _mapping(defaults, path, "defaults")
    name = plain.get("name", path.stem)
    if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
        raise DataError(
            f"{path}: name = {shown(name)}: expected letters, digits, '-' and '_'; it names the file of rows"
        )
    jobs: dict[str, Planned] = {}
    n = 0
    for planned in _planned(entries, {"device": device, **defaults}, path, where):
        n += 1
        if n > MOST_JOBS:
            raise DataError(f"{path}: more than {MOST_JOBS:,} jobs; expected fewer, split the file")
        jobs.setdefault(planned.recipe.job_id, planned)
    return Campaign(name, tuple(jobs.values()), n - len(jobs))


def recipe_of(job: Job, **how: Any) -> RunSettings:
    """How to measure a job."""
    return RunSettings(model=job.model, method=job.method, training=job.training, stack=job.stack, **how)


def planned_job(settings: Mapping[str, Any], where: Place | None = None, *, place_in_file: str = "") -> Planned:
    """One job from its settings: those of :func:`vramcalc.estimate`, and those of an entry.

    Raises:
        VramcalcError: a setting that does not exist or has no such value.
    """
    given = dict(settings)
    own: dict[str, Any] = {name: given.pop(name) for name in _OWN if name in given}
    if "model" not in own:
        raise DataError("model: expected a value, and none was given; name one, as in 'vramcalc models'")
    expected_s = _number(own.get("expected_s", EXPECTED_S), "expected_s")
    job, _ = make_job(own["model"], own.get("method", "lora"), gpu=where.gpu if where else None, **given)
    model = job.model
    if own.get("layers") is not None:
        model = model.replace(num_hidden_layers=own["layers"])
    job = Job(model, job.method, job.training, job.stack, job.compute_capability)
    how: dict[str, Any] = {name: own[name] for name in ("device", "find_smallest", "live_blocks") if name in own}
    return Planned(_checked(job, how), expected_s, place_in_file)


def _checked(job: Job, how: dict[str, Any]) -> RunSettings:
    from pydantic import ValidationError

    try:
        return recipe_of(job, **how)
    except ValidationError as err:
        first = err.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise DataError(f"{name} = {shown(first['input'])}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _planned(entries: list[Any], defaults: dict[str, Any], path: Path, where: Place | None) -> Iterator[Planned]:
    for number, entry in enumerate(entries, start=1):
        at = f"job {number}"
        _mapping(entry, path, at)
        usual = {n: v for n, v in defaults.items() if n != "seq_len" or "seq_lens" not in entry}
        for settings in _combinations({**usual, **entry}, path, at):
            try:
                yield planned_job(settings, where, place_in_file=at)
            except VramcalcError as err:
                raise DataError(f"{path}, {at}: {err}") from err


def _combinations(entry: dict[str, Any], path: Path, at: str) -> Iterator[dict[str, Any]]:
    """Settings of every job of an entry, the last name of its product changing fastest."""
    listed = entry.pop("product", {})
    _mapping(listed, path, f"{at}, product")
    for name, values in listed.items():
        if not isinstance(values, list) or not values:
            raise DataError(
                f"{path}, {at}, product: {name} = {shown(values)}: expected a list of values; write [{shown(values)}]"
            )
    for chosen in product(*listed.values()):
        yield {**entry, **dict(zip(listed, chosen, strict=True))}


def _loaded(path: Path) -> dict[str, Any]:
    import yaml

    from vramcalc.profiling.campaign_yaml import load

    try:
        plain = load(read_text(path, _MOST_BYTES))
    except (OSError, UnicodeDecodeError) as err:
        why = getattr(err, "strerror", None) or err
        raise DataError(f"{path} cannot be read: {why}; give a YAML file like tables/campaigns/hopper.yaml") from err
    except (yaml.YAMLError, ValueError) as err:
        raise DataError(f"{path} is no YAML: {' '.join(str(err).split())[:300]}; correct it") from err
    except RecursionError as err:
        raise DataError(f"{path} is no YAML that can be read: nested too deeply; correct it") from err
    _mapping(plain, path, "the file")
    found: dict[str, Any] = plain
    return found


def _mapping(value: object, path: Path, at: str) -> None:
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise DataError(f"{path}, {at}: expected names with values, such as 'seq_len: 2048', not {shown(value)}")


def _known(given: dict[str, Any], names: tuple[str, ...], path: Path, what: str) -> None:
    for name in given:
        if name not in names:
            raise DataError(f"{path}: {UnknownName(f'key of {what}', name, names)}; it has {', '.join(names)}")


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e6:
        raise DataError(f"{name} = {shown(value)}: expected seconds, more than 0; write a number such as 60")
    return float(value)
