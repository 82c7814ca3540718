"""When releases of transformers came out, and which of them a run of unknown release may have used."""

from __future__ import annotations

import datetime

from vramcalc import tables
from vramcalc.inputs.releases import Minor, checked_releases, minor_release, release_of

UNKNOWN = "unknown"
"""A release of which not even the date of the run is known."""
WINDOW = datetime.timedelta(days=183)
"""How long before a run the release it used came out, at most.

Of the published runs in ``tables/measurements.csv`` whose date and release are known, the oldest release was out for
116 days, and two in three used the newest there was.
"""


def released() -> dict[Minor, datetime.date]:
    """Dates on which minor releases came out, the oldest first."""
    rows = tables.read("transformers_releases")
    found = {minor_release(row["release"]): datetime.date.fromisoformat(row["released_on"]) for row in rows}
    return {minor: date for minor, date in found.items() if minor}


def out_by(when: str) -> list[Minor]:
    """Minor releases that a run may have used, modelled or not, the newest and so the likeliest first.

    Args:
        when: date of the run as YYYY-MM-DD, or ``unknown``.

    Raises:
        ValueError: neither.
    """
    if when == UNKNOWN:
        return [minor for minor in reversed(released()) if release_of(minor)]
    day = datetime.date.fromisoformat(when)
    return [minor for minor, date in reversed(released().items()) if day - WINDOW < date <= day]


def candidates(when: str) -> list[str]:
    """Those of :func:`out_by` that are modelled, such as ``4.41``."""
    return [".".join(map(str, minor)) for minor in out_by(when) if release_of(minor)]


def not_modelled(when: str) -> list[str]:
    """Those of :func:`out_by` that are not."""
    return [".".join(map(str, minor)) for minor in out_by(when) if not release_of(minor)]


def unknown_since(transformers: str) -> str | None:
    """What is known of a release that is not: the date of the run, or ``unknown``. None where the release is known."""
    return transformers.partition("@")[2] or None


def resolved(value: str) -> str:
    """A release that is not known, as the likeliest and what is known of it: ``4.41@2024-06-07``, ``5.23@unknown``.

    Args:
        value: such text, or a date as YYYY-MM-DD, or ``unknown``.

    Raises:
        ValueError: none of these, or none that is modelled was out.
    """
    version, _, when = value.rpartition("@")
    try:
        found = candidates(when)
    except ValueError:
        raise ValueError(f"{checked_releases()}, 'unknown', or the date of the run as YYYY-MM-DD") from None
    if not found:
        raise ValueError(f"a date by which a modelled release was out: {checked_releases()}")
    if version and version not in found:
        raise ValueError(f"a release that a run of {when} may have used: one of {', '.join(found)}")
    return f"{version or found[0]}@{when}"
