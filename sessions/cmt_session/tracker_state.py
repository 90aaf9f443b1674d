"""What the tracker of a session knows: a small value that the caller keeps, bounded whatever happens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cmt_pipeline.labels import checked_labels
from cmt_session.errors import InvalidState
from cmt_session.fields import Fields
from cmt_session.observation import MAX_DIGEST, MAX_LABELS, MAX_TIME_S
from cmt_session.options import STREAM_NAMES

MAX_SUM = 1e6  # of what is beyond the slack
MAX_LABEL = 64  # characters
NOTHING = ""  # the stream of events in which nothing was there


@dataclass(frozen=True)
class Stream:
    """Answers made from one set of modalities.

    seen_s: end of the latest; used_s: of the latest that counted, None before the first; shares: their smoothed
    probabilities, in the order of the state's labels, none before the first; valence, arousal: smoothed.
    """

    seen_s: float
    used_s: float | None = None
    shares: tuple[float, ...] = ()
    valence: float | None = None
    arousal: float | None = None


@dataclass(frozen=True)
class TrackerState:
    """All of a session but what a policy remembers.

    clock_s: end of the latest event; labels: of the latest answer that counted, digest: of its release; options: digest
    of the TrackerOptions. streams: by name. label: the steady one, None without; since_s: when that began. candidate:
    what may become it; candidate_since_s, below_since_s: since when it is at least `enter`, since when the steady one
    is below `exit`. slow, slow_valence: what the trend is measured against. base, sums, began: baseline of the change
    points, and by label what was beyond it, and since when.
    """

    clock_s: float = 0.0
    labels: tuple[str, ...] = ()
    digest: str = ""
    options: str = ""
    streams: Mapping[str, Stream] = field(default_factory=dict)
    label: str | None = None
    since_s: float = 0.0
    candidate: str | None = None
    candidate_since_s: float = 0.0
    below_since_s: float | None = None
    slow: tuple[float, ...] = ()
    slow_valence: float | None = None
    base: tuple[float, ...] = ()
    sums: tuple[float, ...] = ()
    began: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `tracker_from_json` reads."""
        return asdict(self)


def tracker_from_json(values: Any, where: str = "state.tracker") -> TrackerState:
    """Raises InvalidState for anything that no tracker could have made."""
    fields = Fields(values, where, InvalidState, TrackerState.__dataclass_fields__)
    clock_s = fields.number("clock_s", 0, MAX_TIME_S)
    labels = _labels(fields)
    count = len(labels)
    streams = fields.raw("streams", dict, "an object")
    if unknown := set(streams) - STREAM_NAMES - {NOTHING}:
        raise fields.wrong("streams", f"names such as image or audio_text, not {sorted(map(str, unknown))[0][:40]!r}")
    state = TrackerState(
        clock_s,
        labels,
        fields.text("digest", MAX_DIGEST),
        fields.text("options", MAX_DIGEST),
        {name: _stream(value, f"{where}.streams.{name}", count, clock_s) for name, value in streams.items()},
        _label(fields, "label", labels),
        fields.number("since_s", 0, clock_s),
        _label(fields, "candidate", labels),
        fields.number("candidate_since_s", 0, clock_s),
        fields.maybe("below_since_s", 0, clock_s),
        fields.shares("slow", count),
        fields.maybe("slow_valence", -1, 1),
        fields.shares("base", count),
        fields.numbers("sums", count, 0, MAX_SUM),
        fields.numbers("began", count, 0, clock_s),
    )
    if len({bool(part) for part in (state.slow, state.base, state.sums, state.began)}) > 1:
        raise fields.wrong("slow", "slow, base, sums and began together, or none of them")
    return state


def _stream(values: Any, where: str, count: int, clock_s: float) -> Stream:
    fields = Fields(values, where, InvalidState, Stream.__dataclass_fields__)
    seen_s = fields.number("seen_s", 0, clock_s)
    stream = Stream(
        seen_s,
        fields.maybe("used_s", 0, seen_s),
        fields.shares("shares", count),
        fields.maybe("valence", -1, 1),
        fields.maybe("arousal", -1, 1),
    )
    if (stream.used_s is None) is bool(stream.shares):
        raise fields.wrong("used_s", "a time where there are shares, and none where there are none")
    return stream


def _labels(fields: Fields) -> tuple[str, ...]:
    labels = fields.texts("labels", MAX_LABELS, MAX_LABEL)
    try:
        return checked_labels(labels) if labels else ()
    except ValueError:
        raise fields.wrong("labels", "different names, two or more, or none") from None


def _label(fields: Fields, name: str, labels: tuple[str, ...]) -> str | None:
    if name not in fields:
        return None
    label = fields.text(name, MAX_LABEL)
    if label not in labels:
        raise fields.wrong(name, "one of the state's labels")
    return label
