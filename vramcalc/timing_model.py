"""From counts of work to seconds: the terms of a step, and how they add up.

A term takes its count over the GPU's rate for it, times a fitted factor: how much longer it takes than the data sheet
allows. Work on the GPU adds up; the host launches kernels at the same time, and the longer of the two decides, with
a soft corner between them. Factors are positive, so a step never gets shorter when there is more to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vramcalc import tables

Limit = Literal["tensor cores", "memory", "host"]
CORNER = 4
"""Exponent of the soft maximum of the GPU's and the host's time."""


@dataclass(frozen=True)
class Kind:
    """How a quantity becomes seconds.

    Attributes:
        term: the term of a step that it belongs to.
        rate: what divides it: a rate of the GPU, or nothing where the factor is in seconds.
        limit: what limits it.
        prior: the factor to expect before any measurement.
        spread: how far off that may be, as the standard deviation of its logarithm.
    """

    term: str
    rate: Literal["flops_16", "flops_32", "bytes", ""]
    limit: Limit
    prior: float
    spread: float


KINDS: Mapping[str, Kind] = {
    "products 16": Kind("matrix products", "flops_16", "tensor cores", 1.4, 0.3),
    "products 32": Kind("matrix products", "flops_32", "tensor cores", 1.25, 0.3),
    "flash": Kind("attention", "flops_16", "tensor cores", 1.8, 0.4),
    "efficient 16": Kind("attention", "flops_16", "tensor cores", 3.0, 0.4),
    "efficient 32": Kind("attention", "flops_32", "tensor cores", 3.0, 0.5),
    "scores": Kind("attention", "bytes", "memory", 1.25, 0.4),
    "weights": Kind("matrix products", "bytes", "memory", 1.25, 0.1),
    "element-wise": Kind("element-wise", "bytes", "memory", 1.25, 0.4),
    "compiled element-wise": Kind("element-wise", "bytes", "memory", 0.6, 0.4),
    "logits": Kind("loss", "bytes", "memory", 1.25, 0.4),
    "adapters": Kind("adapters", "bytes", "memory", 1.25, 0.5),
    "compiled adapters": Kind("adapters", "bytes", "memory", 0.6, 0.5),
    "dequantisation": Kind("dequantisation", "bytes", "memory", 1.7, 0.5),
    "GPTQ": Kind("dequantisation", "bytes", "memory", 2.5, 0.6),
    "optimizer": Kind("optimizer", "bytes", "memory", 1.25, 0.5),
    "layer launches": Kind("host", "", "host", 1.5e-3, 0.7),
    "adapter launches": Kind("host", "", "host", 1.5e-4, 0.7),
    "dequantisation launches": Kind("host", "", "host", 6e-5, 0.7),
    "steps": Kind("per step", "", "host", 5e-3, 1.0),
}
"""Quantities of :class:`vramcalc.timing_terms.Work`, in the order of the coefficients."""

GPU_SPREAD, HOST_SPREAD = 0.25, 0.5
"""Standard deviations, over GPUs and the machines around them, of the logarithms of their factors."""


@dataclass(frozen=True)
class Rates:
    """What a data sheet promises.

    Attributes:
        flops_16: dense operations per second in bfloat16 or float16, accumulated in float32. [1/s]
        flops_32: in float32, outside the tensor cores. [1/s]
        bytes: memory bandwidth. [B/s]
    """

    flops_16: float
    flops_32: float
    bytes: float

    def covers(self, other: Rates) -> bool:
        """Whether every rate is at least the other's."""
        return self.flops_16 >= other.flops_16 and self.flops_32 >= other.flops_32 and self.bytes >= other.bytes

    def of(self, name: str) -> float:
        """A rate by name; 1 for what has none."""
        return float(getattr(self, name)) if name else 1.0


def rates(row: tables.Row) -> Rates | None:
    """Rates of a row of ``tables/gpus.csv``; None where one is not known."""
    half = row["bf16_dense_tflops"] or row["fp16_dense_tflops"]
    if not (half and row["fp32_tflops"] and row["memory_bandwidth_gb_s"]):
        return None
    return Rates(float(half) * 1e12, float(row["fp32_tflops"]) * 1e12, float(row["memory_bandwidth_gb_s"]) * 1e9)


@dataclass(frozen=True)
class Coefficients:
    """Factors of a fit.

    Attributes:
        factors: by quantity: times the least time, or seconds.
        products: by measured GPU: times the pooled factor of what the tensor cores limit.
    """

    factors: Mapping[str, float]
    products: Mapping[str, float]


def own_factor(gpu: str, at: Rates, c: Coefficients, measured: Mapping[str, Rates]) -> float:
    """Factor of what the tensor cores of a GPU limit.

    A measured GPU has its own. Any other takes the pooled one, kept between those of its neighbours: no card is slower
    than a measured one that it beats on every line of the data sheet, nor faster than one that beats it.

    Args:
        gpu: its id.
        at: its rates.
        c: the fit.
        measured: rates of the measured GPUs.
    """
    if gpu in c.products:
        return c.products[gpu]
    speed = at.flops_16
    for other, theirs in measured.items():
        reached = theirs.flops_16 / c.products[other]
        if at.covers(theirs):
            speed = max(speed, reached)
    for other, theirs in measured.items():
        reached = theirs.flops_16 / c.products[other]
        if theirs.covers(at):
            speed = min(speed, reached)
    return at.flops_16 / speed


def least_seconds(quantities: Mapping[str, float], at: Rates) -> dict[str, float]:
    """Quantities over their rates. [s], launches and steps as counts."""
    return {name: quantities.get(name, 0.0) / at.of(kind.rate) for name, kind in KINDS.items()}


def term_seconds(least: Mapping[str, float], own: float, c: Coefficients) -> dict[str, float]:
    """Seconds by term; the host's is what it adds to the GPU's time, so that the terms sum to the step.

    Args:
        least: of :func:`least_seconds`.
        own: the GPU's factor, of :func:`own_factor`.
        c: the fit.
    """
    found: dict[str, float] = dict.fromkeys((k.term for k in KINDS.values()), 0.0)
    for name, kind in KINDS.items():
        found[kind.term] += least[name] * c.factors[name] * (own if kind.limit == "tensor cores" else 1.0)
    host, once = found.pop("host"), found.pop("per step")
    device = sum(found.values())
    found["host"] = together(device, host) - device + once
    return found


def host_bound(least: Mapping[str, float], own: float, c: Coefficients) -> bool:
    """Whether launching the kernels takes more than half as long as running them: the host shows in the step."""
    host = sum(least[n] * c.factors[n] for n, k in KINDS.items() if k.term == "host")
    device = sum(
        least[n] * c.factors[n] * (own if k.limit == "tensor cores" else 1.0)
        for n, k in KINDS.items()
        if k.term not in ("host", "per step")
    )
    return host > device / 2


def together(device: float, host: float) -> float:
    """Time of a GPU and a host that work at the same time: the longer, a little more where they are close."""
    longer = max(device, host)
    return longer * ((device / longer) ** CORNER + (host / longer) ** CORNER) ** (1 / CORNER) if longer else 0.0
