"""What encoders make of every image, sound and text: computed once, kept on disk, read in every epoch.

FOLDER/audio.npy         float16 [tokens, width], one item's tokens after another's
FOLDER/audio-spans.npy   int64 [items, 3]: where an item's media lie in the prepared data, first row, rows
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmt_export.encoders import Features, positions_below
from cmt_pipeline.modality import Modality
from cmt_pipeline.progress import Progress
from cmt_pipeline.tensors import Array
from cmt_release.locks import make_once
from cmt_training.batches import Batch, Reader, Source, by_length, padded_rows
from cmt_training.prepare import GrowingArray, Item, Prepared

BATCH = 32
CONSTANT = 1e-3  # of the median deviation: a channel that moves less says nothing

#: A batch -> tokens [n, tokens, width] and mask [n, tokens] of each modality that is to be kept.
Run = Callable[[Batch], dict[Modality, tuple[Tensor, Tensor]]]


class Encoded(Source):
    """Reads kept tokens in the place of a modality's ready tensors."""

    def __init__(self, folder: Path, modality: Modality) -> None:
        self._modality = modality
        self._rows: Array = np.load(folder / f"{modality}.npy", mmap_mode="r", allow_pickle=False)
        spans: Array = np.load(folder / f"{modality}-spans.npy", allow_pickle=False)
        self._spans = {key: (start, count) for key, start, count in spans.tolist()}

    def read(self, items: Sequence[Item | None], _: Sequence[np.random.Generator] | None) -> dict[str, Tensor]:
        rows = [self.tokens(item) if item is not None else self._rows[:0] for item in items]
        padded, counts = padded_rows([row.astype(np.float32) for row in rows])
        if self._modality == "image":
            return {"pixel_values": padded}
        if self._modality == "audio":
            return {"input_values": padded, "num_samples": counts[:, None]}
        mask = positions_below(padded.shape[1], counts[:, None])
        return {"input_ids": padded, "attention_mask": mask.to(torch.int64)}

    def tokens(self, item: Item) -> Array:
        """float16 [tokens, width] of an item that has the modality."""
        start, count = self._spans[_key(item, self._modality)]
        tokens: Array = self._rows[start : start + count]
        return tokens

    def moments(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Mean and deviation [width] of the tokens of those of the items that have the modality. What never moves
        deviates without end, so that nothing is made of it: of MiniLM's 384 channels three are 0 throughout."""
        keys = {_key(item, self._modality) for item in items if item.has(self._modality)}
        count, total, squares = 0, np.zeros(self._rows.shape[1]), np.zeros(self._rows.shape[1])
        for start, rows in (self._spans[key] for key in sorted(keys)):
            tokens = self._rows[start : start + rows].astype(np.float64)
            count, total, squares = count + rows, total + tokens.sum(axis=0), squares + (tokens**2).sum(axis=0)
        mean = total / max(count, 1)
        deviation = np.sqrt((squares / max(count, 1) - mean**2).clip(0))
        deviation[deviation <= CONSTANT * np.median(deviation)] = np.inf
        return torch.from_numpy(mean).float(), torch.from_numpy(deviation).float()


class GivenImage(nn.Module):
    """In the place of an encoder: its tokens come ready as `pixel_values`."""

    def forward(self, pixel_values: Tensor) -> Features:
        return pixel_values, pixel_values.new_ones(pixel_values.shape[:2], dtype=torch.int64)


class GivenAudio(nn.Module):
    """`input_values` are tokens, `num_samples` how many of them are real."""

    def forward(self, input_values: Tensor, num_samples: Tensor) -> Features:
        return input_values, positions_below(input_values.shape[1], num_samples).to(torch.int64)


class GivenText(nn.Module):
    """`input_ids` are tokens."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        return input_ids, attention_mask


def given_encoders() -> dict[Modality, nn.Module]:
    return {"image": GivenImage(), "audio": GivenAudio(), "text": GivenText()}


def encoded_sources(
    folder: Path, reader: Reader, prepared: Prepared, run: Run, modalities: Sequence[Modality], progress: Progress
) -> dict[Modality, Encoded]:
    """Sources of what `run` makes of every item that has one of these modalities; computed where it isn't there.

    A modality that no item has keeps no tokens, and has no source.
    """
    kept = [m for m in modalities if any(item.has(m) for item in prepared.items)]
    make_once(folder, lambda draft: _write(draft, reader, prepared, run, kept, progress))
    return {m: Encoded(folder, m) for m in kept}


@torch.inference_mode()
def _write(
    folder: Path, reader: Reader, prepared: Prepared, run: Run, modalities: Sequence[Modality], progress: Progress
) -> None:
    folder.mkdir()
    carriers = _distinct(prepared.items, modalities)
    reading = Reader(replace(prepared, items=tuple(carriers)), reader.sources)
    everything = range(len(carriers))
    arrays: dict[Modality, GrowingArray] = {}
    spans: dict[Modality, list[tuple[int, int, int]]] = {m: [] for m in modalities}
    batches = by_length(everything, reading.lengths(everything), BATCH)
    for done, indices in enumerate(batches):
        progress("features of the encoders", done / len(batches))
        made = run(reading.batch(indices))
        for m in modalities:
            hidden, mask = made[m]
            rows, counts = hidden.to(torch.float16).numpy(), mask.sum(dim=1).tolist()
            if m not in arrays:
                arrays[m] = GrowingArray(folder / f"{m}.npy", rows.dtype, rows.shape[2:])
            for row, index in enumerate(indices):
                if carriers[index].has(m):
                    start, count = arrays[m].add(rows[row, : counts[row]])
                    spans[m].append((_key(carriers[index], m), start, count))
    for m in modalities:
        arrays[m].close()
        np.save(folder / f"{m}-spans.npy", np.array(spans[m], np.int64), allow_pickle=False)


def _distinct(items: Sequence[Item], modalities: Sequence[Modality]) -> list[Item]:
    """Items that have each image, sound and text once, whatever their labels: several of `items` may share one."""
    found = [sorted({getattr(item, m) for item in items if item.has(m)}) for m in modalities]
    nothing = replace(items[0], image=None, audio=None, text=None)
    return [
        replace(nothing, **dict(zip(modalities, media, strict=True)))
        for media in itertools.zip_longest(*found, fillvalue=None)
    ]


def _key(item: Item, modality: Modality) -> int:
    """Where an item's media begin in the prepared data."""
    place = getattr(item, modality)
    return int(place if modality == "image" else place[0])
