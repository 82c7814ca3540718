"""What an hour costs, and what a run costs: an offer, one's own rate, or one's own machine.

Whole instances are billed: a job on one GPU of an instance of eight pays for all eight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import Field

from vramcalc.errors import InvalidValue
from vramcalc.inputs.base import PositiveCount, Spec
from vramcalc.interval import Interval
from vramcalc.planning.prices import Offer

_HOURS_PER_YEAR = 365.25 * 24
_S_PER_HOUR = 3600

Usd = Annotated[float, Field(gt=0, le=1e9)]
Amount = Annotated[float, Field(ge=0, le=1e9)]


class Billing(Spec):
    """How time becomes billed time.

    By default by the second, a minute at least, as AWS bills Linux instances and Google Cloud its virtual machines
    (aws.amazon.com/ec2/pricing, cloud.google.com/compute/all-pricing); assumed for every other provider.
    """

    increment_s: Annotated[float, Field(gt=0, le=1e7)] = 1.0
    """What begins is billed whole. [s]"""
    minimum_s: Annotated[float, Field(ge=0, le=1e7)] = 60.0
    """The least that is billed. [s]"""

    def billed_hours(self, hours: float) -> float:
        """Hours on the bill; never fewer than those used, nor than the minimum. [h]"""
        seconds = max(hours * _S_PER_HOUR, self.minimum_s)
        # Rounding noise of the division must not start another increment.
        increments = math.ceil(seconds / self.increment_s * (1 - 1e-12))
        return max(_hours(increments * self.increment_s), _hours(self.minimum_s), hours)


def _hours(seconds: float) -> float:
    """As hours, rounded so that as many seconds are no fewer. [h]"""
    hours = seconds / _S_PER_HOUR
    return hours if hours * _S_PER_HOUR >= seconds else math.nextafter(hours, math.inf)


@dataclass(frozen=True)
class Rate:
    """What an hour of an instance costs.

    Attributes:
        usd_per_hour: of the whole instance. [USD/h]
        gpu_count: GPUs of the instance.
        label: what it is.
        tier: ``on_demand``, ``spot`` or ``own``.
        as_of: date of the price, or ``as given``.
        parts: what the rate is made of; they sum to it. [USD/h]
        offer: where it comes from a price table.
    """

    usd_per_hour: float
    gpu_count: int
    label: str
    tier: str
    as_of: str
    parts: Mapping[str, float] = field(default_factory=dict)
    offer: Offer | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        own = {n: v for n, v in vars(self).items() if n not in ("offer", "parts")}
        return {**own, "parts": dict(self.parts), "offer": self.offer.to_dict() if self.offer else None}


def offer_rate(offer: Offer) -> Rate:
    """The rate of an offer.

    Raises:
        InvalidValue: the offer has no date.
    """
    if offer.as_of is None:
        raise InvalidValue("offer", offer.label, "a dated price", "give the rate itself: --price")
    parts = {"rent": offer.price_usd_hour}
    return Rate(offer.price_usd_hour, offer.gpu_count, offer.label, offer.tier, offer.date, parts, offer)


class OwnRate(Spec):
    """A rate of one's own: what a provider charges for an hour of one instance."""

    usd_per_hour: Usd
    """Of the whole instance, with all its GPUs. [USD/h]"""
    gpu_count: PositiveCount = 1
    """GPUs of the instance."""

    @property
    def rate(self) -> Rate:
        """As a rate."""
        parts = {"rent": self.usd_per_hour}
        return Rate(self.usd_per_hour, self.gpu_count, "own rate", "own", "as given", parts)


class OwnMachine(Spec):
    """A machine that was bought: its price spread over the hours it works, and its power."""

    purchase_usd: Amount
    """Of the whole machine. [USD]"""
    lifetime_years: Annotated[float, Field(gt=0, le=100)] = 3.0
    """Years over which the price is written off, to nothing. [a]"""
    utilisation: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of those years in which it works; idle hours are paid by the working ones."""
    power_w: Amount
    """Of the whole machine while it works. [W]"""
    idle_power_w: Amount = 0.0
    """While it is on and does not work. [W]"""
    usd_per_kwh: Amount
    """Of electricity. [USD/kWh]"""
    pue: Annotated[float, Field(ge=1, le=10)] = 1.0
    """Power usage effectiveness: energy of the site over energy of its machines."""
    gpu_count: PositiveCount = 1
    """GPUs of the machine."""

    @property
    def rate(self) -> Rate:
        """USD per working hour, in its parts."""
        idle_hours = (1 - self.utilisation) / self.utilisation
        usd_per_wh = self.pue * self.usd_per_kwh / 1000
        parts = {
            "purchase": self.purchase_usd / (self.lifetime_years * _HOURS_PER_YEAR * self.utilisation),
            "power": self.power_w * usd_per_wh,
            "idle power": self.idle_power_w * usd_per_wh * idle_hours,
        }
        return Rate(sum(parts.values()), self.gpu_count, "own machine", "own", "as given", parts)


@dataclass(frozen=True)
class Bill:
    """What a run costs at a rate.

    Attributes:
        rate: of the instance.
        usd: of the run. [USD]
        billed_hours: of the instance, at the run's value. [h]
        idle_gpus: GPUs that are paid for and not used.
    """

    rate: Rate
    usd: Interval
    billed_hours: float
    idle_gpus: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        own = {"billed_hours": self.billed_hours, "idle_gpus": self.idle_gpus}
        return {"usd": self.usd.to_dict(), **own, "rate": self.rate.to_dict()}


def bill(hours: Interval, rate: Rate, billing: Billing | None = None, *, gpus: int = 1) -> Bill:
    """The bill of a run.

    Args:
        hours: that the run takes. [h]
        rate: of the instance it runs on.
        billing: how time is billed.
        gpus: that the run uses.

    Raises:
        InvalidValue: the instance has fewer GPUs than the run uses.
    """
    if rate.gpu_count < gpus:
        raise InvalidValue("gpu_count", rate.gpu_count, f"an instance of at least {gpus} GPUs")
    billed = hours.map((billing or Billing()).billed_hours)
    return Bill(rate, billed.map(lambda h: h * rate.usd_per_hour), billed.value, rate.gpu_count - gpus)
