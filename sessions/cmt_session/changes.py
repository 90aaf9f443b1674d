"""Trend and change points of a session.

The trend of a probability is how far it lies from its slow average, divided by that average's time constant: of a ramp
that is its slope. Change points are found by a one-sided cumulative sum for each label (Page 1954): what answers give
it beyond its baseline and a slack is added up until it passes a threshold, and began where the sum last was 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from cmt_session.options import TrackerOptions
from cmt_session.smoothing import Shares, alpha_of, blend, blend_if_read
from cmt_session.tracker_state import TrackerState

SECONDS_A_MINUTE = 60


@dataclass(frozen=True)
class ChangePoint:
    """A label became more likely than before. began_s: when, as is known by now; found_s: at which event."""

    label: str
    began_s: float
    found_s: float


@dataclass(frozen=True)
class Trend:
    """Changes a minute of each label's probability, and of valence where it is read."""

    shares: dict[str, float]
    valence: float | None


def followed(
    state: TrackerState, shares: Shares, valence: float | None, elapsed_s: float, options: TrackerOptions
) -> tuple[TrackerState, Trend | None]:
    """The state whose slow averages took in the joined probabilities, and the trend. elapsed_s: since the last."""
    if not shares:
        return state, None
    alpha = alpha_of(elapsed_s, options.trend_s)
    slow, slow_valence = blend(state.slow, shares, alpha), blend_if_read(state.slow_valence, valence, alpha)
    zeros = (0.0,) * len(shares)
    state = replace(
        state,
        slow=slow,
        slow_valence=slow_valence,
        base=blend(state.base, shares, alpha_of(elapsed_s, options.baseline_s)),
        sums=state.sums or zeros,
        began=state.began or zeros,
    )
    per_minute = SECONDS_A_MINUTE / options.trend_s
    rates = {name: (now - late) * per_minute for name, now, late in zip(state.labels, shares, slow, strict=True)}
    rate = None if valence is None or slow_valence is None else (valence - slow_valence) * per_minute
    return state, Trend(rates, rate)


def changed(
    state: TrackerState, raw: Shares, shares: Shares, start_s: float, alpha: float, options: TrackerOptions
) -> tuple[TrackerState, ChangePoint | None]:
    """raw: an answer that counts; shares: what it was joined to; alpha: how much it weighed; start_s: of its media. The
    change point, if one is found at it."""
    pairs = zip(state.sums, raw, state.base, strict=True)
    sums = tuple(max(0.0, total + alpha * (p - usual - options.change_slack)) for total, p, usual in pairs)
    began = tuple(start_s if not total else since for total, since in zip(state.sums, state.began, strict=True))
    most = max(range(len(sums)), key=lambda place: sums[place])
    if sums[most] <= options.change_threshold:
        return replace(state, sums=sums, began=began), None
    zeros = (0.0,) * len(raw)
    point = ChangePoint(state.labels[most], began[most], state.clock_s)
    return replace(state, base=shares, sums=zeros, began=zeros), point
