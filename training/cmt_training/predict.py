"""Answers of a model to the items of a prepared data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cmt_export.model import CrossModalTransformer
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.tensors import Array
from cmt_training.batches import EVERYTHING, Batch, Reader, by_length
from cmt_training.distributed import World
from cmt_training.trainee import stand_ins

BATCH = 32
ALONE = World()


@dataclass(frozen=True)
class Predictions:
    """logits [n, labels], valence_arousal [n, 2] and labels [n], in the order of the indices that were asked for."""

    logits: Array
    valence_arousal: Array
    labels: Array


def predict(
    model: CrossModalTransformer,
    reader: Reader,
    indices: Sequence[int],
    *,
    only: NDArray[np.int64] = EVERYTHING,
    world: World = ALONE,
    precision: torch.dtype = torch.float32,
) -> Predictions:
    """The model's answers; every process of the world takes its share. only [3]: modalities that may be read."""
    return predict_each(model, reader, indices, [only], world=world, precision=precision)[0]


@torch.inference_mode()
def predict_each(
    model: CrossModalTransformer,
    reader: Reader,
    indices: Sequence[int],
    onlys: Sequence[NDArray[np.int64]],
    *,
    world: World = ALONE,
    precision: torch.dtype = torch.float32,
) -> list[Predictions]:
    """As `predict`, for several choices of modalities; encoders run once."""
    was_training = model.training
    model.eval()
    position = {index: row for row, index in enumerate(indices)}
    answers = [torch.zeros(len(indices), _width(model, world)) for _ in onlys]
    every = np.max(onlys, axis=0)
    batches = by_length(indices, reader.lengths(indices, every), BATCH)
    for number in range(world.rank, -(-len(batches) // world.size) * world.size, world.size):
        # Encoders in shards are run by all processes at once: one that has no batch left repeats the last.
        batch_indices = batches[min(number, len(batches) - 1)]
        batch = on_device(reader.batch(batch_indices, only=every), world.device)
        rows = [position[index] for index in batch_indices] if number < len(batches) else []
        with torch.autocast(world.device.type, precision, enabled=precision != torch.float32):
            encoded = model.encode(batch.inputs, batch.presence) if batch.inputs else stand_ins(batch.presence)
            for answer, only in zip(answers, onlys, strict=True):
                logits, _, valence_arousal, _ = model.fusion(*_with(encoded, only))
                if rows:
                    answer[rows] = torch.cat([logits, valence_arousal], dim=1).float().cpu()
    model.train(was_training)
    labels = reader.labels(indices)
    answers = [world.total(answer.to(world.device)).cpu() for answer in answers]
    return [Predictions(answer[:, :-2].numpy(), answer[:, -2:].numpy(), labels) for answer in answers]


def on_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return Batch(
        {name: tensor.to(device) for name, tensor in batch.inputs.items()},
        batch.presence.to(device),
        batch.labels.to(device),
        batch.valence_arousal.to(device),
        {m: cues.to(device) for m, cues in batch.cues.items()},
    )


def _with(encoded: Sequence[Tensor], only: NDArray[np.int64]) -> list[Tensor]:
    """Features and masks, those modalities masked out that aren't to be read."""
    return [tensor if column % 2 == 0 else tensor * int(only[column // 2]) for column, tensor in enumerate(encoded)]


def _width(model: CrossModalTransformer, world: World) -> int:
    """Logits, valence and arousal."""
    nothing = stand_ins(torch.zeros(1, len(MODALITIES), device=world.device))
    return int(model.fusion(*nothing)[0].shape[1]) + 2
