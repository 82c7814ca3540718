"""New prices from gpuhunt's public catalogs into the user's own table. Needs the extra ``prices``.

Whole or not at all: an outage, a provider without offers, or far fewer offers than before is an error, and the table
that was there stays. Time and bytes are bounded, which gpuhunt's own loader leaves open. Offers of providers that it
does not publish are carried over with their own dates.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vramcalc import tables
from vramcalc.errors import MissingExtra, PriceError, UnknownName
from vramcalc.files.writing import write_whole
from vramcalc.planning import prices
from vramcalc.planning.fetching import Deadline, rows_within, unpacked
from vramcalc.planning.prices import Offer, Prices

_KEPT = "the old prices stay"
_NAMES = {"lambdalabs": "lambda"}
"""Providers that the shipped table spells in another way."""
_LEAST_SHARE = 0.5
"""Of a provider's offers before: with fewer of them the new catalog counts as half."""
_LIMIT_S = 120.0
"""For all catalogs together."""
_MOST_OF_A_VERSION, _MOST_PACKED, _MOST_UNPACKED = 1 << 10, 16 << 20, 64 << 20
"""Bytes of a version, of a catalog as it is fetched, and of its rows; the largest have a tenth of that."""


@dataclass(frozen=True)
class Refreshed:
    """What a refresh brought.

    Attributes:
        prices: the new table.
        fetched: offers by provider.
        carried_over: offers of other providers, kept from the table before.
        left_out: offers by GPU that stand for no board of ``tables/gpus.csv``, or for more than one.
    """

    prices: Prices
    fetched: dict[str, int]
    carried_over: int
    left_out: Counter[str]


def refresh(
    today: datetime.date, *, path: Path | None = None, without: Collection[str] = (), limit_s: float = _LIMIT_S
) -> Refreshed:
    """Fetch the catalogs and put them in the place of the user's table.

    Args:
        today: date the offers are checked on; their prices carry the date of their catalog.
        path: of the table, None for the one in the user's cache.
        without: providers to go ahead without; their offers are carried over.
        limit_s: how long fetching may take, all catalogs together. [s]

    Raises:
        MissingExtra: gpuhunt is not installed.
        PriceError: no catalog, or not all of them whole; the old prices stay.
        UnknownName: no such provider to go without.
        OutputError: the table cannot be written.
    """
    path = path or prices.refreshed_path()
    before = prices.read(path if path.exists() else prices.shipped_path())
    catalogs = _fetch(without, limit_s)
    left_out: Counter[str] = Counter()
    found = {name: tuple(_offers(name, *versioned, today, left_out)) for name, versioned in catalogs.items()}
    _compare(found, before)
    kept = tuple(o for o in before if o.provider not in found)
    offers = tuple(o for mine in found.values() for o in mine) + kept
    write_whole(path, prices.as_csv(offers), check=prices.read)
    fetched = {name: len(mine) for name, mine in found.items()}
    return Refreshed(Prices(prices.read(path), path, refreshed=True), fetched, len(kept), left_out)


def _fetch(without: Collection[str], limit_s: float) -> dict[str, tuple[str, list[Any]]]:
    """Version and items of every provider's catalog, by our name of the provider."""
    try:
        import gpuhunt  # noqa: F401 - the library itself decides whether it is there
        from gpuhunt._internal.catalog import CATALOG_URL, OFFLINE_PROVIDERS
    except ImportError as err:
        raise MissingExtra("prices", "refreshing prices reads gpuhunt's catalogs", ["gpuhunt"]) from err
    ours = {theirs: _NAMES.get(theirs, theirs) for theirs in OFFLINE_PROVIDERS}
    for name in without:
        if name not in ours.values():
            raise UnknownName("provider", name, ours.values(), f"gpuhunt publishes {', '.join(ours.values())}")
    wanted = {ours[t]: t for t in OFFLINE_PROVIDERS if ours[t] not in without}
    base = os.getenv("GPUHUNT_CATALOG_URL", CATALOG_URL).rstrip("/")
    failed: dict[str, str] = {}
    found: dict[str, tuple[str, list[Any]]] = {}
    with _quiet("gpuhunt"), Deadline(limit_s) as deadline, ThreadPoolExecutor(len(wanted) or 1) as pool:
        asked = {name: pool.submit(_catalog, deadline, f"{base}/{theirs}", theirs) for name, theirs in wanted.items()}
        for name, answer in asked.items():
            try:
                found[name] = answer.result()
            except Exception as err:  # whatever a broken catalog makes of gpuhunt's reader
                failed[name] = str(err) or type(err).__name__
    if not failed:
        return found
    why = "; ".join(dict.fromkeys(failed.values()))[:300]
    if not found:
        raise PriceError(f"no catalog can be fetched ({why}): {_KEPT}; try again later")
    raise PriceError(
        f"no catalog of {', '.join(failed)} ({why}): {_KEPT}; try again later, or go ahead with "
        f"{' '.join(f'--without {name}' for name in failed)}"
    )


def _catalog(deadline: Deadline, url: str, provider: str) -> tuple[str, list[Any]]:
    """Version and items of one provider's catalog, as gpuhunt reads them."""
    from gpuhunt._internal import storage

    version = deadline.get(f"{url}/version", _MOST_OF_A_VERSION).decode("utf-8").strip()
    packed = deadline.get(f"{url}/{quote(version)}/catalog.zip", _MOST_PACKED)
    text = io.StringIO(unpacked(packed, f"{provider}.csv", _MOST_UNPACKED), newline="")
    return version, rows_within(storage.load(text, provider=provider), deadline)


def _offers(name: str, version: str, items: list[Any], today: datetime.date, left_out: Counter[str]) -> Iterator[Offer]:
    """The cheapest of equal offers, for GPUs that are known."""
    as_of = _date_of(name, version, today)
    best: dict[tuple[object, ...], Offer] = {}
    for item in items:
        if not item.gpu_count or not item.gpu_name or not item.price > 0:
            continue
        gpu_id = gpu_id_of(name, item.gpu_name, item.gpu_memory, item.instance_name)
        if gpu_id is None:
            left_out[f"{item.gpu_name} {item.gpu_memory or 0:g} GB"] += 1
            continue
        offer = Offer(
            provider=name,
            region=item.location.strip(),
            gpu_id=gpu_id,
            gpu_count=item.gpu_count,
            instance=item.instance_name.strip(),
            tier="spot" if item.spot else "on_demand",
            price_usd_hour=item.price,
            as_of=as_of,
            kind="gpuhunt",
            source=f"gpuhunt catalog v3/{name}/{version}",
            checked_on=today,
            note="",
        )
        if offer.key not in best or offer.price_usd_hour < best[offer.key].price_usd_hour:
            best[offer.key] = offer
    yield from best.values()


def _date_of(name: str, version: str, today: datetime.date) -> datetime.date:
    """A catalog's date: its version begins with it, as in ``20261120-412``."""
    try:
        found = datetime.datetime.strptime(version[:8], "%Y%m%d").date()
    except ValueError as err:
        raise PriceError(f"the catalog of {name} has no date in its version {version[:40]!r}: {_KEPT}") from err
    if found > today:
        raise PriceError(f"the catalog of {name} is of {found}, which is not yet: {_KEPT}; correct the clock")
    return found


def gpu_id_of(provider: str, gpu_name: str, memory_gb: float | None, instance: str) -> str | None:
    """The GPU that a catalog means, None where it is not in the table or could be one of several.

    Args:
        provider: of the instance, as we spell it.
        gpu_name: as gpuhunt spells it; A100 and H100 are names of several boards.
        memory_gb: of one GPU, by the catalog.
        instance: its name, which may say which board it is.
    """
    found = {
        row["gpu_id"]
        for row in tables.read("price_gpus")
        if row["gpu_name"].lower() == gpu_name.lower()
        and float(row["memory_gb"]) == memory_gb
        and row["provider"] in ("", provider)
        and re.search(row["instance"], instance)
    }
    return found.pop() if len(found) == 1 else None


def _compare(found: dict[str, tuple[Offer, ...]], before: tuple[Offer, ...]) -> None:
    """Refuse providers that have no offers, or far fewer than they had."""
    for name, offers in found.items():
        known = sum(o.provider == name for o in before)
        if not offers or len(offers) < _LEAST_SHARE * known:
            had = f", {known:,} before" if known else ""
            raise PriceError(
                f"the catalog of {name} has {len(offers):,} offers{had}: taken for half, and {_KEPT}; try again later, "
                f"or go ahead with --without {name}"
            )


@contextlib.contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What a library logs is not shown: its rows are counted, and what fails is an error here."""
    logger, silent = logging.getLogger(name), logging.NullHandler()
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(silent)
    try:
        yield
    finally:
        logger.removeHandler(silent)
        logger.propagate = propagates
