"""Batches of a prepared data set.

Whatever is random about an item (what of it is dropped, how it is changed) follows from seed, epoch and item alone, and
the order from seed and epoch: a step is the same whoever runs it, how often training was interrupted before, and in
however many processes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_pipeline.buckets import HOP, RECEPTIVE_FIELD
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.tensors import Array
from cmt_training.augment import changed_pixels, changed_sound, part_of
from cmt_training.prepare import IMAGE_SHAPE, PIXELS_FILE, SAMPLES_FILE, TOKENS_FILE, Item, Prepared, as_pixel_values

MIXED = 16  # batches that are filled from one run of shuffled items, sorted by length
EVERYTHING = np.ones(len(MODALITIES), np.int64)


@dataclass(frozen=True)
class Batch:
    """inputs: ready tensors by name; presence [n, 3]; labels [n]; valence_arousal [n, 2], NaN where there is none.

    cues: modality -> [n, cues], of zero mean and unit variance over the training items, NaN where there are none.
    """

    inputs: dict[str, Tensor]
    presence: Tensor
    labels: Tensor
    valence_arousal: Tensor
    cues: dict[Modality, Tensor]


@dataclass(frozen=True)
class Randomness:
    """Of one epoch. modality_dropout: chance of an item to lose a modality; augment: whether media are changed."""

    seed: int
    epoch: int
    modality_dropout: float
    augment: bool

    def of(self, item: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, self.epoch, item))


class Source(Protocol):
    """Where the tensors of one modality come from."""

    def read(self, items: Sequence[Item | None], generators: Sequence[np.random.Generator] | None) -> dict[str, Tensor]:
        """Tensors [n, …] by name; zeros for None. generators: one an item, for random changes."""


class Pixels:
    def __init__(self, prepared: Prepared) -> None:
        self._pixels, self._config = prepared.array(PIXELS_FILE), prepared.preprocess

    def read(self, items: Sequence[Item | None], generators: Sequence[np.random.Generator] | None) -> dict[str, Tensor]:
        pixels = np.zeros((len(items), *IMAGE_SHAPE), np.uint8)
        for row, item in enumerate(items):
            if item is not None:
                found = self._pixels[item.image]
                pixels[row] = changed_pixels(found, generators[row]) if generators else found
        return {"pixel_values": torch.from_numpy(as_pixel_values(pixels, self._config))}


class Sounds:
    """Padded to the longest of the batch: padding changes no answer. share: of a sound that training hears."""

    def __init__(self, prepared: Prepared, share: float = 1.0) -> None:
        self._samples, self._share = prepared.array(SAMPLES_FILE), share

    def read(self, items: Sequence[Item | None], generators: Sequence[np.random.Generator] | None) -> dict[str, Tensor]:
        sounds: list[Array] = []
        for row, item in enumerate(items):
            start, count = item.audio if item is not None and item.audio else (0, 0)
            sound = self._samples[start : start + count].astype(np.float32)
            if generators and count:
                part = part_of(sound, self._share, generators[row])
                sounds.append(changed_sound(part, generators[row]))
            else:
                sounds.append(sound)
        padded, counts = padded_rows(sounds, RECEPTIVE_FIELD)
        return {"input_values": padded, "num_samples": counts[:, None]}


class Words:
    """Token ids."""

    def __init__(self, prepared: Prepared) -> None:
        self._ids = prepared.array(TOKENS_FILE)

    def read(self, items: Sequence[Item | None], _: Sequence[np.random.Generator] | None) -> dict[str, Tensor]:
        spans = [item.text if item is not None and item.text else (0, 0) for item in items]
        padded, counts = padded_rows([self._ids[start : start + count].astype(np.int64) for start, count in spans])
        # One token of an absent text stays open: its features are masked later, and a softmax needs one to be defined.
        mask = torch.arange(padded.shape[1])[None, :] < counts[:, None].clamp(min=1)
        return {"input_ids": padded, "attention_mask": mask.to(torch.int64)}


class Reader:
    """Reads batches out of one source a modality.

    Of a modality that any item of the data has, every batch has tensors, so that every step gives a gradient to every
    encoder, and every process runs each of them equally often.
    """

    def __init__(self, prepared: Prepared, sources: Mapping[Modality, Source]) -> None:
        self.items, self.sources = prepared.items, sources
        self._there = [any(item.has(m) for item in prepared.items) for m in MODALITIES]
        names = labels_of(prepared.label_set)
        self._cues = {m: found for m in MODALITIES if (found := standard_cues(prepared.items, m)) is not None}
        self._labels = np.array([names.index(item.label) for item in prepared.items], np.int64)

    def batch(
        self, indices: Sequence[int], randomness: Randomness | None = None, only: NDArray[np.int64] | None = None
    ) -> Batch:
        """The items of these indices. only [3]: modalities that may be there; others are left out."""
        generators = [randomness.of(index) for index in indices] if randomness is not None else None
        items = [self.items[index] for index in indices]
        presence = np.array([[item.has(m) for m in MODALITIES] for item in items], np.int64)
        if only is not None:
            presence *= only
        if randomness is not None and generators is not None:
            presence = np.stack([_dropped(p, randomness, g) for p, g in zip(presence, generators, strict=True)])
        changing = generators if randomness is not None and randomness.augment else None
        inputs: dict[str, Tensor] = {}
        for column, m in enumerate(MODALITIES):
            if self._there[column] and (only is None or only[column]):
                present = [item if there else None for item, there in zip(items, presence[:, column], strict=True)]
                inputs |= self.sources[m].read(present, changing)
        targets = [[_or_nan(item.valence), _or_nan(item.arousal)] for item in items]
        cues = {m: torch.from_numpy(values[list(indices)]) for m, values in self._cues.items()}
        return Batch(
            inputs,
            torch.from_numpy(presence),
            torch.from_numpy(self._labels[list(indices)]),
            torch.tensor(targets),
            cues,
        )

    def cues(self) -> dict[Modality, int]:
        """How many cues each modality has that has some."""
        return {m: values.shape[1] for m, values in self._cues.items()}

    def labels(self, indices: Sequence[int]) -> Array:
        """[n] int64."""
        found: Array = self._labels[list(indices)]
        return found

    def lengths(self, indices: Sequence[int], only: NDArray[np.int64] = EVERYTHING) -> list[int]:
        """About how many frames and tokens each item's sound and text have, those of them that are read."""
        _, audio, text = only.tolist()
        return [
            audio * (item.audio[1] // HOP if item.audio else 0) + text * (item.text[1] if item.text else 0)
            for item in (self.items[index] for index in indices)
        ]


def raw_sources(prepared: Prepared, share: float = 1.0) -> dict[Modality, Source]:
    """The prepared media. share: as of Sounds."""
    return {"image": Pixels(prepared), "audio": Sounds(prepared, share), "text": Words(prepared)}


def epoch_order(indices: Sequence[int], lengths: Sequence[int], size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of up to `size` in random order, of items that are about equally long."""
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(indices))
    batches: list[list[int]] = []
    for start in range(0, len(order), MIXED * size):
        run = sorted(order[start : start + MIXED * size], key=lambda position: lengths[position])
        batches += [[indices[p] for p in run[first : first + size]] for first in range(0, len(run), size)]
    return [batches[position] for position in rng.permutation(len(batches))]


def by_length(indices: Sequence[int], lengths: Sequence[int], size: int) -> list[list[int]]:
    """Batches for evaluation, of items that are about equally long."""
    order = sorted(range(len(indices)), key=lambda position: lengths[position])
    return [[indices[p] for p in order[first : first + size]] for first in range(0, len(order), size)]


def padded_rows(rows: Sequence[Array], least: int = 1) -> tuple[Tensor, Tensor]:
    """Rows [length, …] -> [n, longest, …] with zeros behind, at least so long, and the lengths [n]."""
    longest = max(least, *(len(row) for row in rows))
    padded = np.zeros((len(rows), longest, *rows[0].shape[1:]), rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded), torch.tensor([len(row) for row in rows])


def standard_cues(items: Sequence[Item], modality: Modality) -> NDArray[np.float32] | None:
    """[items, cues]: as Batch.cues; None where no item has any."""
    width = max((len(item.cues.get(modality, ())) for item in items), default=0)
    if not width:
        return None
    nothing = (math.nan,) * width
    found = np.array([item.cues.get(modality, nothing) for item in items], np.float32)
    training = found[[item.split == "train" for item in items]]
    known = training[np.isfinite(training).all(axis=1)]
    if not len(known):
        return None
    standard: NDArray[np.float32] = (found - known.mean(axis=0)) / (known.std(axis=0) + 1e-6)
    return standard


def _dropped(presence: Array, randomness: Randomness, generator: np.random.Generator) -> Array:
    """Presence [3] with some modalities left out; one always stays."""
    there = np.flatnonzero(presence)
    gone = there[generator.random(len(there)) < randomness.modality_dropout]
    if len(gone) and len(gone) == len(there):
        gone = np.setdiff1d(there, generator.choice(there, 1))
    kept = presence.copy()
    kept[gone] = 0
    return kept


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value
