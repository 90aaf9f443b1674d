"""Generated sessions with known truth: people whose state changes at known moments, read through noise and drop-outs.

Nobody's data, and no claim about people: a model of what a session has to cope with. An answer is made of scores, one a
label: `separation` for what the person shows (fading over between two states), and Gaussian noise of variance 1, a part
of which belongs to the person, a part drifts over seconds, and the rest is new each time. Of such scores
softmax(separation x score) is the calibrated answer, so that each single one is as sure as it may be.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_pipeline.labels import DEFAULT_LABEL_SET, labels_of
from cmt_pipeline.modality import Modality
from cmt_session.observation import Observation

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scenario:
    """What sessions are like.

    seconds: of each; spell_s: how long a state lasts, drawn evenly; neutral: how often neutral is the next one.
    frames_hz: pictures a second, 0 for none; frame_separation: how far a picture's right label stands out, in standard
    deviations; turn_modalities: of an utterance, none for no turns; turn_separation; turn_s, pause_s: their lengths.
    fade_s: how long a face takes from one state to the next. person, drift: parts of the noise's variance; drift_s: its
    time constant. dropouts_per_min, dropout_s: the camera sees nothing, or what is too poor.
    frame_delay_s, turn_delay_s: from the end of the media to the answer.
    labels: of the release; later_labels: of the one that answers from half-time on, the same by default.
    """

    seconds: float = 180.0
    spell_s: tuple[float, float] = (8.0, 40.0)
    neutral: float = 0.4
    frames_hz: float = 3.0
    frame_separation: float = 1.7
    turn_modalities: tuple[Modality, ...] = ("image", "audio", "text")
    turn_separation: float = 2.6
    turn_s: tuple[float, float] = (1.5, 5.0)
    pause_s: tuple[float, float] = (2.0, 8.0)
    fade_s: float = 0.8
    person: float = 0.1
    drift: float = 0.3
    drift_s: float = 1.5
    dropouts_per_min: float = 1.0
    dropout_s: tuple[float, float] = (3.0, 15.0)
    frame_delay_s: float = 0.1
    turn_delay_s: float = 0.4
    labels: tuple[str, ...] = labels_of(DEFAULT_LABEL_SET)
    later_labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spell:
    """A state that a person was in."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Arrival:
    """An answer, and when it came, in seconds of the session."""

    at_s: float
    seen: Observation


@dataclass(frozen=True)
class GeneratedSession:
    """truth: the spells, without gaps; arrivals: in the order in which they came."""

    truth: tuple[Spell, ...]
    arrivals: tuple[Arrival, ...]

    @property
    def events(self) -> list[Observation]:
        return [arrival.seen for arrival in self.arrivals]


def generated_session(seed: int, scenario: Scenario, truth: Sequence[Spell] = ()) -> GeneratedSession:
    """The same for the same seed. truth: the spells, drawn by default."""
    rng = np.random.default_rng(seed)
    spells = tuple(truth or _spells(rng, scenario))
    outages = list(_stretches(rng, scenario))
    looks, says = _Person(rng, scenario, spells), _Person(rng, scenario, spells)
    arrivals = [*_frames(rng, scenario, looks, outages), *_turns(rng, scenario, says, outages)]
    return GeneratedSession(spells, tuple(sorted(arrivals, key=lambda arrival: arrival.at_s)))


class _Person:
    """What a person shows to one kind of input, with that kind's own noise."""

    def __init__(self, rng: np.random.Generator, scenario: Scenario, spells: tuple[Spell, ...]) -> None:
        self._rng, self._of, self._spells = rng, scenario, spells
        self._usual = rng.normal(0, math.sqrt(scenario.person), len(scenario.labels))
        self._drift = rng.normal(0, 1, len(scenario.labels))
        self._drifted_s = 0.0

    def shown(self, start_s: float, end_s: float) -> Floats:
        """[labels], together 1: how much of a stretch of time showed each label."""
        times = np.minimum(np.linspace(start_s, end_s, 9), self._spells[-1].end_s - 1e-6)
        shown = np.zeros(len(self._of.labels))
        for before, spell in itertools.pairwise((None, *self._spells)):
            assert spell is not None
            inside = times[(times >= spell.start_s) & (times < spell.end_s)]
            new = np.clip((inside - spell.start_s) / self._of.fade_s, 0, 1) if before else np.ones(len(inside))
            shown[self._of.labels.index(spell.label)] += new.sum()
            if before:
                shown[self._of.labels.index(before.label)] += (1 - new).sum()
        shares: Floats = shown / shown.sum()
        return shares

    def answer(self, start_s: float, end_s: float, separation: float) -> Floats:
        """[labels], probabilities."""
        kept = math.exp(-(end_s - self._drifted_s) / self._of.drift_s)
        fresh = self._rng.normal(0, 1, len(self._of.labels))
        self._drift = kept * self._drift + math.sqrt(1 - kept**2) * fresh
        self._drifted_s = end_s
        noise = self._rng.normal(0, math.sqrt(1 - self._of.person - self._of.drift), len(self._of.labels))
        noise += self._usual + math.sqrt(self._of.drift) * self._drift
        return _softmax(separation * (separation * self.shown(start_s, end_s) + noise))


def _spells(rng: np.random.Generator, scenario: Scenario) -> Iterator[Spell]:
    begin_s, label = 0.0, "neutral"
    while begin_s < scenario.seconds:
        end_s = min(scenario.seconds, begin_s + rng.uniform(*scenario.spell_s))
        yield Spell(label, begin_s, end_s)
        others = [name for name in scenario.labels if name not in (label, "neutral")]
        neutral_next = label != "neutral" and rng.random() < scenario.neutral
        label = "neutral" if neutral_next else str(rng.choice(others))
        begin_s = end_s


def _stretches(rng: np.random.Generator, scenario: Scenario) -> Iterator[tuple[float, float, bool]]:
    """Outages of the camera: start, end, and whether it sees something all the same, too poor to be read."""
    if not scenario.dropouts_per_min:
        return
    begin_s = rng.exponential(60 / scenario.dropouts_per_min)
    while begin_s < scenario.seconds:
        end_s = begin_s + rng.uniform(*scenario.dropout_s)
        yield begin_s, end_s, bool(rng.random() < 0.5)
        begin_s = end_s + rng.exponential(60 / scenario.dropouts_per_min)


def _frames(
    rng: np.random.Generator, scenario: Scenario, person: _Person, outages: list[tuple[float, float, bool]]
) -> Iterator[Arrival]:
    count = int(scenario.seconds * scenario.frames_hz)
    for at_s in ((number + 1) / scenario.frames_hz for number in range(count)):
        poor = [through for begin_s, end_s, through in outages if begin_s <= at_s < end_s]
        came_s = at_s + scenario.frame_delay_s
        if not poor:
            shares = person.answer(at_s, at_s, scenario.frame_separation)
            yield _arrival(scenario, came_s, at_s, at_s, ("image",), shares, rng.uniform(0.6, 1))
        elif poor[0]:  # an answer as sure as others, of a picture that shows nothing
            shares = _softmax(scenario.frame_separation * rng.normal(0, 1.5, len(scenario.labels)))
            yield _arrival(scenario, came_s, at_s, at_s, ("image",), shares, rng.uniform(0, 0.35))
        else:
            yield Arrival(came_s, Observation(at_s, at_s))


def _turns(
    rng: np.random.Generator, scenario: Scenario, person: _Person, outages: list[tuple[float, float, bool]]
) -> Iterator[Arrival]:
    if not scenario.turn_modalities:
        return
    start_s = rng.uniform(*scenario.pause_s)
    while (end_s := start_s + rng.uniform(*scenario.turn_s)) < scenario.seconds:
        dark = any(begin_s < end_s and start_s < until_s for begin_s, until_s, _ in outages)
        modalities = tuple(m for m in scenario.turn_modalities if m != "image" or not dark)
        shares = person.answer(start_s, end_s, scenario.turn_separation)
        yield _arrival(scenario, end_s + scenario.turn_delay_s, start_s, end_s, modalities, shares, 1.0)
        start_s = end_s + rng.uniform(*scenario.pause_s)


def _arrival(
    scenario: Scenario,
    came_s: float,
    start_s: float,
    end_s: float,
    modalities: tuple[Modality, ...],
    shares: Floats,
    quality: float,
) -> Arrival:
    later = end_s >= scenario.seconds / 2 and bool(scenario.later_labels)
    labels = scenario.later_labels if later else scenario.labels
    values = [round(p, 6) for p in shares.tolist()]
    values += [0.0] * (len(labels) - len(values))
    quality_of: dict[Modality, float] = {"image": round(quality, 3)} if "image" in modalities else {}
    digest = "release two" if later else "release one"
    shares_of = dict(zip(labels, values, strict=True))
    seen = Observation(round(start_s, 3), round(end_s, 3), modalities, shares_of, quality=quality_of, digest=digest)
    return Arrival(came_s, seen)


def _softmax(scores: Floats) -> Floats:
    raised = np.exp(scores - scores.max())
    shares: Floats = raised / raised.sum()
    return shares
