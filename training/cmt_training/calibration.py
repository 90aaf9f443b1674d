"""Calibrates a composed checkpoint on labelled items: temperature and label biases of each head, weights of the pool.

First each head alone, so that what a single modality answers is a probability; then, with those fixed, how much each
weighs beside others (Guo et al. 2017, arXiv 1706.04599, with biases; logarithmic pooling). A few hundred items are
enough for so few numbers, and all are held towards doing nothing: items that are told apart without a fault would make
them endless. That it helps is measured on items held out, in folds; where it doesn't, the checkpoint stays as it was.
The test split is never read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from cmt_export.checkpoint import Checkpoint
from cmt_export.fusion import CrossModalFusion
from cmt_export.log_linear import Calibrated, Expert, LogLinearFusion
from cmt_pipeline.modality import MODALITIES, SUBSETS
from cmt_pipeline.progress import Progress, no_progress
from cmt_training.batches import by_length
from cmt_training.evaluate import reading
from cmt_training.examples import DataError
from cmt_training.predict import BATCH
from cmt_training.prepare import Prepared

FOLDS = 5
LEAST = 50  # items; fewer say nothing about a dozen numbers
HELD = 2.0  # items' worth of pull of each number towards doing nothing
STEPS = 60  # of L-BFGS


@dataclass(frozen=True)
class Calibration:
    """items: how many were used; before, after: cross-entropy in nats of items held out, over every subset that each
    has; kept: whether it was better."""

    items: int
    before: float
    after: float

    @property
    def kept(self) -> bool:
        return self.after < self.before


@dataclass(frozen=True)
class CalibrationItems:
    """outputs [items, 3, width], presence [items, 3] and labels [items], float64 but for the labels."""

    outputs: Tensor
    presence: Tensor
    labels: Tensor

    def of(self, rows: Tensor) -> CalibrationItems:
        return CalibrationItems(self.outputs[rows], self.presence[rows], self.labels[rows])

    def subsets(self) -> Iterator[Tensor]:
        """Presence [items, 3] under each subset, of none where an item lacks some of it."""
        for subset in SUBSETS:
            wanted = self.presence.new_tensor([float(m in subset) for m in MODALITIES])
            whole = (self.presence * wanted).sum(dim=1) == wanted.sum()
            yield wanted * whole[:, None]


def calibrate(checkpoint: Checkpoint, prepared: Prepared, progress: Progress = no_progress) -> Calibration:
    """Sets the checkpoint's temperatures, biases, weights and prior. DataError for a checkpoint that isn't composed,
    for too few items, and for a label that none of them has."""
    fusion = checkpoint.model.fusion
    if not isinstance(fusion, LogLinearFusion):
        raise DataError("got a checkpoint that isn't composed; expected one of `cmt compose`")
    items = _read(checkpoint, prepared, progress)
    names, count = checkpoint.config.labels, len(items.labels)
    if count < LEAST:
        raise DataError(f"got {count} items outside of the test split; expected {LEAST} at least")
    if lacking := [name for index, name in enumerate(names) if not (items.labels == index).any()]:
        raise DataError(f"no item has the label {lacking[0]}; expected some of each of {', '.join(names)}")
    before, after = [], []
    folds = torch.from_numpy(np.random.default_rng(0).permutation(count) % FOLDS)
    for fold in range(FOLDS):
        progress("fitting on four fifths, measuring on the others", fold / FOLDS)
        rest, others = items.of(torch.nonzero(folds == fold)[:, 0]), items.of(torch.nonzero(folds != fold)[:, 0])
        before.append(_losses(fusion, rest, _double(fusion.calibrated)))
        after.append(_losses(fusion, rest, fitted(fusion, others)))
    found = Calibration(count, float(torch.cat(before).mean()), float(torch.cat(after).mean()))
    if found.kept:
        fusion.calibrate(fitted(fusion, items))
    return found


@torch.inference_mode()
def _read(checkpoint: Checkpoint, prepared: Prepared, progress: Progress) -> CalibrationItems:
    """What the heads say of every item that isn't of the test split."""
    indices = [index for index, item in enumerate(prepared.items) if item.split != "test"]
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    with reading(checkpoint, prepared, progress) as reader:
        batches = by_length(indices, reader.lengths(indices), BATCH)
        for done, rows in enumerate(batches):
            progress("asking the classifiers", done / len(batches))
            batch = reader.batch(rows)
            encoded = checkpoint.model.encode(batch.inputs, batch.presence)
            outputs = torch.stack([features[:, 0] for features in encoded[::2]], dim=1)
            there = torch.cat([mask[:, :1] for mask in encoded[1::2]], dim=1)
            parts.append((outputs.double(), (there * batch.presence).double(), batch.labels))
    outputs, presence, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return CalibrationItems(outputs, presence, labels)


def fitted(fusion: LogLinearFusion, items: CalibrationItems) -> Calibrated:
    """What suits the items best: each head alone first, then what each weighs beside others."""
    counts = torch.bincount(items.labels, minlength=fusion.count).double() + 1
    found = replace(_double(Calibrated.none(fusion.count)), log_prior=(counts / counts.sum()).log())
    for index, m in enumerate(MODALITIES):
        expert, rows = fusion.experts.get(m), torch.nonzero(items.presence[:, index])[:, 0]
        if expert is not None and expert.kind != "dimensional" and len(rows):
            found = _fit_alone(fusion, index, items.of(rows), found)
    return _fit_weights(fusion, items, found)


def _fit_alone(fusion: LogLinearFusion, index: int, items: CalibrationItems, start: Calibrated) -> Calibrated:
    """Temperature and biases of one head."""
    at = torch.arange(len(MODALITIES)) == index
    alone = at.double().expand(len(items.labels), -1)
    log_temperature = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(fusion.count, dtype=torch.float64, requires_grad=True)

    def tried() -> Calibrated:
        temperatures = torch.where(at, log_temperature.exp(), start.temperatures)
        return replace(start, temperatures=temperatures, biases=torch.where(at[:, None], bias, start.biases))

    def loss() -> Tensor:
        return _loss(fusion, items, alone, tried()).mean() + _pull(items.labels, log_temperature, bias)

    _minimise(loss, log_temperature, bias)
    return _detached(tried())


def _fit_weights(fusion: LogLinearFusion, items: CalibrationItems, start: Calibrated) -> Calibrated:
    """What each weighs beside others, from 0 up; on every pair and triple that an item has."""
    several = [presence for presence in items.subsets() if presence.sum(dim=1).amax() > 1]
    if not several:
        return start
    raw = torch.full((len(MODALITIES),), math.log(math.expm1(1.0)), dtype=torch.float64, requires_grad=True)

    def tried() -> Calibrated:
        return replace(start, weights=functional.softplus(raw))

    def loss() -> Tensor:
        losses = torch.cat([_loss(fusion, items, presence, tried()) for presence in several])
        return losses.mean() + _pull(items.labels, functional.softplus(raw) - 1)

    _minimise(loss, raw)
    return _detached(tried())


def calibrate_parts(fusion: CrossModalFusion, items: CalibrationItems, logits: Tensor) -> None:
    """Folds into a fusion what suits the items best: temperature and biases of what each modality says by itself, what
    it weighs beside others, and how much of the interaction is believed.

    items: outputs are the separate logits; logits [items, labels]: the answers to all that an item has.
    """
    count, labels = len(fusion.log_prior), items.labels
    pool = LogLinearFusion({m: Expert("softmax", tuple(range(count))) for m in MODALITIES}, count).double()
    separate, there = list(items.outputs.unbind(dim=1)), items.presence
    with torch.no_grad():
        interaction = logits.double() - fusion.sum_of_evidence(items.outputs, there)[0]
    found = fitted(pool, items)
    sums, _ = pool.pooled(separate, there, found)
    raw = torch.full((), math.log(math.expm1(1.0)), dtype=torch.float64, requires_grad=True)

    def loss() -> Tensor:
        believed = functional.softplus(raw)
        return functional.cross_entropy(sums + believed * interaction, labels) + _pull(items.labels, believed - 1)

    _minimise(loss, raw)
    fusion.calibrate(**vars(found), interaction=float(functional.softplus(raw.detach())))


@dataclass(frozen=True)
class Scaling:
    """What calibrates logits: a factor, and a bias for each label [labels]."""

    factor: float
    biases: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Of [items, labels], float64."""
        return logits.double() * self.factor + self.biases


def vector_scaling(logits: Tensor, labels: Tensor) -> Scaling:
    """What suits logits [items, labels] best: one temperature, and biases that are held towards 0."""
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    given = logits.double()

    def loss() -> Tensor:
        return functional.cross_entropy(given * log_scale.exp() + bias, labels) + _pull(labels, log_scale, bias)

    _minimise(loss, log_scale, bias)
    return Scaling(float(log_scale.detach().exp()), bias.detach())


@torch.no_grad()
def _losses(fusion: LogLinearFusion, items: CalibrationItems, by: Calibrated) -> Tensor:
    """Cross-entropy of each item under each subset that it has."""
    return torch.cat([_loss(fusion, items, presence, by) for presence in items.subsets()])


def _loss(fusion: LogLinearFusion, items: CalibrationItems, presence: Tensor, by: Calibrated) -> Tensor:
    """Cross-entropy of each item that is there."""
    there = presence.sum(dim=1) > 0
    logits, _ = fusion.pooled(list(items.outputs[there].unbind(dim=1)), presence[there], by)
    return functional.cross_entropy(logits, items.labels[there], reduction="none")


def _pull(labels: Tensor, *numbers: Tensor) -> Tensor:
    """Of numbers that do nothing at 0."""
    return HELD / len(labels) * torch.stack([each.square().sum() for each in numbers]).sum()


def _minimise(loss: Callable[[], Tensor], *parameters: Tensor) -> None:
    optimiser = torch.optim.LBFGS(list(parameters), max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimiser.zero_grad()
        value = loss()
        value.backward()  # type: ignore[no-untyped-call]
        return float(value.detach())

    optimiser.step(closure)  # type: ignore[no-untyped-call]


def _double(by: Calibrated) -> Calibrated:
    return Calibrated(**{name: tensor.double() for name, tensor in vars(by).items()})


def _detached(by: Calibrated) -> Calibrated:
    return Calibrated(**{name: tensor.detach() for name, tensor in vars(by).items()})
