"""Dated prices of GPU instances: the shipped table, and the one that ``vramcalc prices refresh`` writes.

An offer is an instance: what is rented, and billed, whole. A price without a date is listed but never used for a cost.
"""

from __future__ import annotations

import csv
import datetime
import io
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from vramcalc import tables
from vramcalc.errors import DataError, InvalidValue, UnknownName
from vramcalc.files.folders import cache_folder
from vramcalc.inputs import catalog

Tier = Literal["on_demand", "spot"]
Kind = Literal["provider_api", "curated", "derived", "gpuhunt"]
TIERS: tuple[Tier, ...] = get_args(Tier)
_REMEDY = "give a table in the schema of tables/prices.csv, or take it away"
STALE_DAYS = 60
"""Age from which prices are warned of."""


@dataclass(frozen=True)
class Offer:
    """One instance that can be rented.

    Attributes:
        provider: of the instance.
        region: where it runs, empty where the source gives none.
        gpu_id: as in ``tables/gpus.csv``.
        gpu_count: GPUs of the instance; all of them are billed.
        instance: as the provider names it.
        tier: ``spot`` can be taken away at any moment.
        price_usd_hour: of the whole instance. [USD/h]
        as_of: day the price held, None where the source does not tell.
        kind: how the price was obtained; ``derived``: worked out from another price.
        source: where it was read.
        checked_on: day it was last held against the source.
        note: what else is to be known.
    """

    provider: str
    region: str
    gpu_id: str
    gpu_count: int
    instance: str
    tier: Tier
    price_usd_hour: float
    as_of: datetime.date | None
    kind: Kind
    source: str
    checked_on: datetime.date
    note: str

    @property
    def key(self) -> tuple[object, ...]:
        """What tells one offer of a table from the others."""
        return self.provider, self.region, self.gpu_id, self.gpu_count, self.instance, self.tier

    @property
    def label(self) -> str:
        """``"aws p4d.24xlarge (us-east-1)"``."""
        return f"{self.provider} {self.instance}" + (f" ({self.region})" if self.region else "")

    @property
    def date(self) -> str:
        """The date in words."""
        return self.as_of.isoformat() if self.as_of else "undated"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {n: v.isoformat() if isinstance(v, datetime.date) else v for n, v in vars(self).items()}


COLUMNS = tuple(f.name for f in fields(Offer))
"""Of a price table, in order."""


@dataclass(frozen=True)
class Prices:
    """A price table.

    Attributes:
        offers: in the order of the file.
        path: where they were read.
        refreshed: the user's own table, which takes the place of the shipped one.
    """

    offers: tuple[Offer, ...]
    path: Path
    refreshed: bool = False

    @property
    def note(self) -> str:
        """Which table it is, where it is not the shipped one."""
        shipped = self.path.resolve() == shipped_path().resolve()
        return "" if shipped else f"prices from {self.path}, not the shipped table"


def shipped_path() -> Path:
    """The table that comes with the package."""
    return tables.directory() / "prices.csv"


def refreshed_path() -> Path:
    """Where ``vramcalc prices refresh`` puts its table."""
    return cache_folder() / "prices.csv"


def current() -> Prices:
    """The user's own table where there is one, else the shipped one.

    Raises:
        DataError: as :func:`read`.
    """
    path = refreshed_path()
    return Prices(read(path), path, refreshed=True) if path.exists() else Prices(read(shipped_path()), shipped_path())


# -- files -------------------------------------------------------------------------------------------------------------


def read(path: str | Path) -> tuple[Offer, ...]:
    """Offers of a file.

    Raises:
        DataError: no such table, or a field that is not what it has to be; line and field are named.
    """
    file = Path(path)
    rows = tables.read_file(file, "reinstall the package" if file == shipped_path() else _REMEDY)
    missing = [name for name in COLUMNS if rows and name not in rows[0]]
    if missing or not rows:
        raise DataError(f"{file}: {'lacks ' + ', '.join(missing) if missing else 'no offers'}; see tables/prices.csv")
    offers: dict[tuple[object, ...], Offer] = {}
    for line, row in enumerate(rows, start=2):
        offer = _offer(row, f"{file}, line {line}")
        if offer.key in offers:
            raise DataError(f"{file}, line {line}: the same offer as on an earlier line: {offer.label}, {offer.tier}")
        offers[offer.key] = offer
    return tuple(offers.values())


def _offer(row: tables.Row, where: str) -> Offer:
    values: dict[str, Any] = {}
    for name in COLUMNS:
        rule, expected = _RULES[name]
        try:
            values[name] = rule(row[name])
        except ValueError:
            raise DataError(f"{where}, {name} = {row[name]!r}: expected {expected}") from None
    return Offer(**values)


def _text(text: str) -> str:
    if text != text.strip() or not text:
        raise ValueError
    return text


def _free_text(text: str) -> str:
    return text if not text else _text(text)


def _gpu(text: str) -> str:
    if text not in catalog.gpu_names():
        raise ValueError
    return text


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 1024:
        raise ValueError
    return int(text)


def _price(text: str) -> float:
    price = float(text) if text.isascii() and "_" not in text else math.nan
    if not (math.isfinite(price) and 0 < price < 1e5):
        raise ValueError
    return price


def _one_of(words: Sequence[str]) -> Callable[[str], str]:
    def rule(text: str) -> str:
        if text not in words:
            raise ValueError
        return text

    return rule


def _date_or_none(text: str) -> datetime.date | None:
    return datetime.date.fromisoformat(text) if text else None


_RULES: dict[str, tuple[Callable[[str], object], str]] = {
    "provider": (_text, "a name"),
    "region": (_free_text, "a name or nothing"),
    "gpu_id": (_gpu, "an id of tables/gpus.csv"),
    "gpu_count": (_count, "a whole number from 1 to 1,024"),
    "instance": (_text, "a name"),
    "tier": (_one_of(TIERS), " or ".join(TIERS)),
    "price_usd_hour": (_price, "USD per hour, more than 0 and below 100,000"),
    "as_of": (_date_or_none, "a date as YYYY-MM-DD, or nothing"),
    "kind": (_one_of(get_args(Kind)), " or ".join(get_args(Kind))),
    "source": (_text, "where the price was read"),
    "checked_on": (datetime.date.fromisoformat, "a date as YYYY-MM-DD"),
    "note": (_free_text, "trimmed text or nothing"),
}


def as_csv(offers: Iterable[Offer]) -> str:
    """Offers in the schema of the table, the same rows in the same order for the same offers."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    ordered = sorted(offers, key=lambda o: (o.provider, o.gpu_id, o.gpu_count, o.tier, o.instance, o.region))
    writer.writerows({**o.to_dict(), "price_usd_hour": f"{o.price_usd_hour:.10g}"} for o in ordered)
    return out.getvalue()


# -- questions ---------------------------------------------------------------------------------------------------------


def select(
    offers: Iterable[Offer], *, gpu: str | None = None, provider: str | None = None, tier: str | None = None
) -> list[Offer]:
    """Offers of a GPU, a provider, a tier; the cheapest first, by what an hour of the whole instance costs.

    Raises:
        UnknownName: a GPU that is not in the table of GPUs, or a provider that has no offer.
        InvalidValue: no such tier.
    """
    offers = tuple(offers)
    if gpu is not None:
        gpu = catalog.gpu_row(gpu)["gpu_id"]
    if provider is not None and provider not in {o.provider for o in offers}:
        known = sorted({o.provider for o in offers})
        raise UnknownName("provider", provider, known, f"known: {', '.join(known)}")
    if tier is not None and tier not in TIERS:
        raise InvalidValue("tier", tier, " or ".join(TIERS))
    wanted = {"gpu_id": gpu, "provider": provider, "tier": tier}
    found = [o for o in offers if all(v is None or getattr(o, n) == v for n, v in wanted.items())]
    return sorted(found, key=lambda o: (o.price_usd_hour, o.gpu_count, *map(str, o.key)))


def stale(offers: Iterable[Offer], today: datetime.date) -> Iterator[str]:
    """Warnings about prices that are old on a day, or have no date."""
    offers = tuple(offers)
    dates = [o.as_of for o in offers if o.as_of]
    if dates and (today - min(dates)).days > STALE_DAYS:
        yield (
            f"prices as of {min(dates)} are more than {STALE_DAYS} days old: 'vramcalc prices refresh' fetches new ones"
        )
    undated = sum(o.as_of is None for o in offers)
    if undated:
        yield f"{undated} of the offers have no date and are not used for costs"
