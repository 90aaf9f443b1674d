"""One net of the ladder: how it reads the encoders' tokens, and how it is trained."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.fusion import CrossModalFusion
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.tensors import MODEL_WIDTH
from cmt_training.batches import EVERYTHING, by_length, epoch_order
from cmt_training.binding.family import WIDTH, Items
from cmt_training.binding.fit import loss_of
from cmt_training.binding.ladder import made
from cmt_training.calibration import CalibrationItems, calibrate_parts, vector_scaling
from cmt_training.compare.tokens import Indices, Tokens
from cmt_training.fitting import share_of_peak, start_from_prior
from cmt_training.options import TrainOptions
from cmt_training.state import Average
from cmt_training.trainee import frequency_of, modalities_of

LONGEST_WAVE = 64.0  # of the code of a token's place, in tokens
READ_AT_ONCE = 256  # items
#: What is left out of every item -> what is read.
ONLY: dict[str, NDArray[np.int64]] = {"": EVERYTHING} | {str(m): 1 - modalities_of(m) for m in MODALITIES}


@dataclass(frozen=True)
class Budget:
    """Of every rung alike. check_every: steps between looks at the validation items; learning_rates: each is tried with
    the first seed, the best kept; modality_dropout: chance that an item loses one modality; dropout: within layers;
    average: decay of an average of the weights over steps, which is what is looked at and kept."""

    steps: int = 1200
    check_every: int = 150
    batch_size: int = 128
    learning_rates: tuple[float, ...] = (1e-3, 3e-3)
    modality_dropout: float = 0.1
    dropout: float = 0.2
    average: float = 0.98
    weight_decay: float = 0.01
    clip_norm: float = 1.0


class Net(nn.Module):
    """Tokens [items, tokens, MODEL_WIDTH], each modality's projected to WIDTH, beside a code of their place, then a
    rung of the ladder."""

    def __init__(self, model: str, labels: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.read = [MODALITIES.index(model)] if model in MODALITIES else range(len(MODALITIES))
        self.projections = nn.ModuleDict(
            {str(m): nn.Sequential(nn.LayerNorm(MODEL_WIDTH), nn.Linear(MODEL_WIDTH, WIDTH)) for m in self.read}
        )
        self.rung = made(model, labels, dropout)

    def projected(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of the three -> [items, tokens, WIDTH] each; those that aren't read are empty of meaning."""
        streams = [each[..., :WIDTH] for each in features]
        for m, projection in self.projections.items():
            streams[int(m)] = projection(features[int(m)]) + _places(features[int(m)].shape[1])
        return streams

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        logits: Tensor = self.rung(self.projected(features), masks)
        return logits

    def taught(self, items: Items) -> tuple[Tensor, Tensor]:
        """Of cross-attention: logits [items, labels], and those of each modality by itself [items, 3, labels]."""
        streams = self.rung.streams(self.projected(items.features), items.masks)
        logits, _, separate = self.cross_modal.taught(streams, list(items.masks))
        return logits, separate

    @property
    def cross_modal(self) -> CrossModalFusion:
        return cast(CrossModalFusion, self.rung.fusion)

    def loss(self, items: Items) -> Tensor:
        if not isinstance(self.rung.fusion, CrossModalFusion):
            return loss_of(self(items.features, items.masks), items.labels)
        logits, separate = self.taught(items)
        there = torch.stack([mask.amax(dim=1) for mask in items.masks], dim=1)
        labels = items.labels[:, None].expand(there.shape)
        each = functional.cross_entropy(separate.transpose(1, 2), labels, reduction="none")
        return loss_of(logits, items.labels) + (each * there).sum() / there.sum()


@dataclass(frozen=True)
class Learnt:
    """validation_loss: the least once calibrated, that after `best_step`, whose weights the net has."""

    net: Net
    validation_loss: float
    best_step: int
    seconds: float


def learn(model: str, tokens: Tokens, rate: float, budget: Budget, seed: int) -> Learnt:
    """Trains a net of the ladder on the training items; the validation items say after which step it is best."""
    torch.manual_seed(seed)
    net = Net(model, len(tokens.names), budget.dropout)
    start_from_prior(net.rung.fusion, frequency_of(tokens.labels[tokens.of("train")], len(tokens.names)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, weight_decay=budget.weight_decay)
    average = Average(net, budget.average)
    options, started, validation = TrainOptions(), time.perf_counter(), tokens.of("validation")
    losses: dict[int, float] = {}
    best: dict[str, Tensor] = {}
    rng = np.random.default_rng(seed)
    for step, batch in enumerate(_batches(tokens, budget, seed), 1):
        items = _without_some(tokens.items(batch), budget.modality_dropout, rng)
        for group in optimizer.param_groups:
            group["lr"] = rate * share_of_peak(step, budget.steps, options)
        optimizer.zero_grad(set_to_none=True)
        net.train()
        torch.autograd.backward(net.loss(items))
        nn.utils.clip_grad_norm_(net.parameters(), budget.clip_norm)
        optimizer.step()
        average.update(step)
        if step % budget.check_every == 0 or step == budget.steps:
            with average.in_place():
                now = copy.deepcopy(net)
            losses[step] = calibrated(now, tokens, validation)
            if losses[step] == min(losses.values()):
                best = now.state_dict()
    net.load_state_dict(best)
    return Learnt(net.eval(), min(losses.values()), min(losses, key=losses.__getitem__), time.perf_counter() - started)


def calibrated(net: Net, tokens: Tokens, rows: Indices) -> float:
    """Cross-entropy of these items when the net is calibrated on them: by a temperature and biases of the labels, each
    expert of `late` by itself; cross-attention by its parts before, which it keeps."""
    labels = torch.from_numpy(tokens.labels[rows])
    answers = said(net, tokens, rows).clone()
    if isinstance(net.rung.fusion, CrossModalFusion):
        there = (torch.from_numpy(tokens.counts[rows]) > 0).double()
        separate = torch.stack([said(net, tokens, rows, tuple(modalities_of(m))).clone() for m in MODALITIES], dim=1)
        calibrate_parts(net.cross_modal, CalibrationItems(separate.double(), there, labels), answers)
        answers = said(net, tokens, rows).clone()
    experts = answers.unbind(dim=1) if answers.ndim > 2 else [answers]
    return float(torch.stack([loss_of(vector_scaling(one, labels)(one), labels) for one in experts]).mean())


def _batches(tokens: Tokens, budget: Budget, seed: int) -> Iterator[Indices]:
    """Of items about equally long, through all of them in one random order after another."""
    rows = tokens.of("train")
    lengths = tokens.counts[rows].sum(axis=1).tolist()
    orders = (epoch_order(rows.tolist(), lengths, budget.batch_size, seed, epoch) for epoch in itertools.count())
    yield from map(np.array, itertools.islice(itertools.chain.from_iterable(orders), budget.steps))


@torch.inference_mode()
def said(net: Net, tokens: Tokens, rows: Indices, only: Sequence[int] = tuple(EVERYTHING)) -> Tensor:
    """Logits of these items, in their order. only [3]: 0 for modalities that are left out."""
    net.eval()
    batches = by_length(range(len(rows)), tokens.counts[rows].sum(axis=1).tolist(), READ_AT_ONCE)
    parts = []
    for batch in batches:
        items = tokens.items(rows[batch])
        parts.append(net(items.features, [mask * int(there) for mask, there in zip(items.masks, only, strict=True)]))
    order = torch.tensor([place for batch in batches for place in batch])
    return torch.cat(parts)[order.argsort()]


def _without_some(items: Items, chance: float, rng: np.random.Generator) -> Items:
    """Some of the items lose a modality, where another is left."""
    lost = np.where(rng.random(len(items)) < chance, rng.integers(0, len(MODALITIES), len(items)), -1)
    there = torch.stack([mask.amax(dim=1) for mask in items.masks], dim=1)
    kept = torch.from_numpy(lost[:, None] != np.arange(len(MODALITIES))).to(there.dtype)
    kept = torch.where((there * kept).amax(dim=1, keepdim=True) > 0, kept, 1)
    return Items(items.features, tuple(m * kept[:, n : n + 1] for n, m in enumerate(items.masks)), items.labels)


def _places(count: int) -> Tensor:
    """[count, WIDTH]: sines and cosines of each place."""
    waves = torch.from_numpy(np.geomspace(4.0, LONGEST_WAVE, WIDTH // 2)).float()
    angles = 2 * torch.pi * torch.arange(count)[:, None] / waves
    return torch.cat([angles.sin(), angles.cos()], dim=1)
