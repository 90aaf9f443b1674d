"""What frozen encoders say of a corpus, pooled to a few tokens an item, kept on disk: every fusion reads the very same.

FOLDER/corpus/, prepared/    the corpus, and its ready tensors
FOLDER/parts/000.npz, …      tokens of so many items each; what is there isn't made again
FOLDER/image.npy, …          float16 [items, most tokens, width] of each modality, standardised; behind an item's own: 0
FOLDER/counts.npy            int64 [items, 3]: how many tokens are an item's own
"""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from cmt_export.checkpoint import load_checkpoint
from cmt_export.encoders import positions_below
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.progress import Progress
from cmt_pipeline.tensors import Array
from cmt_training.batches import Reader, by_length, raw_sources
from cmt_training.binding.family import Items
from cmt_training.binding.run import on_one_thread
from cmt_training.data.generated import load_generated
from cmt_training.examples import Split
from cmt_training.generate.corpus import generate_corpus
from cmt_training.generate.options import CorpusOptions
from cmt_training.prepare import open_prepared, prepare

GRID = 4  # tokens along each side of an image, beside the class token
FRAMES = 16  # of 20 ms, that one token of sound is the mean of
PART, BATCH = 1000, 25  # items
SMALLEST = 1e-2  # deviation that is divided by
PLAIN = "plain"  # the kind of items without interplay
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

    def of(self, split: Split) -> Indices:
        found: Indices = np.flatnonzero(self.splits == split)
        return found

    def items(self, rows: Indices) -> Items:
        """As long as the longest of these; masks are float32, whose maximum a CPU finds faster."""
        longest = self.counts[rows].max(axis=0).clip(1)
        features = [torch.from_numpy(f[rows, :most]).float() for f, most in zip(self.features, longest, strict=True)]
        counts = torch.from_numpy(self.counts[rows])
        masks = [positions_below(int(most), counts[:, m : m + 1]).float() for m, most in enumerate(longest)]
        return Items(tuple(features), tuple(masks), torch.from_numpy(self.labels[rows]))


def tokens_of(folder: Path, options: CorpusOptions, checkpoint: Path, workers: int, progress: Progress) -> Tokens:
    """Made where they aren't there."""
    corpus = folder / "corpus"
    data = load_generated(corpus) if corpus.is_dir() else generate_corpus(corpus, options, progress, workers)
    if not (folder / "counts.npy").is_file():
        opened = load_checkpoint(checkpoint)
        ready = prepare(data, opened.config.preprocess, opened.tokenizer, folder / "prepared", progress, workers).folder
        training = np.array([example.split == "train" for example in data.examples])
        _gather(folder, _encoded(folder, ready, checkpoint, len(data.examples), workers, progress), training)
    labels = labels_of(data.label_set)
    return Tokens(
        labels,
        tuple(np.load(folder / f"{m}.npy", mmap_mode="r") for m in MODALITIES),
        np.load(folder / "counts.npy"),
        np.array([labels.index(example.label) for example in data.examples]),
        np.array([example.split for example in data.examples]),
        np.array([example.speaker for example in data.examples]),
        np.array([example.tags.get("interplay", PLAIN) for example in data.examples]),
    )


def _encoded(
    folder: Path, ready: Path, checkpoint: Path, count: int, workers: int, progress: Progress
) -> Sequence[Path]:
    """The parts, in order."""
    parts = {folder / "parts" / f"{start // PART:03d}.npz": start for start in range(0, count, PART)}
    (folder / "parts").mkdir(exist_ok=True)
    left = {path: range(start, min(start + PART, count)) for path, start in parts.items() if not path.is_file()}
    work = partial(_encode, ready, checkpoint)
    if workers == 1:
        for path, indices in left.items():
            work(path, indices)
        return list(parts)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), on_one_thread) as pool:
        for done, _ in enumerate(pool.map(work, left.keys(), left.values())):
            progress("what the encoders say", done / len(left))
    return list(parts)


@torch.inference_mode()
def _encode(ready: Path, checkpoint: Path, path: Path, indices: Sequence[int]) -> None:
    model, prepared = load_checkpoint(checkpoint).model.eval(), open_prepared(ready)
    if len(prepared.items) <= max(indices):
        raise ValueError(f"{ready} has {len(prepared.items)} items; expected more than {max(indices)}: make it again")
    reader = Reader(prepared, raw_sources(prepared))
    found: dict[int, list[Tensor]] = {}
    for rows in by_length(indices, reader.lengths(indices), BATCH):
        batch = reader.batch(rows)
        encoded = model.encode(batch.inputs, batch.presence)
        for row, index in enumerate(rows):
            found[index] = pooled(
                [t[row, : int(m[row].sum())] for t, m in zip(encoded[::2], encoded[1::2], strict=True)]
            )
    arrays: dict[str, Array] = {}
    for column, m in enumerate(MODALITIES):
        arrays[m] = torch.cat([found[index][column] for index in indices]).to(torch.float16).numpy()
        arrays[f"{m}-counts"] = np.array([len(found[index][column]) for index in indices])
    draft = path.with_suffix(".draft.npz")
    np.savez(draft, **arrays)
    draft.rename(path)


def pooled(tokens: Sequence[Tensor]) -> list[Tensor]:
    """An item's own tokens [tokens, width] of image, audio and text, those of the first two in means of neighbours."""
    image, audio, text = tokens
    if len(image):
        side = math.isqrt(len(image) - 1)
        grid = image[1:].T.reshape(1, -1, side, side)
        image = torch.cat([image[:1], functional.adaptive_avg_pool2d(grid, GRID)[0].flatten(1).T])
    if len(audio):
        audio = functional.avg_pool1d(audio.T[None], FRAMES, ceil_mode=True)[0].T
    return [image, audio, text]


def _gather(folder: Path, parts: Sequence[Path], training: NDArray[np.bool_]) -> None:
    """One array for each modality. training [items]: those by which tokens are standardised."""
    loaded = [dict(np.load(path)) for path in parts]
    counts = np.stack([np.concatenate([part[f"{m}-counts"] for part in loaded]) for m in MODALITIES], axis=1)
    for column, m in enumerate(MODALITIES):
        rows = np.concatenate([part[m] for part in loaded])
        padded = np.zeros((len(counts), counts[:, column].max(), rows.shape[1]), np.float16)
        own = np.arange(padded.shape[1]) < counts[:, column : column + 1]
        padded[own] = rows
        np.save(folder / f"{m}.npy", standardised(padded, own, training, by_place=m == "image"))
    np.save(folder / "counts.npy", counts)


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
