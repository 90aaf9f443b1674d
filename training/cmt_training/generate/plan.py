"""What an example shows: its label, and for each modality the emotion, how strongly, and what disturbs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cmt_pipeline.modality import MODALITIES, Modality
from cmt_training.examples import Split
from cmt_training.generate.interplay import Interplay, interplay_of
from cmt_training.generate.options import AFFECT, NEUTRAL, SHARES, CorpusOptions
from cmt_training.generate.seeds import rng_of

AFFECT_SPREAD = 0.08
CLEAR = 0.7  # the least strength where one modality contradicts, so that two agreeing outvote it; and of interplay
#: Strengths of an expression are drawn from Beta(a, b): some faces, voices and sentences say little.
STRENGTH = {"image": (3.0, 1.0), "audio": (3.0, 1.0), "text": (2.0, 1.3)}


@dataclass(frozen=True)
class Shown:
    """What one modality shows: an emotion, or that it is ironic. strength, noise: 0 to 1; noise 0 is none."""

    emotion: str
    strength: float
    noise: float
    missing: bool


@dataclass(frozen=True)
class Plan:
    """One example before anything is drawn or spoken. person: number within the split."""

    split: Split
    number: int
    person: int
    label: str
    valence: float
    arousal: float
    contradicts: Modality | None
    interplay: Interplay | None
    shown: Mapping[Modality, Shown]

    @property
    def id(self) -> str:
        return f"{self.split}-{self.number:05d}"


def plan_of(options: CorpusOptions, split: Split, number: int) -> Plan:
    """The plan of one example; the same whatever other examples are made."""
    label = _label(options, split, number)
    rng = rng_of(options.seed, "plan", split, number)
    valence, arousal = np.clip(np.array(AFFECT[label]) + rng.normal(0, AFFECT_SPREAD, 2), -1, 1)
    person = int(rng.integers(options.people_of(split)))
    contradicts = MODALITIES[int(rng.integers(len(MODALITIES)))]
    other = str(rng.choice([name for name in SHARES if name not in (label, NEUTRAL)]))
    strengths = {modality: float(rng.beta(*STRENGTH[modality])) for modality in MODALITIES}
    places = rng.random(1 + 3 * len(MODALITIES))  # each against its rate
    # A neutral person with one strong expression can't be told from an emotional one with two faint ones.
    interplay = interplay_of(options, split, number, label)
    contradicting = bool(places[0] < options.contradiction_rate and label != NEUTRAL and not interplay)
    clear = contradicting or interplay is not None
    emotions = dict.fromkeys(MODALITIES, label)
    if contradicting:
        emotions[contradicts] = other
    if interplay:
        emotions |= {"image": interplay.face, "audio": interplay.voice, "text": interplay.clauses[0]}
    noisy, missing, severity = places[1:].reshape(3, -1)
    stays = int(np.argmax(missing))
    shown = {}
    for index, modality in enumerate(MODALITIES):
        shown[modality] = Shown(
            emotion=emotions[modality],
            strength=CLEAR + (1 - CLEAR) * strengths[modality] if clear else strengths[modality],
            noise=_noise(options, noisy[index], severity[index]) if not clear else 0.0,
            missing=bool(missing[index] < options.missing_rate and index != stays and not clear),
        )
    return Plan(
        split,
        number,
        person,
        label,
        round(float(valence), 4),
        round(float(arousal), 4),
        contradicts if contradicting else None,
        interplay,
        shown,
    )


def _label(options: CorpusOptions, split: Split, number: int) -> str:
    """Labels come in their exact shares, in an order of chance."""
    order = rng_of(options.seed, "labels", split).permutation(options.count(split))
    place = (order[number] + 0.5) / len(order)
    bounds = np.cumsum(list(SHARES.values()))
    return list(SHARES)[min(int(np.searchsorted(bounds, place)), len(SHARES) - 1)]


def _noise(options: CorpusOptions, place: float, severity: float) -> float:
    return options.noise_level * (0.6 + 0.4 * float(severity)) if place < options.noisy_rate else 0.0


def tags_of(plan: Plan) -> dict[str, str]:
    """contradicts: a modality, where one does; interplay: its kind; noisy, missing: modalities, where there are any."""
    found = {
        "contradicts": plan.contradicts or "",
        "interplay": plan.interplay.kind if plan.interplay else "",
        "noisy": ",".join(name for name, shown in plan.shown.items() if shown.noise and not shown.missing),
        "missing": ",".join(name for name, shown in plan.shown.items() if shown.missing),
    }
    if plan.contradicts:
        found["shows"] = plan.shown[plan.contradicts].emotion
    return {name: value for name, value in found.items() if value}
