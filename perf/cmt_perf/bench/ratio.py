"""How much faster: ratios of two systems that took turns, with bootstrap intervals (Efron & Tibshirani 1993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_perf.bench.measure import Measured

RESAMPLES = 4000
CONFIDENCE = 0.95

Statistic = Callable[[NDArray[np.float64]], float]


@dataclass(frozen=True)
class Ratio:
    """Baseline over candidate: above 1, the candidate is faster. low, high: 95 % interval."""

    ratio: float
    low: float
    high: float


def ratio_of(baseline: Measured, candidate: Measured, statistic: Statistic = np.median, seed: int = 0) -> Ratio:
    """Of a statistic of all latencies. Rounds are drawn in pairs, as they were measured, then requests within each.

    ValueError when a system has no round with an answer, or not as many as the other.
    """
    pairs = [
        (np.array(b.latencies_ms), np.array(c.latencies_ms))
        for b, c in zip(baseline.rounds, candidate.rounds, strict=True)
        if b.latencies_ms and c.latencies_ms
    ]
    if not pairs:
        raise ValueError(f"{baseline.system} and {candidate.system} have no round that both answered")
    rng = np.random.default_rng(seed)
    drawn = [_ratio(_resampled(pairs, rng), statistic) for _ in range(RESAMPLES)]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Ratio(_ratio(pairs, statistic), float(low), float(high))


_Pair = tuple[NDArray[np.float64], NDArray[np.float64]]


def _ratio(pairs: Sequence[_Pair], statistic: Statistic) -> float:
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return float(statistic(ours) / statistic(theirs))


def _resampled(pairs: Sequence[_Pair], rng: np.random.Generator) -> list[_Pair]:
    chosen = [pairs[index] for index in rng.integers(len(pairs), size=len(pairs))]
    return [(rng.choice(b, len(b)), rng.choice(c, len(c))) for b, c in chosen]
