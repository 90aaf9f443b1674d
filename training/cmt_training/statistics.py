"""Means over seeds with intervals, paired differences, and whether a claimed improvement is met."""

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

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Difference:
    """CMT minus a baseline, paired by seed; percent: of the baseline's mean."""

    weighted_f1: Interval
    cross_entropy: Interval
    weighted_f1_percent: float
    cross_entropy_percent: float


@dataclass(frozen=True)
class Claim:
    """A claimed relative change over the strongest baseline, and what was found. difference: paired by seed."""

    measure: str
    claimed_percent: float
    baseline: str
    found_percent: float
    difference: Interval
    significant: bool
    met: bool


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


def claim_of(measure: str, claimed_percent: float, ours: Interval, baselines: Sequence[tuple[str, Interval]]) -> Claim:
    """Against the baseline that is best at the measure. claimed_percent > 0: more is better; < 0: less is."""
    sign = math.copysign(1, claimed_percent)
    name, strongest = max(baselines, key=lambda baseline: sign * baseline[1].mean)
    found, difference = percent(ours, strongest), paired(ours, strongest)
    return Claim(
        measure,
        claimed_percent,
        name,
        found,
        difference,
        difference.excludes_zero,
        sign * (found - claimed_percent) >= 0,
    )
