"""How sure a difference is: exact tests and intervals for samples of any size, with nothing but the standard library.

fisher: R. A. Fisher's exact test, one-sided. wilson: E. B. Wilson's score interval (1927). median_at_least: the sign
test's bound, which assumes nothing about how the values are distributed.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

SIGNIFICANT = 0.001  # small, for a release is looked at again and again
Z_95 = 1.96


def fisher(hits: int, of: int, hits_before: int, of_before: int) -> float:
    """The chance of so many hits or more if both samples had the same rate; 1 where either is empty."""
    drawn, whole = hits + hits_before, of + of_before
    ways = range(hits, min(drawn, of) + 1)
    return min(1.0, sum(math.exp(_ln(of, k) + _ln(of_before, drawn - k) - _ln(whole, drawn)) for k in ways))


def at_least(hits: int, of: int, rate: float) -> float:
    """The chance of so many hits or more at this rate."""
    if hits == 0 or rate >= 1:
        return 1.0
    if rate <= 0:
        return 0.0
    ways = range(hits, of + 1)
    return min(1.0, sum(math.exp(_ln(of, k) + k * math.log(rate) + (of - k) * math.log1p(-rate)) for k in ways))


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Between which rates the true one lies with 95 %."""
    if of == 0:
        return 0.0, 1.0
    centre = (hits + Z_95**2 / 2) / (of + Z_95**2)
    half = Z_95 * math.sqrt(hits * (of - hits) / of + Z_95**2 / 4) / (of + Z_95**2)
    return max(0.0, centre - half), min(1.0, centre + half)


def median_at_least(values: Sequence[float], significant: float) -> float:
    """What the true median is at least, but for so small a chance; 0 where the values are too few to say."""
    of = len(values)
    # So many values at the least above the median are as unlikely as that.
    above = bisect.bisect_left(range(of + 1), True, key=lambda hits: at_least(hits, of, 0.5) <= significant)
    return sorted(values)[of - above] if above <= of else 0.0


def _ln(of: int, chosen: int) -> float:
    """The logarithm of the number of ways to choose; of an impossible choice, -infinity."""
    if not 0 <= chosen <= of:
        return -math.inf
    return math.lgamma(of + 1) - math.lgamma(chosen + 1) - math.lgamma(of - chosen + 1)
