"""What a generated corpus is made of: sizes, rates, and the emotions' shares, valence and arousal."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from cmt_training.examples import SPLITS, DataError, Split

LABEL_SET = "meld"
NEUTRAL = "neutral"
#: label -> its share of the examples; nearer to even than MELD's.
SHARES = {
    "neutral": 0.25,
    "surprise": 0.125,
    "fear": 0.11,
    "sadness": 0.125,
    "joy": 0.15,
    "disgust": 0.11,
    "anger": 0.13,
}
#: label -> (valence, arousal) on [-1, 1]; places on the circumplex (Russell, 1980), our own choice.
AFFECT = {
    "neutral": (0.0, -0.05),
    "surprise": (0.2, 0.7),
    "fear": (-0.6, 0.65),
    "sadness": (-0.65, -0.45),
    "joy": (0.8, 0.5),
    "disgust": (-0.6, 0.2),
    "anger": (-0.55, 0.75),
}

Variation = Literal["noise", "missing", "contradiction"]


@dataclass(frozen=True)
class CorpusOptions:
    """Rates are probabilities. Raises DataError for values that no corpus can have.

    Whatever a rate decides, the examples' labels, people, sentences and expressions stay the same, and a higher rate
    touches every example that a lower one touches: corpora of other rates can be compared example by example.
    """

    items: int = 4000
    seed: int = 0
    validation_share: float = 0.1
    test_share: float = 0.2
    splits: tuple[Split, ...] = SPLITS  # those that are made
    people: tuple[int, int, int] = (120, 16, 32)  # of training, validation, test
    missing_rate: float = 0.05  # of each modality of each example; one always stays
    noisy_rate: float = 0.2  # of each modality of each example
    noise_level: float = 0.6  # how strong that noise is, 0 to 1
    contradiction_rate: float = 0.15  # of the examples with an emotion; one modality shows another one than the label
    interplay_rate: float = 0.0  # of the examples with an emotion (see interplay.py)
    image_side_px: int = 224

    def __post_init__(self) -> None:
        rates = ("missing_rate", "noisy_rate", "noise_level", "contradiction_rate", "interplay_rate")
        for name in ("validation_share", "test_share", *rates):
            if not 0 <= getattr(self, name) <= 1:
                raise DataError(f"{name}: got {getattr(self, name)}; expected 0 to 1")
        if min(self.people) < 1 or not 16 <= self.image_side_px <= 1024 or not self.splits:
            raise DataError("expected at least 1 person a split, 16 to 1024 pixels and a split")
        if min(self.count(split) for split in self.splits) < 1:
            raise DataError(f"{self.items} items leave a split empty; ask for more, or for other shares")

    def count(self, split: Split) -> int:
        """Examples of a split, whether it is made or not."""
        validation, test = round(self.items * self.validation_share), round(self.items * self.test_share)
        return {"train": self.items - validation - test, "validation": validation, "test": test}[split]

    def people_of(self, split: Split) -> int:
        return self.people[SPLITS.index(split)]


def test_variation(options: CorpusOptions, variation: Variation, level: float) -> CorpusOptions:
    """Options of the test split alone, with the same people and examples, and one disturbance at a level of 0 to 1.

    noise: the strength of noise on every modality; missing: the rate of missing modalities; contradiction: the rate at
    which one modality of an example contradicts. The other disturbances and interplay are off: at level 0 all agree.
    """
    off = {"missing_rate": 0.0, "noisy_rate": 0.0, "contradiction_rate": 0.0, "interplay_rate": 0.0}
    clean = replace(options, splits=("test",), **off)  # type: ignore[arg-type]  # of mixed fields
    if variation == "noise":
        return replace(clean, noisy_rate=1.0 if level else 0.0, noise_level=level)
    if variation == "missing":
        return replace(clean, missing_rate=level)
    return replace(clean, contradiction_rate=level)
