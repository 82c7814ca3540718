"""From counts of work to seconds: the terms of a step, and how they add up.

A term takes its count over the GPU's rate for it, times a fitted factor: how much longer it takes than the data sheet
allows. Work on the GPU adds up; the host launches kernels at the same time, and the longer of the two decides, with
a soft corner between them. Factors are positive, so a step never gets shorter when there is more to do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
    "experts": Kind("routing", "", "memory", 2e-4, 0.7),
    "optimizer": Kind("optimizer", "bytes", "memory", 1.25, 0.5),
    "layer launches": Kind("host", "", "host", 1.5e-3, 0.7),
    "adapter launches": Kind("host", "", "host", 1.5e-4, 0.7),
    "dequantisation launches": Kind("host", "", "host", 6e-5, 0.7),
    "steps": Kind("per step", "", "host", 5e-3, 1.0),
}
"""Quantities of :class:`vramcalc.timing.work.Work`, in the order of the coefficients."""

NOISE, CELL_SPREAD = 0.04, 0.08
"""Relative errors that the model is expected to leave: of a row, and of all rows of a cell."""
METHOD_SPREAD = 0.06
"""Relative error that the model is expected to leave in the ratio of two methods."""
FOUR_BIT_SPREAD = 0.1
"""Further relative error of steps over bitsandbytes' four-bit weights, whose kernels differ by release and card."""
GPU_SPREAD, HOST_SPREAD = 0.35, 0.5
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
    """Factors of a fit, and how sure it is of them.

    Attributes:
        factors: by quantity: times the least time, or seconds.
        products: by measured GPU: times the pooled factor of what the tensor cores limit.
        covariance: of the logarithms of all of these, in this order.
    """

    factors: Mapping[str, float]
    products: Mapping[str, float]
    covariance: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Prediction:
    """A step's time by the model.

    Attributes:
        terms: seconds by term, which sum to the step; the host's is what it adds to the GPU's. [s]
        sigma: expected relative error: the rows' own, that of the factors, of a GPU without rows and of the host.
        gpu_measured: the fit saw rows on this GPU.
        host_share: how far the step follows the host's speed, from 0 to 1.
        slopes: of the step's logarithm in that of each factor, in the order of the covariance.
    """

    terms: Mapping[str, float]
    sigma: float
    gpu_measured: bool
    host_share: float
    slopes: tuple[float, ...]

    @property
    def s(self) -> float:
        """Duration of the step. [s]"""
        return sum(self.terms.values())


def least_seconds(quantities: Mapping[str, float], at: Rates) -> dict[str, float]:
    """Quantities over their rates. [s], launches and steps as counts."""
    return {name: quantities.get(name, 0.0) / at.of(kind.rate) for name, kind in KINDS.items()}


def own_factors(gpu: str, at: Rates, c: Coefficients, measured: Mapping[str, Rates]) -> dict[str, float]:
    """Factors of a GPU's products, by rate.

    A measured GPU has its own. Any other takes the pooled one, kept between those of its neighbours: no card is slower
    than a measured one that it beats on every line of the data sheet, nor faster than one that beats it.

    Args:
        gpu: its id.
        at: its rates.
        c: the fit.
        measured: rates of the measured GPUs.
    """
    return {rate: _own_factor(gpu, at, c, measured, rate) for rate in ("flops_16", "flops_32")}


def _own_factor(gpu: str, at: Rates, c: Coefficients, measured: Mapping[str, Rates], rate: str) -> float:
    if gpu in c.products:
        return c.products[gpu]
    reached = {other: theirs.of(rate) / c.products[other] for other, theirs in measured.items()}
    speed = max([at.of(rate), *(reached[other] for other, theirs in measured.items() if at.covers(theirs))])
    speed = min([speed, *(reached[other] for other, theirs in measured.items() if theirs.covers(at))])
    return at.of(rate) / speed


def predict(least: Mapping[str, float], gpu: str, own: Mapping[str, float], c: Coefficients) -> Prediction:
    """Time of a step.

    Args:
        least: of :func:`least_seconds`.
        gpu: its id.
        own: its factors, of :func:`own_factors`.
        c: the fit.
    """
    tensor = {name for name, kind in KINDS.items() if kind.limit == "tensor cores"}
    parts = {
        name: least[name] * c.factors[name] * (own[kind.rate] if name in tensor else 1.0)
        for name, kind in KINDS.items()
    }
    terms: dict[str, float] = dict.fromkeys((k.term for k in KINDS.values()), 0.0)
    for name, kind in KINDS.items():
        terms[kind.term] += parts[name]
    host, once = terms.pop("host"), terms.pop("per step")
    device = sum(terms.values())
    longer = together(device, host)
    terms["host"] = longer - device + once
    leads = {"host": (host / longer) ** (CORNER - 1), "per step": 1.0} if longer else {}
    device_leads = (device / longer) ** (CORNER - 1) if longer else 0.0
    total = longer + once
    slopes = {n: parts[n] * leads.get(k.term, device_leads) / total for n, k in KINDS.items()} if total else {}
    tensor_share = sum(slopes.get(n, 0.0) for n in tensor)
    host_share = sum(slopes.get(n, 0.0) for n, k in KINDS.items() if k.term == "host")
    vector = [slopes.get(n, 0.0) for n in KINDS] + [tensor_share * (g == gpu) for g in c.products]
    device_share = sum(slopes.get(n, 0.0) for n, k in KINDS.items() if k.limit != "host")
    unknown_gpu = 0.0 if gpu in c.products else device_share * GPU_SPREAD
    four_bit = FOUR_BIT_SPREAD * (parts["dequantisation"] > 0)
    variance = _quadratic(vector, c.covariance) + unknown_gpu**2 + (host_share * HOST_SPREAD) ** 2 + four_bit**2
    sigma = math.sqrt(NOISE**2 + CELL_SPREAD**2 + variance)
    return Prediction(terms, sigma, gpu in c.products, host_share, tuple(vector))


def ratio_sigma(a: Prediction, b: Prediction, c: Coefficients) -> float:
    """Relative error to expect of the ratio of two steps on one GPU: what is wrong with both cancels."""
    tensor = [kind.limit == "tensor cores" for kind in KINDS.values()]
    shares = [sum(s for s, is_tensor in zip(p.slopes, tensor, strict=False) if is_tensor) for p in (a, b)]
    unknown_gpu = 0.0 if a.gpu_measured and b.gpu_measured else (shares[0] - shares[1]) * GPU_SPREAD
    host = (a.host_share - b.host_share) * HOST_SPREAD
    four_bit = FOUR_BIT_SPREAD * (_in_four_bits(a) != _in_four_bits(b))
    slopes = [x - y for x, y in zip(a.slopes, b.slopes, strict=True)]
    return math.sqrt(
        2 * NOISE**2 + METHOD_SPREAD**2 + _quadratic(slopes, c.covariance) + unknown_gpu**2 + host**2 + four_bit**2
    )


def _in_four_bits(p: Prediction) -> bool:
    """Whether bitsandbytes unpacks weights in the step."""
    return p.slopes[list(KINDS).index("dequantisation")] > 0


def _quadratic(x: Sequence[float], matrix: Sequence[Sequence[float]]) -> float:
    """``x`` times the matrix times ``x``."""
    return max(0.0, sum(a * sum(b * m for b, m in zip(x, row, strict=True)) for a, row in zip(x, matrix, strict=True)))


def together(device: float, host: float) -> float:
    """Time of a GPU and a host that work at the same time: the longer, a little more where they are close."""
    longer = max(device, host)
    return longer * ((device / longer) ** CORNER + (host / longer) ** CORNER) ** (1 / CORNER) if longer else 0.0
