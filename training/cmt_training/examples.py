"""Example: one person's moment with its label, wherever it comes from; DataSet: examples and what was left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cmt_pipeline.modality import Modality

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Media:
    """Where an image or a sound lies: a file of its own, or a moment or stretch of a video. start_s, end_s: seconds.

    crop: the half of a split screen, or a box of pixels (left, top, right, bottom), that shows the person; offset: the
    byte at which a table's row begins that holds the pixels themselves, as FER2013's does.
    """

    path: Path
    start_s: float | None = None
    end_s: float | None = None
    crop: Literal["left", "right"] | tuple[int, int, int, int] | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Example:
    """label: a name of the data set's label set. A modality that isn't there is None.

    cues: what a modality shows, where a source measured that: facial actions, prosody; as many for every example.
    speaker: who is seen and heard, so that people can be kept apart between splits; tags: whatever else the source
    says, for evaluation by group (`contradicts`: the modality that says something else than the label, …).
    """

    id: str
    split: Split
    label: str
    image: Media | None = None
    audio: Media | None = None
    text: str | None = None
    valence: float | None = None
    arousal: float | None = None
    cues: Mapping[Modality, tuple[float, ...]] = field(default_factory=dict)
    speaker: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """name: `meld`, `emodb`, `faces.csv`, …; skipped: reason -> ids or files that were left out for it.

    notes: what whoever reads figures of it has to know: who was split from whom, what was paired, how labels were read.
    """

    name: str
    label_set: str
    examples: tuple[Example, ...]
    skipped: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def of(self, split: Split) -> tuple[Example, ...]:
        return tuple(example for example in self.examples if example.split == split)


class DataError(ValueError):
    """Data that can't be used; the message names the file, what was got, what was expected and how to fix it."""
