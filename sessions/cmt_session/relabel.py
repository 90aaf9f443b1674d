"""A session goes on when its answers come from another release: what is known is carried over by the labels' names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cmt_pipeline.synonyms import places
from cmt_session.smoothing import Shares, normalised
from cmt_session.tracker_state import Stream, TrackerState

LEAST_CARRIED = 0.05  # of a distribution; less says nothing about what it was


@dataclass(frozen=True)
class ReleaseChange:
    """Answers come from another release. lost: labels that it has no name for; new: labels that had none before."""

    digest: str
    before: str
    lost: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"digest": self.digest, "before": self.before, "lost": list(self.lost), "new": list(self.new)}


def relabelled(state: TrackerState, labels: Sequence[str], digest: str) -> tuple[TrackerState, ReleaseChange | None]:
    """The state for answers of a release with these labels, and what changed.

    Names are matched as `cmt_pipeline.synonyms` does. A smoothed distribution keeps what lies on labels with a place,
    and starts anew where that is next to nothing; a steady label without a place ends.
    """
    if not state.labels:
        return replace(state, labels=tuple(labels), digest=digest), None
    if state.labels == tuple(labels):
        change = ReleaseChange(digest, state.digest) if digest != state.digest else None
        return replace(state, digest=digest), change
    place = places(state.labels, labels)
    change = ReleaseChange(
        digest,
        state.digest,
        tuple(label for label in state.labels if place[label] is None),
        tuple(label for label in labels if label not in place.values()),
    )
    label, candidate = (place.get(name) if name else None for name in (state.label, state.candidate))
    slow, base = (_carried(shares, state.labels, labels, place) for shares in (state.slow, state.base))
    known = bool(slow and base)
    moved = replace(
        state,
        labels=tuple(labels),
        digest=digest,
        streams={name: _moved(stream, state.labels, labels, place) for name, stream in state.streams.items()},
        label=label,
        since_s=state.since_s if label else state.clock_s,
        candidate=candidate,
        below_since_s=state.below_since_s if label else None,
        slow=slow if known else (),
        base=base if known else (),
        sums=(0.0,) * len(labels) if known else (),
        began=(0.0,) * len(labels) if known else (),
    )
    return moved, change


def _moved(stream: Stream, old: Sequence[str], new: Sequence[str], place: Mapping[str, str | None]) -> Stream:
    shares = _carried(stream.shares, old, new, place)
    return replace(stream, shares=shares) if shares else Stream(stream.seen_s)


def _carried(shares: Shares, old: Sequence[str], new: Sequence[str], place: Mapping[str, str | None]) -> Shares:
    """A distribution over the old labels as one over the new ones; none where too little of it has a place."""
    found = [math.fsum(p for name, p in zip(old, shares, strict=False) if place[name] == label) for label in new]
    return normalised(found) if math.fsum(found) >= LEAST_CARRIED else ()
