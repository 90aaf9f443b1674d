"""A ladder on one data set, read by the encoders of a checkpoint as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from cmt_export.checkpoint import COMPOSED, Checkpoint
from cmt_pipeline.progress import Progress, part_of
from cmt_training.compare.ladders import measured, models_for
from cmt_training.compare.learn import Budget
from cmt_training.compare.results import Results
from cmt_training.compare.run import Place
from cmt_training.compare.tokens import tokens_of
from cmt_training.conditions import conditions
from cmt_training.frozen import digest_of
from cmt_training.prepare import Prepared

TOKENS_SHARE = 0.2  # of the time, about


def compared(
    data: Prepared,
    checkpoint: Checkpoint,
    seeds: Sequence[int],
    budget: Budget,
    work: Path,
    workers: int,
    progress: Progress,
) -> Results:
    """Trains and measures every fusion for every seed; what `work` holds of the same tokens isn't done again.

    Raises DataError for an empty split and for items of a single modality, ValueError for fewer than two seeds and for
    a checkpoint of classifiers.
    """
    if checkpoint.config.model == COMPOSED:
        raise ValueError(
            "got a composed checkpoint, which has classifiers; expected one of encoders, as `cmt train` writes"
        )
    items = {split: len(data.of(split)) for split in ("train", "validation", "test")}
    place = Place(work / f"{data.folder.name}-{digest_of(checkpoint.model.encoders, torch.float32)[:12]}", budget)
    tokens = tokens_of(place.tokens_folder, data, checkpoint.model, part_of(progress, 0, TOKENS_SHARE, "encoders"))
    models, report = models_for(tokens), part_of(progress, TOKENS_SHARE, 1, "fusions")
    found = measured({data.name: place}, {data.name: models}, seeds, workers, report)
    encoders = {m: encoder.weights_from for m, encoder in checkpoint.config.encoders.items()}
    told = {"data": data.folder.name, "notes": list(data.notes), "items": items, "encoders": encoders}
    return Results(found, conditions(seeds=list(seeds), budget=asdict(budget), **told))
