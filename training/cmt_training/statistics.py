"""Means over seeds with intervals, and paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean over seeds and its 95 % confidence interval (Student's t); values: one a seed."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]

    def short(self) -> str:
        """As `str`, to three places: for tables."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def __str__(self) -> str:
        return f"{self.mean:.4f} [{self.low:.4f}, {self.high:.4f}]"


def interval_of(values: Sequence[float]) -> Interval:
    """ValueError for fewer than two values: one seed has no interval."""
    count = len(values)
    if count < 2:
        raise ValueError(f"got {count} seeds; expected two or more to make an interval of")
    mean = math.fsum(values) / count
    half = float(stats.sem(values) * stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
    return Interval(mean, mean - half, mean + half, tuple(values))


def paired(ours: Interval, theirs: Interval) -> Interval:
    """Of ours minus theirs, seed by seed."""
    return interval_of([a - b for a, b in zip(ours.values, theirs.values, strict=True)])


def percent(ours: Interval, theirs: Interval) -> float:
    """By how much the mean of ours differs, in % of that of theirs; 0 where theirs is 0."""
    return 100 * (ours.mean - theirs.mean) / theirs.mean if theirs.mean else 0.0
