"""Affect over time: gate, smoothing, hysteresis, trend and change points, one observation after another.

A pure function of state and observation: no clock, no randomness, nothing kept here. Time is that of the media.

Order. Each set of modalities is a stream of its own. In a stream, an event that ends where its latest did is a
duplicate, and one that ends before is late: neither changes anything. Between streams an event may lie
`max_lateness_s` behind the latest of all: a turn is answered after pictures that were taken later. It counts at its own
time for its stream's smoothing; the session's clock doesn't go back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from cmt_session.changes import ChangePoint, Trend, changed, followed
from cmt_session.gate import entropy, refusals
from cmt_session.hysteresis import settled
from cmt_session.observation import Observation
from cmt_session.options import DEFAULT_TRACKER_OPTIONS, TrackerOptions, stream_name
from cmt_session.relabel import ReleaseChange, relabelled
from cmt_session.smoothing import Shares, joined, smoothed, tempered
from cmt_session.tracker_state import Stream, TrackerState

#: What became of an observation. Late ones and duplicates change nothing.
Outcome = Literal["used", "gated", "late", "duplicate"]
#: Whether there is a steady label; if not: whether anything is known.
Standing = Literal["steady", "unsettled", "no_evidence"]


@dataclass(frozen=True)
class Reading:
    """What is known of a person after an observation.

    clock_s: end of the latest event. outcome: of this one, refused: why it doesn't count (`cmt_session.gate`).
    standing: `steady` with a label, since since_s; `unsettled` where answers don't agree on one for long enough;
    `no_evidence` where none that counts is recent enough: that isn't neutral. probabilities: smoothed, empty without
    evidence; certainty: of the steady label, else of the likeliest; spread: entropy as a share of the largest; valence,
    arousal: smoothed. trend: changes a minute. change: a change point found at this event. release: the answer came
    from another release than the one before. options_changed: the state was made with other options.
    """

    clock_s: float
    outcome: Outcome
    refused: tuple[str, ...] = ()
    standing: Standing = "no_evidence"
    label: str | None = None
    since_s: float = 0.0
    probabilities: dict[str, float] = field(default_factory=dict)
    certainty: float = 0.0
    spread: float = 1.0
    valence: float | None = None
    arousal: float | None = None
    trend: Trend | None = None
    change: ChangePoint | None = None
    release: ReleaseChange | None = None
    options_changed: bool = False

    def to_json(self) -> dict[str, Any]:
        """Of types that `json.dumps` takes."""
        parts = {name: vars(part) if part else None for name, part in (("trend", self.trend), ("change", self.change))}
        release = self.release.to_json() if self.release else None
        return {**vars(self), "refused": list(self.refused), **parts, "release": release}


def observe(
    state: TrackerState, seen: Observation, options: TrackerOptions = DEFAULT_TRACKER_OPTIONS
) -> tuple[TrackerState, Reading]:
    """The next state, and what is known now."""
    before = state
    name = stream_name(seen.modalities)
    if (order := _out_of_order(state, name, seen.end_s, options)) is not None:
        return state, _reading(state, joined(state, options), order)
    state = replace(state, clock_s=max(state.clock_s, seen.end_s), options=options.digest)
    refused = refusals(seen, options)
    release: ReleaseChange | None = None
    alpha: float = 0.0
    raw: Shares = ()
    if refused:
        state = _with(state, name, replace(state.streams.get(name) or Stream(seen.end_s), seen_s=seen.end_s))
    else:
        state, release = relabelled(state, tuple(seen.probabilities), seen.digest)
        raw = tempered(tuple(seen.probabilities.values()), options.temperature)
        stream, alpha = smoothed(state.streams.get(name), seen, raw, options.stream(name).tau_s)
        state = _with(state, name, stream)
    known = joined(state, options)
    if raw or not known[0]:  # what doesn't count can end a state, never begin one
        state = settled(state, known[0], seen.start_s, options)
    state, trend = followed(state, known[0], known[1], state.clock_s - before.clock_s, options)
    change: ChangePoint | None = None
    if raw and known[0]:
        state, change = changed(state, raw, known[0], seen.start_s, alpha, options)
    reading = _reading(state, known, "gated" if refused else "used")
    stale = bool(before.options) and before.options != options.digest
    return state, replace(reading, refused=refused, trend=trend, change=change, release=release, options_changed=stale)


def track(
    state: TrackerState, events: Iterable[Observation], options: TrackerOptions = DEFAULT_TRACKER_OPTIONS
) -> Iterator[tuple[TrackerState, Reading]]:
    """The state and the reading after each event."""
    for seen in events:
        state, reading = observe(state, seen, options)
        yield state, reading


def _out_of_order(
    state: TrackerState, name: str, end_s: float, options: TrackerOptions
) -> Literal["late", "duplicate"] | None:
    stream = state.streams.get(name)
    if stream is not None and end_s <= stream.seen_s:
        return "duplicate" if end_s == stream.seen_s else "late"
    return "late" if end_s < state.clock_s - options.max_lateness_s else None


def _with(state: TrackerState, name: str, stream: Stream) -> TrackerState:
    return replace(state, streams={**state.streams, name: stream})


def _reading(state: TrackerState, known: tuple[Shares, float | None, float | None], outcome: Outcome) -> Reading:
    shares, valence, arousal = known
    if not shares:
        return Reading(state.clock_s, outcome, since_s=state.since_s)
    by_label = dict(zip(state.labels, shares, strict=True))
    return Reading(
        state.clock_s,
        outcome,
        standing="steady" if state.label else "unsettled",
        label=state.label,
        since_s=state.since_s,
        probabilities=by_label,
        certainty=by_label[state.label] if state.label else max(shares),
        spread=entropy(shares),
        valence=valence,
        arousal=arousal,
    )
