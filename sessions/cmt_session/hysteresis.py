"""The steady label: entered and left at different probabilities, each held for a while."""

from __future__ import annotations

from dataclasses import replace

from cmt_session.options import TrackerOptions
from cmt_session.smoothing import Shares
from cmt_session.tracker_state import TrackerState


def settled(state: TrackerState, shares: Shares, start_s: float, options: TrackerOptions) -> TrackerState:
    """The state after smoothed probabilities at its clock; none mean that there is no evidence.

    start_s: of the media that the latest answer is about: a whole utterance has been holding since its start.
    """
    if not shares:
        return replace(_without(state), candidate=None)
    by_label = dict(zip(state.labels, shares, strict=True))
    top = max(by_label, key=lambda label: by_label[label])
    if by_label[top] < options.enter or top == state.label:
        state = replace(state, candidate=None)
    elif top != state.candidate:
        state = replace(state, candidate=top, candidate_since_s=start_s)
    if state.candidate and state.clock_s - state.candidate_since_s >= options.dwell(state.candidate):
        return replace(state, label=state.candidate, since_s=state.clock_s, candidate=None, below_since_s=None)
    return _left(state, by_label, start_s, options)


def _left(state: TrackerState, by_label: dict[str, float], start_s: float, options: TrackerOptions) -> TrackerState:
    if state.label is None or by_label[state.label] >= options.exit:
        return replace(state, below_since_s=None)
    since_s = start_s if state.below_since_s is None else state.below_since_s
    if state.clock_s - since_s >= options.dwell(state.label):
        return _without(state)
    return replace(state, below_since_s=since_s)


def _without(state: TrackerState) -> TrackerState:
    if state.label is None:
        return state
    return replace(state, label=None, since_s=state.clock_s, below_since_s=None)
