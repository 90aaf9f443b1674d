"""How long requests take at a rate: a queueing model of one server, from what was measured of it.

Triton's ensemble, its batching and its stages' contention for cores are not modelled one by one. The server is one
station whose speed depends on how many requests are inside (flow-equivalent server, Chandy, Herzog & Woo 1975): with n
inside it completes X(n) a second, the throughput of n closed loops. Requests come at random (Poisson); each brings an
amount of work, as one alone shows it, and all inside share the speed evenly. Percentiles come from simulating that.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cmt_release.typed_json import parsed, typed

SIMULATED = 20_000  # requests
SETTLING = 0.05  # share of them that come before the queue has its usual length
MOST_INSIDE = 5_000  # more than that and the queue grows without end
HALVINGS = 10  # of the range of rates: to a thousandth
TRUSTED_LOAD = 0.8  # share of saturation up to which the model was checked
PERCENTILES = (0.5, 0.95, 0.99)

Latencies = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """Of so many closed loops: answers a second, and their latencies in milliseconds."""

    concurrency: int
    throughput: float
    mean_ms: float
    p50_ms: float
    p95_ms: float


@dataclass(frozen=True)
class ServiceCurve:
    """What one server does at each number of requests inside.

    work: latencies of single requests over their mean. request_bytes: of media and text, on average.
    """

    points: tuple[Point, ...]
    work: tuple[float, ...]
    request_bytes: float
    cores: int
    conditions: Mapping[str, Any]

    def __post_init__(self) -> None:
        inside = [point.concurrency for point in self.points]
        if inside[:1] != [1] or inside != sorted(set(inside)) or any(point.throughput <= 0 for point in self.points):
            raise ValueError(f"concurrencies: got {inside}; expected 1 and then more, each with a throughput above 0")
        if not self.work or min(self.work) <= 0:
            raise ValueError("no work was measured; expected latencies of single requests over their mean, all above 0")

    @property
    def saturation(self) -> float:
        """Answers a second at most."""
        return max(point.throughput for point in self.points)

    def speeds(self) -> NDArray[np.float64]:
        """[most measured + 1]: answers a second by requests inside; interpolated, never falling below one's own."""
        inside = [point.concurrency for point in self.points]
        return np.concatenate(
            [[0.0], np.interp(np.arange(1, inside[-1] + 1), inside, [point.throughput for point in self.points])]
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str) -> ServiceCurve:
        """ValueError for what isn't one; `where` is named in it."""
        values = parsed(text)
        known = values.pop("conditions", {})
        found = typed(_Stored, values, where)
        return cls(**{name: getattr(found, name) for name in _Stored.__dataclass_fields__}, conditions=known)


@dataclass(frozen=True)
class _Stored:
    """What of a ServiceCurve has a type throughout."""

    points: tuple[Point, ...]
    work: tuple[float, ...]
    request_bytes: float
    cores: int


def pooled(curves: Sequence[ServiceCurve]) -> ServiceCurve:
    """One curve of several of the same server: the mean of each point over them, and the work of all."""
    points = tuple(_averaged(same) for same in zip(*(curve.points for curve in curves), strict=True))
    return replace(curves[0], points=points, work=tuple(one for curve in curves for one in curve.work))


def _averaged(points: Sequence[Point]) -> Point:
    """Of one concurrency."""
    measures = zip(*((p.throughput, p.mean_ms, p.p50_ms, p.p95_ms) for p in points), strict=True)
    return Point(points[0].concurrency, *(float(np.mean(values)) for values in measures))


class Overloaded(ValueError):
    """More comes than can be answered: the queue grows without end."""


def latencies_at(curve: ServiceCurve, rate: float, seed: int = 0, requests: int = SIMULATED) -> Latencies:
    """Simulated latencies in milliseconds at so many requests a second. Raises Overloaded."""
    if not 0 < rate < curve.saturation:
        raise Overloaded(f"rate: got {rate:g}/s; expected above 0 and below {curve.saturation:g}/s, what it can do")
    return _simulated(curve, rate, seed, requests)[int(SETTLING * requests) :]


def latencies_of_runs(curve: ServiceCurve, rate: float, requests: int, skipped: int, runs: int) -> Latencies:
    """Of runs as short as a measurement, each from an empty server; the first `skipped` of each don't count.

    Even a rate beyond saturation has an answer then. Raises Overloaded where the queue grows past all measure.
    """
    found = [_simulated(curve, rate, seed, skipped + requests)[skipped:] for seed in range(runs)]
    return np.concatenate(found)


def _simulated(curve: ServiceCurve, rate: float, seed: int, requests: int) -> Latencies:
    """In the order in which requests come."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate, requests))
    work = rng.choice(np.array(curve.work) / np.mean(curve.work), requests)
    return _shared_evenly(arrivals, work, curve.speeds()) * 1e3


def _shared_evenly(arrivals: Latencies, work: Latencies, speeds: Latencies) -> Latencies:
    """Seconds that each request is inside while all inside share the speed evenly (processor sharing).

    `done` is the work that a request which was there from the beginning would have got: one leaves when that has grown
    by its own work since it arrived, so requests leave in the order of `done` at their arrival plus their work.
    """
    inside: list[tuple[float, int]] = []
    spent = np.empty(len(arrivals))
    now = done = 0.0
    coming = 0
    while coming < len(arrivals) or inside:
        count = len(inside)
        if count > MOST_INSIDE:
            raise Overloaded(f"more than {MOST_INSIDE} requests are waiting")
        each = speeds[min(count, len(speeds) - 1)] / count if count else 0.0
        leaves = now + (inside[0][0] - done) / each if inside else np.inf
        comes = arrivals[coming] if coming < len(arrivals) else np.inf
        if comes < leaves:
            done += (comes - now) * each
            now = comes
            heapq.heappush(inside, (done + work[coming], coming))
            coming += 1
        else:
            done, index = heapq.heappop(inside)
            now = leaves
            spent[index] = now - arrivals[index]
    return spent


def percentiles(latencies: Sequence[float] | Latencies) -> dict[str, float]:
    """`p50_ms`, `p95_ms`, `p99_ms` and `mean_ms`."""
    found = np.quantile(np.asarray(latencies), PERCENTILES)
    named = {f"p{round(100 * share)}_ms": float(value) for share, value in zip(PERCENTILES, found, strict=True)}
    return named | {"mean_ms": float(np.mean(latencies))}


def most_within(curve: ServiceCurve, slo_ms: float, percentile: float, most_load: float = TRUSTED_LOAD) -> float:
    """Requests a second at which that share of them still takes at most `slo_ms`; 0 where even a single one doesn't.

    Never above `most_load` of saturation, beyond which a little more traffic means a lot more waiting.
    """
    alone = np.quantile(np.array(curve.work) / np.mean(curve.work), percentile) / curve.points[0].throughput * 1e3
    if alone > slo_ms:
        return 0.0
    low, high = 0.0, most_load * curve.saturation
    if _within(curve, high, slo_ms, percentile):
        return high
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(curve, middle, slo_ms, percentile) else (low, middle)
    return low


def _within(curve: ServiceCurve, rate: float, slo_ms: float, percentile: float) -> bool:
    return bool(np.quantile(latencies_at(curve, rate), percentile) <= slo_ms)
