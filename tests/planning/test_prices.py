"""Dated prices: the shipped table, files in its schema, and what is asked of them."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from command import run

from vramcalc import tables
from vramcalc.errors import DataError, InvalidValue, UnknownName
from vramcalc.inputs import catalog
from vramcalc.planning import prices
from vramcalc.planning.prices import COLUMNS, STALE_DAYS, Offer

SHIPPED = prices.read(prices.shipped_path())
TODAY = datetime.date(2026, 11, 22)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a table of their own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def offer(**changes: Any) -> Offer:
    base = next(o for o in SHIPPED if o.label == "aws g5.xlarge (us-east-1)" and o.tier == "on_demand")
    return Offer(**{**vars(base), **changes})


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.csv"
    path.write_text(text, encoding="utf-8")
    return path


# -- the shipped table -------------------------------------------------------------------------------------------------


def test_every_offer_is_of_a_gpu_in_the_table_of_gpus() -> None:
    assert {o.gpu_id for o in SHIPPED} <= set(catalog.gpu_names())
    assert {row["gpu_id"] for row in tables.read("price_gpus")} <= set(catalog.gpu_names())


def test_no_price_is_from_the_future_nor_checked_before_it_held() -> None:
    for o in SHIPPED:
        assert o.as_of is None or o.as_of <= o.checked_on <= TODAY, o.label


def test_the_shipped_table_is_in_the_order_in_which_it_is_written() -> None:
    assert prices.as_csv(SHIPPED) == prices.shipped_path().read_text(encoding="utf-8")


def test_a_larger_instance_of_a_provider_costs_no_less() -> None:
    """More GPUs of a kind never cost less in one region and tier: a slip in a count or a price would show."""
    for big in SHIPPED:
        for small in SHIPPED:
            same = all(getattr(big, n) == getattr(small, n) for n in ("provider", "gpu_id", "tier", "region", "as_of"))
            if same and big.as_of and small.gpu_count < big.gpu_count:
                assert small.price_usd_hour < big.price_usd_hour, (small.label, big.label)


@pytest.mark.parametrize(
    ("instance", "tier", "price", "date"),
    [
        ("g5.xlarge", "on_demand", 1.006, "2026-07-20"),
        ("p5.48xlarge", "on_demand", 55.04, "2026-07-20"),
        ("a2-ultragpu-1g", "on_demand", 5.0688, "2026-08-03"),
        ("Standard_ND96amsr_A100_v4", "on_demand", 32.77, "2026-06-18"),
    ],
)
def test_cited_prices(instance: str, tier: str, price: float, date: str) -> None:
    (found,) = (o for o in SHIPPED if (o.instance, o.tier) == (instance, tier))
    assert (found.price_usd_hour, found.date) == (price, date)


def test_a_derived_price_has_the_date_of_the_older_of_its_sources() -> None:
    derived = [o for o in SHIPPED if o.kind == "derived"]
    assert {(o.provider, o.tier, o.date) for o in derived} == {("aws", "spot", "2025-06-28")}
    assert all("applied to" in o.note for o in derived)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_table_written_is_read_back_the_same(tmp_path: Path) -> None:
    assert set(prices.read(written(tmp_path, prices.as_csv(SHIPPED)))) == set(SHIPPED)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("provider", "", "a name"),
        ("region", " east", "a name or nothing"),
        ("gpu_id", "a10h", "an id of tables/gpus.csv"),
        ("gpu_id", "", "an id of tables/gpus.csv"),
        ("gpu_count", "0", "a whole number"),
        ("gpu_count", "-1", "a whole number"),
        ("gpu_count", "1.5", "a whole number"),
        ("tier", "reserved", "on_demand or spot"),
        ("price_usd_hour", "0", "more than 0"),
        ("price_usd_hour", "-1.99", "more than 0"),
        ("price_usd_hour", "nan", "USD per hour"),
        ("price_usd_hour", "inf", "USD per hour"),
        ("price_usd_hour", "$1.99", "USD per hour"),
        ("as_of", "20.7.2026", "YYYY-MM-DD"),
        ("kind", "rumour", "provider_api or curated"),
        ("source", "", "where the price was read"),
        ("checked_on", "", "YYYY-MM-DD"),
    ],
)
def test_a_broken_field_is_a_data_error_with_its_line_and_its_name(
    tmp_path: Path, field: str, value: str, expected: str
) -> None:
    good, bad = prices.as_csv([offer()]).splitlines(), {**offer().to_dict(), field: value}
    text = "\n".join([*good, ",".join(str(bad[name]) for name in COLUMNS)])
    with pytest.raises(DataError, match="line 3") as caught:
        prices.read(written(tmp_path, text))
    assert f"{field} = {value!r}: expected" in str(caught.value)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no offers"),
        (",".join(COLUMNS), "no offers"),
        ("provider,price\naws,1\n", "lacks region, gpu_id"),
        (prices.as_csv([offer()]) + prices.as_csv([offer()]).splitlines()[1], "the same offer as on an earlier line"),
        (prices.as_csv([offer()])[:-30], "expected 12 fields"),
    ],
    ids=["empty", "header", "other columns", "twice", "cut off"],
)
def test_a_broken_table_is_a_data_error(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        prices.read(written(tmp_path, text))


def test_the_users_own_table_takes_precedence_and_says_so() -> None:
    assert prices.current().path == prices.shipped_path()
    assert prices.current().note == ""
    own = prices.refreshed_path()
    own.parent.mkdir(parents=True)
    own.write_text(prices.as_csv([offer(price_usd_hour=0.5)]), encoding="utf-8")
    found = prices.current()
    assert (found.path, found.refreshed, len(found.offers)) == (own, True, 1)
    assert str(own) in found.note
    assert str(own) in " ".join(run("prices").out.split())


# -- questions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", [{}, {"gpu": "a100-sxm-80"}, {"provider": "gcp"}, {"gpu": "T4", "tier": "spot"}])
def test_what_is_selected_is_every_offer_asked_for_the_cheapest_first(wanted: dict[str, str]) -> None:
    found = prices.select(SHIPPED, **wanted)
    names = {"gpu": "gpu_id", "provider": "provider", "tier": "tier"}
    asked = [o for o in SHIPPED if all(getattr(o, names[n]) == v.lower() for n, v in wanted.items())]
    assert Counter(found) == Counter(asked)
    assert [o.price_usd_hour for o in found] == sorted(o.price_usd_hour for o in asked)


@pytest.mark.parametrize(
    ("wanted", "error", "says"),
    [
        ({"gpu": "h100-sxn"}, UnknownName, "did you mean 'h100-sxm'"),
        ({"provider": "awz"}, UnknownName, "no provider named 'awz'; did you mean 'aws'"),
        ({"tier": "reserved"}, InvalidValue, "tier = 'reserved': expected on_demand or spot"),
    ],
)
def test_unknown_names_are_refused(wanted: dict[str, str], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        prices.select(SHIPPED, **wanted)
    answer = run("prices", *(word for n, v in wanted.items() for word in (f"--{n}", v)))
    assert (answer.status, answer.out) == (2, "")
    assert says in answer.err


@pytest.mark.parametrize(("age", "warns"), [(0, False), (STALE_DAYS, False), (STALE_DAYS + 1, True)])
def test_prices_are_warned_of_when_they_are_older_than_sixty_days(age: int, warns: bool) -> None:
    found = list(prices.stale([offer(as_of=TODAY - datetime.timedelta(days=age)), offer(as_of=TODAY)], TODAY))
    assert bool(found) == warns
    assert not warns or ("more than 60 days old" in found[0] and "vramcalc prices refresh" in found[0])


def test_offers_without_a_date_are_warned_of() -> None:
    assert any("1 of the offers have no date" in w for w in prices.stale([offer(as_of=None), offer()], TODAY))


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", ["h100-sxm", "a100-sxm-80", "l4", "rtx-pro-6000"])
def test_every_line_has_its_date_and_fits_a_hundred_columns(gpu: str) -> None:
    lines = run("prices", "--gpu", gpu).out.splitlines()
    assert max(map(len, lines)) <= 100
    offers = prices.select(SHIPPED, gpu=gpu)
    dated = [line for line in lines if line.lstrip().startswith(gpu)]
    assert len(dated) == len(offers)
    for line, one in zip(dated, offers, strict=True):
        assert one.date in line
        assert f"{one.price_usd_hour:,.2f}" in line


def test_json_holds_the_offers_as_they_are_read() -> None:
    answer = json.loads(run("prices", "--gpu", "l4", "--tier", "spot", "--json").out)
    assert answer["offers"] == [o.to_dict() for o in prices.select(SHIPPED, gpu="l4", tier="spot")]
    assert answer["path"] == str(prices.shipped_path())


def test_any_table_in_the_schema_can_be_listed(tmp_path: Path) -> None:
    path = written(tmp_path, prices.as_csv([offer(price_usd_hour=0.25, as_of=TODAY)]))
    answer = run("prices", "--price-table", path)
    assert "0.25" in answer.out
    assert str(path) in " ".join(answer.out.split())
