"""What frozen encoders say of a data set, pooled to a few tokens an item, kept on disk: all fusions read the very same.

FOLDER/image.npy, …          float16 [items, most tokens, width] of each modality, standardised; behind an item's own: 0
FOLDER/counts.npy            int64 [items, 3]: how many tokens are an item's own
FOLDER/labels.npy, …         of each item: label, split, person, kind
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.encoders import positions_below
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.progress import Progress
from cmt_pipeline.tensors import MODEL_WIDTH, Array
from cmt_release.locks import make_once
from cmt_training.batches import Batch, Reader, raw_sources
from cmt_training.binding.family import Items
from cmt_training.encoded import Encoded, encoded_sources
from cmt_training.examples import Split
from cmt_training.predict import on_device
from cmt_training.prepare import Prepared

GRID = 4  # tokens along each side of an image, beside those that are no patch
FRAMES = 16  # of 20 ms, that one token of sound is the mean of
SMALLEST = 1e-2  # deviation that is divided by
KIND, PLAIN = "interplay", "plain"  # the tag that says an item's kind, and the kind of items without
NOTHING = np.zeros((0, MODEL_WIDTH), np.float16)
COLUMNS = ("names", "counts", "labels", "splits", "people", "kinds")
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """features: of image, audio and text, [items, most tokens, width] each; counts [items, 3]; labels [items]; splits,
    people and kinds: an item each, a kind that of its interplay, or `plain`."""

    names: tuple[str, ...]
    features: tuple[Array, ...]
    counts: Array
    labels: Array
    splits: NDArray[np.str_]
    people: NDArray[np.str_]
    kinds: NDArray[np.str_]

    @classmethod
    def open(cls, folder: Path) -> Tokens:
        """What `tokens_of` made."""
        features = tuple(np.load(folder / f"{m}.npy", mmap_mode="r", allow_pickle=False) for m in MODALITIES)
        names, *columns = (np.load(folder / f"{column}.npy", allow_pickle=False) for column in COLUMNS)
        return cls(tuple(names.tolist()), features, *columns)

    def of(self, split: Split) -> Indices:
        found: Indices = np.flatnonzero(self.splits == split)
        return found

    @property
    def modalities(self) -> list[Modality]:
        """Those that any item has."""
        return [m for m, most in zip(MODALITIES, self.counts.max(axis=0), strict=True) if most]

    def items(self, rows: Indices) -> Items:
        """As long as the longest of these; masks are float32, whose maximum a CPU finds faster."""
        longest = self.counts[rows].max(axis=0).clip(1)
        features = [torch.from_numpy(f[rows, :most]).float() for f, most in zip(self.features, longest, strict=True)]
        counts = torch.from_numpy(self.counts[rows])
        masks = [positions_below(int(most), counts[:, m : m + 1]).float() for m, most in enumerate(longest)]
        return Items(tuple(features), tuple(masks), torch.from_numpy(self.labels[rows]))


def tokens_of(folder: Path, data: Prepared, model: CrossModalTransformer, progress: Progress) -> Tokens:
    """Those of the model's encoders, as they are. `folder` appears whole; what lies there isn't made again."""

    def make(draft: Path) -> None:
        draft.mkdir()
        _write(draft, data, _encoded(draft / "encoded", data, model, progress))
        shutil.rmtree(draft / "encoded")

    make_once(folder, make)
    return Tokens.open(folder)


def _encoded(
    folder: Path, data: Prepared, model: CrossModalTransformer, progress: Progress
) -> Mapping[Modality, Encoded]:
    """Tokens of each modality that any item has."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)

    def run(batch: Batch) -> dict[Modality, tuple[Tensor, Tensor]]:
        moved = on_device(batch, device)
        encoded = [tensor.cpu() for tensor in model.encode(moved.inputs, moved.presence)]
        items = zip(*map(_own, encoded[::2], encoded[1::2]), strict=True)
        by_modality = zip(MODALITIES, zip(*map(pooled, items), strict=True), strict=True)
        return {m: _padded(rows) for m, rows in by_modality}

    found = encoded_sources(folder, Reader(data, raw_sources(data)), data, run, MODALITIES, progress)
    model.cpu()
    return found


def _own(tokens: Tensor, mask: Tensor) -> list[Tensor]:
    """Of each item."""
    return [row[: int(count)] for row, count in zip(tokens, mask.sum(dim=1), strict=True)]


def _padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    counts = torch.tensor([len(row) for row in rows])
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded, positions_below(padded.shape[1], counts[:, None]).to(torch.int64)


def _write(folder: Path, data: Prepared, encoded: Mapping[Modality, Encoded]) -> None:
    items, names = data.items, labels_of(data.label_set)
    training = np.array([item.split == "train" for item in items])
    counts = np.zeros((len(items), len(MODALITIES)), np.int64)
    for column, m in enumerate(MODALITIES):
        rows = [encoded[m].tokens(item) if item.has(m) else NOTHING for item in items]
        counts[:, column] = [len(row) for row in rows]
        padded = np.zeros((len(items), counts[:, column].max(initial=1), MODEL_WIDTH), np.float16)
        own = np.arange(padded.shape[1]) < counts[:, column : column + 1]
        padded[own] = np.concatenate(rows)
        np.save(folder / f"{m}.npy", standardised(padded, own, training, by_place=m == "image"))
    people = [item.speaker or item.id for item in items]
    kinds = [item.tags.get(KIND, PLAIN) for item in items]
    labels, splits = [names.index(item.label) for item in items], [item.split for item in items]
    for name, values in zip(COLUMNS, (names, counts, labels, splits, people, kinds), strict=True):
        np.save(folder / f"{name}.npy", np.array(values), allow_pickle=False)


def pooled(tokens: Sequence[Tensor]) -> list[Tensor]:
    """An item's own tokens [tokens, width] of image, audio and text, those of the first two in means of neighbours.
    What an image has beside a square of patches (nothing, a class token, registers) comes first, and stays."""
    image, audio, text = tokens
    if len(image):
        side = math.isqrt(len(image))
        beside, patches = image[: len(image) - side**2], image[len(image) - side**2 :]
        grid = patches.T.reshape(1, -1, side, side)
        image = torch.cat([beside, functional.adaptive_avg_pool2d(grid, GRID)[0].flatten(1).T])
    if len(audio):
        audio = functional.avg_pool1d(audio.T[None], FRAMES, ceil_mode=True)[0].T
    return [image, audio, text]


def standardised(tokens: Array, own: NDArray[np.bool_], training: NDArray[np.bool_], *, by_place: bool) -> Array:
    """Tokens [items, places, width] of zero mean and unit deviation over the training items; zeros where they aren't an
    item's own [items, places]. by_place: each place by itself, as what an encoder says of where a patch lies is many
    times as large as what it says of the patch."""
    found = np.zeros_like(tokens)
    places = [slice(place, place + 1) for place in range(tokens.shape[1])] if by_place else [slice(None)]
    for place in places:
        there = own[:, place]
        known = tokens[training, place][there[training]].astype(np.float32)
        if len(known):
            deviation = known.std(axis=0) + SMALLEST
            found[:, place][there] = (tokens[:, place][there] - known.mean(axis=0)) / deviation
    return found
