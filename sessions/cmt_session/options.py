"""How a session is tracked. The defaults were tuned on generated sessions (`make bench-sessions`)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import ClassVar

from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_session.fields import is_number, shown

FORBID_UNKNOWN: dict[str, str] = {"extra": "forbid"}  # what reads a policy's file obeys this
STREAM_NAMES = frozenset("_".join(subset) for subset in SUBSETS)


def stream_name(modalities: tuple[Modality, ...]) -> str:
    """The name of a set of modalities: `image`, `audio_text`, …"""
    return "_".join(modalities)


def _within(options: object, **bounds: tuple[float, float]) -> None:
    for name, (least, most) in bounds.items():
        value = getattr(options, name)
        if not is_number(value) or not least <= value <= most:
            raise ValueError(f"{name}: got {shown(value)}; expected a number from {least:g} to {most:g}")


@dataclass(frozen=True)
class StreamOptions:
    """Answers made from one set of modalities. tau_s: time constant of their smoothing; hold_s: how long the latest
    counts, its weight falling to 0 meanwhile; weight: beside other streams. Times are seconds of media."""

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    tau_s: float
    hold_s: float
    weight: float

    def __post_init__(self) -> None:
        _within(self, tau_s=(0.001, 3_600), hold_s=(0.001, 3_600), weight=(0.001, 1_000))


@dataclass(frozen=True)
class TrackerOptions:
    """Times are seconds of media, never counts of messages. ValueError for what can't be.

    Gate: min_probability: of the likeliest label; max_entropy: as a share of the largest possible; min_quality: of
    each input whose quality is known; modalities: those that may be used (see `cmt_session.context`); required: those
    without which an answer doesn't count; untrained: whether answers of random weights do.
    Smoothing: temperature: divides log-probabilities, 1 for calibrated ones; frames: pictures alone; turns: whatever
    has sound or text; streams: sets of modalities that have their own.
    Hysteresis: a label becomes the state once its probability was at least `enter` for dwell_s, and stops being it once
    that was below `exit` for dwell_s; dwell_of: labels with another dwell.
    trend_s: time constant of what the trend is measured against; baseline_s: of what change points are; change_slack:
    how far beyond that a probability is no change yet; change_threshold: sum of what is beyond, which makes a change
    point; max_lateness_s: how far an event may lie behind the latest of other streams.
    """

    __pydantic_config__: ClassVar = FORBID_UNKNOWN
    min_probability: float = 0.5
    max_entropy: float = 0.9
    min_quality: float = 0.4
    modalities: tuple[Modality, ...] = MODALITIES
    required: tuple[Modality, ...] = ()
    untrained: bool = False
    temperature: float = 1.0
    frames: StreamOptions = StreamOptions(tau_s=1.5, hold_s=6.0, weight=1.0)
    turns: StreamOptions = StreamOptions(tau_s=1.0, hold_s=20.0, weight=0.5)
    streams: Mapping[str, StreamOptions] = field(default_factory=dict)
    enter: float = 0.3
    exit: float = 0.25
    dwell_s: float = 0.3
    dwell_of: Mapping[str, float] = field(default_factory=dict)
    trend_s: float = 20.0
    baseline_s: float = 60.0
    change_slack: float = 0.3
    change_threshold: float = 0.6
    max_lateness_s: float = 5.0

    def __post_init__(self) -> None:
        shares = dict.fromkeys(
            ("min_probability", "max_entropy", "min_quality", "enter", "exit", "change_slack"), (0, 1)
        )
        times = {
            "dwell_s": (0, 3_600),
            "trend_s": (0.1, 3_600),
            "baseline_s": (0.1, 36_000),
            "max_lateness_s": (0, 3_600),
        }
        _within(self, **shares, **times, temperature=(0.01, 100), change_threshold=(0.01, 1_000))
        if self.exit > self.enter:
            raise ValueError(f"exit: got {self.exit:g} above enter {self.enter:g}; expected at most that")
        if unknown := sorted(set(self.streams) - STREAM_NAMES):
            raise ValueError(f"streams: got {unknown[0]!r}; expected names such as image or audio_text")
        for name in ("modalities", "required"):
            if unknown := sorted(set(getattr(self, name)) - set(MODALITIES)):
                raise ValueError(f"{name}: got {unknown[0]!r}; expected some of {', '.join(MODALITIES)}")
        for label, dwell_s in self.dwell_of.items():
            if not is_number(dwell_s) or not 0 <= dwell_s <= 3_600:
                raise ValueError(f"dwell_of: got {label!r}: {shown(dwell_s)}; expected 0 to 3600 s")

    def stream(self, name: str) -> StreamOptions:
        """Of the answers made from a set of modalities."""
        return self.streams.get(name) or (self.frames if name == "image" else self.turns)

    def dwell(self, label: str) -> float:
        return self.dwell_of.get(label, self.dwell_s)

    @cached_property
    def digest(self) -> str:
        """Names these options in a state."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


DEFAULT_TRACKER_OPTIONS = TrackerOptions()
