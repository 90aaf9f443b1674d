"""Smoothing by media time: a constant input gives the same, however many events it is cut into."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cmt_session.observation import Observation
from cmt_session.options import TrackerOptions
from cmt_session.tracker_state import Stream, TrackerState

Shares = tuple[float, ...]


def alpha_of(elapsed_s: float, tau_s: float) -> float:
    """The weight of a new value after a time: 1 - exp(-dt / tau)."""
    return -math.expm1(-elapsed_s / tau_s)


def blend(old: Shares, new: Shares, alpha: float) -> Shares:
    """Between two distributions; another one. The new one where there is no old one."""
    return normalised([a + alpha * (b - a) for a, b in zip(old, new, strict=True)]) if old else new


def blend_if_read(old: float | None, new: float | None, alpha: float) -> float | None:
    """The same for one value that not every answer has."""
    if old is None or new is None:
        return old if new is None else new
    return old + alpha * (new - old)


def normalised(values: Sequence[float]) -> Shares:
    """Together 1. `fsum`, since `sum` of Python 3.12 adds otherwise than that of 3.11."""
    total = math.fsum(values)
    return tuple(value / total for value in values)


def tempered(shares: Shares, temperature: float) -> Shares:
    """Probabilities of logits divided by a temperature."""
    if temperature == 1:
        return shares
    most = max(shares)
    return normalised([(p / most) ** (1 / temperature) for p in shares])


def smoothed(stream: Stream | None, seen: Observation, shares: Shares, tau_s: float) -> tuple[Stream, float]:
    """The stream with an answer that counts, in the order of the state's labels, and how much it weighed."""
    if stream is None or stream.used_s is None:
        return Stream(seen.end_s, seen.end_s, shares, seen.valence, seen.arousal), 1.0
    alpha = alpha_of(seen.end_s - stream.used_s, tau_s)
    valence, arousal = (
        blend_if_read(old, new, alpha) for old, new in ((stream.valence, seen.valence), (stream.arousal, seen.arousal))
    )
    return Stream(seen.end_s, seen.end_s, blend(stream.shares, shares, alpha), valence, arousal), alpha


def weight_of(stream: Stream, clock_s: float, name: str, options: TrackerOptions) -> float:
    """How much a stream says by now: its weight, falling to 0 within hold_s of its latest answer."""
    if stream.used_s is None:
        return 0.0
    of = options.stream(name)
    return of.weight * max(0.0, 1 - (clock_s - stream.used_s) / of.hold_s)


def joined(state: TrackerState, options: TrackerOptions) -> tuple[Shares, float | None, float | None]:
    """Probabilities, valence and arousal of all streams at the state's clock; none where there is no evidence."""
    weighed = [(weight_of(s, state.clock_s, name, options), s) for name, s in sorted(state.streams.items())]
    counted = [(weight, stream) for weight, stream in weighed if weight > 0]
    if not counted:
        return (), None, None
    columns = zip(*([weight * p for p in stream.shares] for weight, stream in counted), strict=True)
    shares = normalised([math.fsum(column) for column in columns])
    return shares, _mean([(w, s.valence) for w, s in counted]), _mean([(w, s.arousal) for w, s in counted])


def _mean(weighed: Sequence[tuple[float, float | None]]) -> float | None:
    read = [(weight, value) for weight, value in weighed if value is not None]
    if not read:
        return None
    mean = math.fsum(weight * value for weight, value in read) / math.fsum(weight for weight, _ in read)
    return min(1.0, max(-1.0, mean))
