"""Options and steps of an upgrade."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cmt_rollout.errors import Ended

Step = Literal[
    "recover",
    "preflight",
    "load",
    "golden",
    "drift",
    "canary",
    "flip",
    "watch",
    "retire",
    "rollback",
]
#: In the order of an upgrade; `rollback` comes in their place when one of them says no.
STEPS: tuple[Step, ...] = (
    "recover",
    "preflight",
    "load",
    "golden",
    "drift",
    "canary",
    "flip",
    "watch",
    "retire",
)

State = Literal["started", "progress", "passed", "failed"]


@dataclass(frozen=True)
class Event:
    """What an upgrade is doing: one line for people, and for a log."""

    step: Step
    target: str
    state: State
    detail: str = ""
    seconds: float = 0.0


Report = Callable[[Event], None]


class Following:
    """A report that what happens within a step can be said to, as progress of that step.

    One that can't be written any more (a pipe whose reader is gone) raises Ended once, and is silent from then on: what
    leads back needs no listener. expected: False where nobody need listen, so that it ends nothing.
    """

    def __init__(self, report: Report) -> None:
        self._report = report
        self._last = Event("recover", "", "started")  # before the first step its leftovers are waited for
        self._said = ""
        self._lost = False
        self.expected = True

    def __call__(self, event: Event) -> None:
        self._last, self._said = event, ""
        self._tell(event)

    def say(self, detail: str) -> None:
        """Progress; the same words twice in a row are said once."""
        if detail != self._said:
            self._said = detail
            self._tell(replace(self._last, state="progress", detail=detail))

    def _tell(self, event: Event) -> None:
        if self._lost:
            return
        try:
            self._report(event)
        except (OSError, SystemExit) as error:  # rich ends the process where its reader is gone
            self._lost = True
            if self.expected:
                gone = isinstance(error, (BrokenPipeError, SystemExit))
                why = "its reader is gone" if gone else str(error)
                raise Ended(f"the report can't be written any more: {why}") from error


@dataclass(frozen=True)
class RolloutOptions:
    """How much an upgrade asks of a release before and after it takes the traffic.

    canary_share: of the requests of clients that follow it, for canary_s; watch_s: how long the release is watched
    once it has all traffic, before the old one goes; keep: leave the old one loaded after that, so that a rollback is
    instant; requests: folder of files like those that users send, image_audio_text triples by name order (generated
    ones without it), of which `samples` are asked; max_flips: share of answers whose label may differ from the
    running release's; max_distance: mean total variation distance of their probabilities, from 0 to 1;
    max_slowdown: median latency over the running release's, asked in turns; max_errors: share of requests that may
    fail beyond the running release's own.
    """

    canary_share: float = 0.1
    canary_s: float = 10.0
    watch_s: float = 10.0
    keep: bool = False
    requests: Path | None = None
    samples: int = 28
    max_flips: float = 0.2
    max_distance: float = 0.2
    max_slowdown: float = 2.0
    max_errors: float = 0.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        for name in ("canary_share", "max_flips", "max_distance", "max_errors"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected a share from 0 to 1")
        for name in ("canary_s", "watch_s", "drain_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}: got {getattr(self, name)}; expected seconds, 0 or more")
        if self.max_slowdown < 1:
            raise ValueError(f"max_slowdown: got {self.max_slowdown}; expected 1 or more")
        if self.samples < 7:
            raise ValueError(f"samples: got {self.samples}; expected 7 or more, one for each subset of modalities")
