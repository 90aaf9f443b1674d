"""Who is seen and heard: one face and one voice, of one split alone."""

from __future__ import annotations

from dataclasses import dataclass

from cmt_training.examples import Split
from cmt_training.generate.faces import Face, face_of
from cmt_training.generate.seeds import rng_of
from cmt_training.generate.voices import Voice, voice_of


@dataclass(frozen=True)
class Person:
    name: str
    face: Face
    voice: Voice


def person_of(seed: int, split: Split, number: int) -> Person:
    """The same person in every corpus of a seed."""
    return Person(
        name=f"{split}-person-{number:03d}",
        face=face_of(rng_of(seed, "face", split, number)),
        voice=voice_of(rng_of(seed, "voice", split, number)),
    )
