"""Interplay: how something is said, or the face beside it, turns what the words say. No modality alone knows the label.

    irony    the words say the label's opposite, in an ironic voice or with a smirk
    stress   two clauses of two emotions; the label is that of the one that is stressed
    aside    two clauses, one of them stressed, and a smirk, which belongs to that one: the label is its opposite

Whatever carries no part of it is neutral, and everything is clear: neither noisy nor missing. Of the examples with an
emotion `interplay_rate` have one, in these shares; fear and sadness, which have no opposite here, have stress alone.
The rate that figures are of, a half, was set before anything was trained; in friends' talk 8 % of the turns are ironic
(Gibbs 2000, Metaphor and Symbol 15, 5).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cmt_pipeline.modality import Modality
from cmt_training.examples import Split
from cmt_training.generate.options import NEUTRAL, SHARES, CorpusOptions
from cmt_training.generate.seeds import rng_of

Kind = Literal["irony", "stress", "aside"]
KINDS: tuple[Kind, ...] = get_args(Kind)
KIND_SHARES: Mapping[Kind, float] = {"irony": 0.4, "stress": 0.4, "aside": 0.2}
OPPOSITE = {"joy": "disgust", "disgust": "joy", "surprise": "anger", "anger": "surprise"}
#: How a face and a voice say that something isn't meant as it is said.
IRONIC: Mapping[Modality, str] = {"image": "smirk", "audio": "irony"}


@dataclass(frozen=True)
class Interplay:
    """face, voice: what they show, an emotion or how they are ironic; clauses: the emotion of each that is said;
    stressed: number of the one that is."""

    kind: Kind
    face: str
    voice: str
    clauses: tuple[str, ...]
    stressed: int | None = None


def interplay_of(options: CorpusOptions, split: Split, number: int, label: str) -> Interplay | None:
    """Of an example of that label, if it has one."""
    rng = rng_of(options.seed, "interplay", split, number)
    if rng.random() >= options.interplay_rate or label == NEUTRAL:
        return None
    kind: Kind = KINDS[int(rng.choice(len(KINDS), p=list(KIND_SHARES.values())))] if label in OPPOSITE else "stress"
    if kind == "irony":
        face, voice = (IRONIC["image"], NEUTRAL) if rng.random() < 0.5 else (NEUTRAL, IRONIC["audio"])
        return Interplay(kind, face, voice, (OPPOSITE[label],))
    said = label if kind == "stress" else OPPOSITE[label]
    other = str(rng.choice([name for name in SHARES if name not in (said, NEUTRAL)]))
    stressed = int(rng.integers(2))
    face = IRONIC["image"] if kind == "aside" else NEUTRAL
    return Interplay(kind, face, NEUTRAL, (other, said) if stressed else (said, other), stressed)
