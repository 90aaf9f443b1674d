"""How well shown labels follow a person's state over time: flicker, delay, agreement."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cmt_pipeline.synonyms import canonical
from cmt_session.gate import refusals
from cmt_session.generated import GeneratedSession
from cmt_session.observation import Observation
from cmt_session.options import TrackerOptions
from cmt_session.tracker import Reading, track
from cmt_session.tracker_state import TrackerState

STEP_S = 0.1  # of the time line on which labels are compared
MEAN_S = 3.0
HELD_S = 1.0  # a label that was shown so long without a break counts as detected

Labels = list[str | None]
#: What is shown after each event of a session; None for no label.
Method = Callable[[GeneratedSession, TrackerOptions], Labels]


def likeliest(shares: Mapping[str, float]) -> str | None:
    return max(shares, key=lambda label: shares[label]) if shares else None


def _readings(session: GeneratedSession, options: TrackerOptions) -> Iterator[Reading]:
    return (reading for _, reading in track(TrackerState(), session.events, options))


def argmax(session: GeneratedSession, _: TrackerOptions) -> Labels:
    """The likeliest label of each answer by itself."""
    return _kept(likeliest(seen.probabilities) for seen in session.events)


def mean(session: GeneratedSession, _: TrackerOptions) -> Labels:
    """The likeliest label of the mean of all answers of the last MEAN_S."""
    shown: Labels = []
    recent: deque[Observation] = deque()
    for seen in session.events:
        recent.append(seen)
        while recent[0].end_s < seen.end_s - MEAN_S:
            recent.popleft()
        totals: dict[str, float] = defaultdict(float)
        for one in recent:
            for label, p in one.probabilities.items():
                totals[canonical(label)] += p
        shown.append(likeliest(totals))
    return _kept(iter(shown))


def gated(session: GeneratedSession, options: TrackerOptions) -> Labels:
    """The same of the answers that count."""
    return _kept(None if refusals(seen, options) else likeliest(seen.probabilities) for seen in session.events)


def smoothed(session: GeneratedSession, options: TrackerOptions) -> Labels:
    """The likeliest label after smoothing."""
    return [likeliest(reading.probabilities) for reading in _readings(session, options)]


def tracked(session: GeneratedSession, options: TrackerOptions) -> Labels:
    """The steady label."""
    return [reading.label for reading in _readings(session, options)]


#: What others do; then technique by technique.
METHODS: dict[str, Method] = {
    "mean of the last 3 s, argmax": mean,
    "single answers, argmax": argmax,
    "+ gate": gated,
    "+ smoothing": smoothed,
    "+ hysteresis: tracked": tracked,
}


def _kept(labels: Iterator[str | None]) -> Labels:
    """The last label stays where an event has none."""
    shown: Labels = []
    for label in labels:
        shown.append(label or (shown[-1] if shown else None))
    return shown


@dataclass
class Scores:
    """Of one method over sessions. delays_s: of each change of state that was detected, to the first moment of the
    first HELD_S in which the new label was shown without a break, and those HELD_S."""

    minutes: float = 0.0
    flickers: int = 0
    changes: int = 0
    agreed: float = 0.0
    answered: float = 0.0
    delays_s: list[float] = field(default_factory=list)

    def add(self, session: GeneratedSession, labels: Labels) -> None:
        shown, truth = timelines(session, labels)
        steps = len(truth)
        self.minutes += steps * STEP_S / 60
        self.flickers += int(np.count_nonzero(shown[1:] != shown[:-1]))
        self.agreed += float(np.count_nonzero(shown == truth)) * STEP_S / 60
        self.answered += float(np.count_nonzero(shown != "")) * STEP_S / 60
        for spell in session.truth[1:]:
            self.changes += 1
            begin, end = round(spell.start_s / STEP_S), min(round(spell.end_s / STEP_S), steps)
            place = _first_run(shown[begin:end] == canonical(spell.label), round(HELD_S / STEP_S))
            if place is not None:
                self.delays_s.append(place * STEP_S + HELD_S)

    def row(self) -> dict[str, float]:
        delays = self.delays_s or [float("nan")]
        return {
            "changes_shown_per_min": round(self.flickers / self.minutes, 2),
            "changes_true_per_min": round(self.changes / self.minutes, 2),
            "agreement": round(self.agreed / self.minutes, 4),
            "answered": round(self.answered / self.minutes, 4),
            "agreement_when_answered": round(self.agreed / max(self.answered, 1e-9), 4),
            "delay_p50_s": round(float(np.percentile(delays, 50)), 2),
            "delay_p90_s": round(float(np.percentile(delays, 90)), 2),
            "missed": round(1 - len(self.delays_s) / max(self.changes, 1), 4),
        }


def change_points(sessions: Sequence[GeneratedSession], options: TrackerOptions) -> dict[str, float]:
    """How many of the points that are found are changes of the person's state to that label, and how many of those are
    found while it lasts; how far off their beginning is, and how long after the change they are known."""
    found, true, off_s, delays_s = 0, 0, list[float](), list[float]()
    for session in sessions:
        points = [reading.change for reading in _readings(session, options) if reading.change]
        found, true = found + len(points), true + len(session.truth) - 1
        for spell in session.truth[1:]:
            inside = (p for p in points if spell.start_s <= p.found_s < spell.end_s)
            hit = next((p for p in inside if canonical(p.label) == canonical(spell.label)), None)
            if hit is not None:
                off_s.append(abs(hit.began_s - spell.start_s))
                delays_s.append(hit.found_s - spell.start_s)
    return {
        "found": found,
        "true": true,
        "precision": round(len(delays_s) / max(found, 1), 3),
        "recall": round(len(delays_s) / max(true, 1), 3),
        "began_off_p50_s": round(float(np.median(off_s)), 2) if off_s else float("nan"),
        "delay_p50_s": round(float(np.median(delays_s)), 2) if delays_s else float("nan"),
    }


def timelines(session: GeneratedSession, labels: Labels) -> tuple[NDArray[np.str_], NDArray[np.str_]]:
    """What is shown and what is true at every STEP_S; empty where nothing is shown."""
    times = np.arange(0, session.truth[-1].end_s, STEP_S)
    names = np.array(["", *(canonical(label) if label else "" for label in labels)])
    came = np.array([arrival.at_s for arrival in session.arrivals])
    shown = names[np.searchsorted(came, times, side="right")]
    ends = np.array([spell.end_s for spell in session.truth])
    truths = np.array([canonical(spell.label) for spell in session.truth])
    return shown, truths[np.minimum(np.searchsorted(ends, times, side="right"), len(ends) - 1)]


def _first_run(holds: NDArray[np.bool_], length: int) -> int | None:
    """Where it first holds for so many steps on end."""
    run = 0
    for place, value in enumerate(holds.tolist()):
        run = run + 1 if value else 0
        if run == length:
            return place - length + 1
    return None


def scores(sessions: Sequence[GeneratedSession], method: Method, options: TrackerOptions) -> Scores:
    found = Scores()
    for session in sessions:
        found.add(session, method(session, options))
    return found
