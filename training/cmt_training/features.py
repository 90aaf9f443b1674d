"""Features of trained encoders, kept on disk, so that every fusion learns from the very same ones."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cmt_export.encoders import Features, positions_below
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.buckets import frames_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.progress import Progress
from cmt_pipeline.tensors import IMAGE_TOKENS, MODEL_WIDTH, Array
from cmt_training.batches import Reader, Rows, Source, by_length, padded_rows
from cmt_training.prepare import Item, Prepared

BATCH = 32


class GivenImage(nn.Module):
    """In the place of an encoder: its features come ready as `pixel_values`."""

    def forward(self, pixel_values: Tensor) -> Features:
        return pixel_values, pixel_values.new_ones(pixel_values.shape[:2], dtype=torch.int64)


class GivenAudio(nn.Module):
    """`input_values` are features, `num_samples` how many of them are real."""

    def forward(self, input_values: Tensor, num_samples: Tensor) -> Features:
        return input_values, positions_below(input_values.shape[1], num_samples).to(torch.int64)


class GivenText(nn.Module):
    """`input_ids` are features."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        return input_ids, attention_mask


def given_encoders() -> dict[Modality, nn.Module]:
    return {"image": GivenImage(), "audio": GivenAudio(), "text": GivenText()}


class _Images:
    def __init__(self, rows: Array) -> None:
        self._rows = rows

    def read(self, items: Sequence[Item | None], _: Sequence[np.random.Generator] | None) -> dict[str, Tensor]:
        found = np.zeros((len(items), *self._rows.shape[1:]), np.float32)
        for row, item in enumerate(items):
            if item is not None:
                found[row] = self._rows[item.image]
        return {"pixel_values": torch.from_numpy(found)}


class _Sounds:
    def __init__(self, rows: Array, starts: dict[int, int]) -> None:
        self._rows, self._starts = rows, starts

    def read(self, items: Sequence[Item | None], _: Sequence[np.random.Generator] | None) -> dict[str, Tensor]:
        found = []
        for item in items:
            start, count = (self._starts[item.audio[0]], frames_of(item.audio[1])) if item and item.audio else (0, 0)
            found.append(self._rows[start : start + count].astype(np.float32))
        padded, counts = padded_rows(found)
        return {"input_values": padded, "num_samples": counts[:, None]}


def feature_sources(
    model: CrossModalTransformer, reader: Reader, prepared: Prepared, folder: Path, progress: Progress
) -> dict[str, Source]:
    """Sources of what the model's encoders make of every item; computed into `folder` where it isn't there."""
    if not folder.is_dir():
        draft = folder.with_name(f".{folder.name}.draft")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        _write(model, reader, prepared, draft, progress)
        draft.rename(folder)
    image, audio, text = (np.load(folder / f"{m}.npy", mmap_mode="r", allow_pickle=False) for m in MODALITIES)
    return {"image": _Images(image), "audio": _Sounds(audio, _frame_starts(prepared)), "text": Rows(text)}


@torch.inference_mode()
def _write(model: CrossModalTransformer, reader: Reader, prepared: Prepared, folder: Path, progress: Progress) -> None:
    model.eval()
    images = len({item.image for item in prepared.items if item.image is not None})
    frames = sum(frames_of(count) for _, count in {item.audio for item in prepared.items if item.audio})
    tokens = sum(count for _, count in {item.text for item in prepared.items if item.text})
    shapes = {"image": (images, IMAGE_TOKENS), "audio": (frames,), "text": (tokens,)}
    rows = {}
    for m, shape in shapes.items():
        empty = np.zeros((*(max(1, size) for size in shape), MODEL_WIDTH), np.float16)
        np.save(folder / f"{m}.npy", empty, allow_pickle=False)
        rows[m] = np.load(folder / f"{m}.npy", mmap_mode="r+", allow_pickle=False)
    starts, everything = _frame_starts(prepared), range(len(prepared.items))
    batches = by_length(everything, reader.lengths(everything), BATCH)
    for done, batch in enumerate(batches):
        progress("features of the encoders", done / len(batches))
        read = reader.batch(batch)
        image, _, audio, _, text, _ = (
            tensor.to(torch.float16 if tensor.is_floating_point() else tensor.dtype).numpy()
            for tensor in model.encode(read.inputs, read.presence)
        )
        for row, index in enumerate(batch):
            item = prepared.items[index]
            if item.image is not None:
                rows["image"][item.image] = image[row]
            if item.audio is not None:
                start, count = starts[item.audio[0]], frames_of(item.audio[1])
                rows["audio"][start : start + count] = audio[row, :count]
            if item.text is not None:
                rows["text"][item.text[0] : item.text[0] + item.text[1]] = text[row, : item.text[1]]
    for array in rows.values():
        array.flush()


def _frame_starts(prepared: Prepared) -> dict[int, int]:
    """Where a sound begins in samples.npy -> where it begins among the frames."""
    spans = sorted({item.audio for item in prepared.items if item.audio is not None})
    begins = itertools.accumulate((frames_of(count) for _, count in spans), initial=0)
    return {start: begin for (start, _), begin in zip(spans, begins, strict=False)}
