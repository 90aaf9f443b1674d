"""Evaluation of a checkpoint on a prepared data set: metrics, calibration, subsets, robustness."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cmt_export.checkpoint import COMPOSED, Checkpoint
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, SUBSETS
from cmt_pipeline.progress import Progress
from cmt_training.batches import Reader, raw_sources
from cmt_training.conditions import conditions
from cmt_training.evaluation import Evaluation
from cmt_training.examples import DataError, Split
from cmt_training.frozen import fast_precision, frozen_sources, without_backbones
from cmt_training.metrics import Floats, Metrics, confusion_matrix, f1_per_label, metrics_of, reliability, softmax
from cmt_training.predict import Predictions, predict, predict_each
from cmt_training.prepare import Prepared
from cmt_training.tuning import published

#: Name of a curve (`noise`, `missing`, …) -> the data at each of its rates.
Curves = Mapping[str, Sequence[tuple[float, Prepared]]]
NO_CURVES: Curves = {}


def evaluate(
    checkpoint: Checkpoint,
    data: Prepared,
    progress: Progress,
    *,
    split: Split = "test",
    curves: Curves = NO_CURVES,
    training: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Measures a checkpoint. training: how it was made, to stand among the conditions.

    Raises DataError for data of another label set and for an empty split.
    """
    config = checkpoint.config
    if labels_of(data.label_set) != config.labels:
        raise DataError(
            f"got data with the labels of {data.label_set!r}; the checkpoint answers with those of "
            f"{config.label_set!r}: evaluate on data of that label set, or train on this one"
        )
    indices, temperature = data.of(split), float(checkpoint.model.fusion.temperature)
    progress(f"{split}: every subset of modalities", 0.0)
    onlys = [np.array([int(m in subset) for m in MODALITIES], np.int64) for subset in SUBSETS]
    with reading(checkpoint, data, progress) as reader:
        found = predict_each(checkpoint.model, reader, indices, onlys)
        presence = np.array([[reader.items[i].has(m) for m in MODALITIES] for i in indices])
    whole = found[0]
    warm = softmax(whole.logits, temperature)
    confusion = confusion_matrix(warm, whole.labels)
    return Evaluation(
        model=config.model,
        preset=config.preset,
        data=data.name,
        label_set=data.label_set,
        split=split,
        temperature=temperature,
        uncalibrated=metrics_of(softmax(whole.logits), whole.labels),
        calibrated=metrics_of(warm, whole.labels),
        labels=config.labels,
        f1=tuple(f1_per_label(confusion).tolist()),
        support=tuple(confusion.sum(axis=1).tolist()),
        confusion=tuple(map(tuple, confusion.tolist())),
        reliability={
            "before": reliability(softmax(whole.logits), whole.labels),
            "after": reliability(warm, whole.labels),
        },
        subsets=dict(_subsets(found, onlys, presence, temperature)),
        curves=_curves(checkpoint, curves, split, temperature, progress),
        skipped=data.skipped,
        notes=data.notes,
        conditions=conditions(items=len(indices), precision=_precision(checkpoint), training=dict(training or {})),
    )


@contextlib.contextmanager
def reading(checkpoint: Checkpoint, data: Prepared, progress: Progress) -> Iterator[Reader]:
    """A reader for the checkpoint's model; what its published encoders say is meanwhile read from disk."""
    if checkpoint.config.model == COMPOSED:
        yield Reader(data, raw_sources(data))
        return
    frozen = published(checkpoint, checkpoint.config.model)
    kept = frozen_sources(checkpoint.model, frozen, data, fast_precision(), progress)
    restore = without_backbones(checkpoint.model, kept)
    try:
        yield Reader(data, {**raw_sources(data), **kept})
    finally:
        restore()


def _precision(checkpoint: Checkpoint) -> str:
    if "image" not in published(checkpoint, checkpoint.config.model) or fast_precision() == torch.float32:
        return "fp32"
    return "bf16 for the published image encoder, fp32 for all else"


def _subsets(
    found: Sequence[Predictions], onlys: Sequence[NDArray[np.int64]], presence: Floats, temperature: float
) -> Iterator[tuple[str, Metrics]]:
    for subset, only, predictions in zip(SUBSETS, onlys, found, strict=True):
        able = (presence * only).any(axis=1)
        if able.any():
            probabilities = softmax(predictions.logits[able], temperature)
            yield "+".join(subset), metrics_of(probabilities, predictions.labels[able])


def _curves(
    checkpoint: Checkpoint, curves: Curves, split: Split, temperature: float, progress: Progress
) -> dict[str, list[tuple[float, Metrics]]]:
    measured: dict[str, list[tuple[float, Metrics]]] = {}
    for position, (name, points) in enumerate(curves.items()):
        progress(f"robustness: {name}", position / len(curves))
        for rate, data in points:
            with reading(checkpoint, data, progress) as reader:
                found = predict(checkpoint.model, reader, data.of(split))
            metrics = metrics_of(softmax(found.logits, temperature), found.labels)
            measured.setdefault(name, []).append((rate, metrics))
    return measured
