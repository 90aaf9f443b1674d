"""What is trained: a model with what only training needs, and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.baselines import LateFusion, presence_of
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import preset_of
from cmt_pipeline.tensors import ABSENT_TOKENS, MODEL_WIDTH, Array
from cmt_training.batches import Batch
from cmt_training.options import TrainOptions
from cmt_training.pretext import Pretext


@dataclass(frozen=True)
class Answers:
    """logits [n, labels], valence_arousal [n, 2]; separate [n, 3, labels]: each modality on its own, where trained.

    error, counted: of the pretext, over so many patches and frames.
    """

    logits: Tensor
    valence_arousal: Tensor
    separate: Tensor | None
    presence: Tensor
    error: Tensor
    counted: Tensor


class Trainee(nn.Module):
    """A model, and beside it a light head on each modality alone that keeps its encoder learning.

    Late fusion needs none: its own heads are trained, each on its modality, and averaged afterwards.
    """

    def __init__(self, model: CrossModalTransformer, options: TrainOptions, labels: int, *, features: bool) -> None:
        """features: the encoders' work was done before; nothing of them is trained."""
        super().__init__()
        self.model = model
        needed = options.model in ("cmt", "concat", "conventional") and options.auxiliary > 0 and not features
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            self.auxiliary = LateFusion(preset_of(options.preset).fusion, labels) if needed else None
            self.pretext = Pretext() if options.pretext > 0 and not features else None
        self._dropout = options.token_dropout
        self._patches: Tensor | None = None
        self._thinned = (True, True, False) if features else (False, False, False)
        if not features and options.token_dropout:
            cast(Any, model.encoders["image"]).backbone.embeddings.register_forward_hook(self._without_patches)

    def forward(self, inputs: dict[str, Tensor], presence: Tensor) -> tuple[Tensor | None, ...]:
        """The fields of Answers; a tuple, because DistributedDataParallel looks for tensors in it."""
        encoded = self.model.encode(inputs, presence) if inputs else stand_ins(presence)
        error = counted = presence.new_zeros((), dtype=torch.float32)
        if self.training and self.pretext is not None:
            error, counted = self.pretext(inputs, encoded, self._patches)
        if self.training and self._dropout:
            encoded = self._thin(encoded)
        features, masks = encoded[::2], encoded[1::2]
        logits, _, valence_arousal, _ = self.model.fusion(*encoded)
        heads = self.auxiliary if self.auxiliary is not None else self.model.fusion
        separate = heads.separate(features, masks)[0] if isinstance(heads, LateFusion) and self.training else None
        return logits, valence_arousal, separate, presence_of(masks), error, counted

    def _thin(self, encoded: list[Tensor]) -> list[Tensor]:
        """Without a random part of the tokens of those modalities that have many."""
        thinned = list(encoded)
        for column, wanted in enumerate(self._thinned):
            count = encoded[2 * column].shape[1]
            if wanted and count > ABSENT_TOKENS:
                kept = _random_part(count, self._dropout)
                # An item whose real tokens all fell out keeps everything that it had.
                mask = encoded[2 * column + 1][:, kept]
                if bool((mask.amax(dim=1) == encoded[2 * column + 1].amax(dim=1)).all()):
                    thinned[2 * column], thinned[2 * column + 1] = encoded[2 * column][:, kept], mask
        return thinned

    def _without_patches(self, embeddings: nn.Module, _: Any, output: Tensor) -> Tensor:
        """[batch, 1 + patches, hidden], the class token always kept."""
        if not embeddings.training:
            return output
        self._patches = _random_part(output.shape[1] - 1, self._dropout)
        return torch.cat([output[:, :1], output[:, 1:][:, self._patches]], dim=1)


class Loss(nn.Module):
    """Sums and the counts they are to be divided by, so that parts of a batch add up to the whole batch's loss."""

    class_weights: Tensor

    def __init__(self, options: TrainOptions, labels: Array, count: int) -> None:
        """labels [n]: of the training items; count: how many labels there are."""
        super().__init__()
        self.options = options
        self.register_buffer("class_weights", class_weights(labels, count, options.class_weighting))

    def forward(self, answers: Answers, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sums [4] and counts [4]: of the answer's loss, each modality's alone, valence and arousal, the pretext."""
        weights = self.class_weights[batch.labels]  # [n]
        terms = [self._cross_entropy(answers.logits, batch.labels, weights)]
        if answers.separate is not None:
            each = answers.presence.to(weights.dtype) * weights[:, None]  # [n, 3]
            repeated = batch.labels[:, None].expand(-1, len(MODALITIES)).flatten()
            terms.append(self._cross_entropy(answers.separate.flatten(0, 1), repeated, each.flatten()))
        else:
            terms.append((weights.new_zeros(()), weights.new_zeros(())))
        known = torch.isfinite(batch.valence_arousal)
        error = (answers.valence_arousal.float() - batch.valence_arousal.nan_to_num()) ** 2
        terms.append(((error * known).sum(), known.sum().to(weights.dtype)))
        terms.append((answers.error, answers.counted))
        return torch.stack([term[0] for term in terms]), torch.stack([term[1] for term in terms])

    def weigh(self, sums: Tensor, counts: Tensor) -> Tensor:
        """One number of sums [4] and counts [4]."""
        own = 0.0 if self.options.model == "late" else 1.0
        alone = 1.0 if self.options.model == "late" else self.options.auxiliary
        factors = sums.new_tensor([own, alone, self.options.valence_arousal, self.options.pretext])
        return (factors * sums / counts.clamp(min=1e-6)).sum()

    def _cross_entropy(self, logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        each = functional.cross_entropy(
            logits.float(), labels, reduction="none", label_smoothing=self.options.label_smoothing
        )
        return (each * weights).sum(), weights.sum()


def modalities_of(model: str) -> NDArray[np.int64]:
    """[3]: 1 for each modality that a model reads."""
    return np.array([int(model not in MODALITIES or model == m) for m in MODALITIES], np.int64)


def class_weights(labels: Array, count: int, power: float) -> Tensor:
    """[count]: frequency to the power of minus `power`, 1 on average over the items."""
    frequency = np.bincount(labels.astype(np.int64), minlength=count).clip(1) / len(labels)
    weights = frequency ** (-power)
    return torch.tensor(weights / (weights * frequency).sum(), dtype=torch.float32)


def stand_ins(presence: Tensor) -> list[Tensor]:
    """What a fusion takes for items [n, 3] that have no modality that is read."""
    tokens = torch.zeros(len(presence), ABSENT_TOKENS, MODEL_WIDTH, device=presence.device)
    return [tokens, torch.zeros_like(tokens[..., 0], dtype=torch.int64)] * len(MODALITIES)


def groups_of(trainee: Trainee, options: TrainOptions) -> Iterator[dict[str, Any]]:
    """AdamW's parameter groups: the text encoder's pretrained layers learn slowly; vectors and norms don't decay."""
    pretrained = {id(p) for p in cast(Any, trainee.model.encoders["text"]).parameters() if p.requires_grad}
    projection = getattr(trainee.model.encoders["text"], "projection", None)
    pretrained -= {id(p) for p in projection.parameters()} if projection is not None else set()
    for slow in (False, True):
        for decays in (True, False):
            chosen = [p for p in trainee.parameters() if (id(p) in pretrained) is slow and (p.ndim > 1) is decays]
            if chosen:
                rate = options.text_learning_rate if slow else options.learning_rate
                decay = options.weight_decay if decays else 0.0
                yield {"params": chosen, "lr": rate, "peak": rate, "weight_decay": decay}


def _random_part(count: int, dropout: float) -> Tensor:
    """Sorted positions of a random part of `count`."""
    return torch.randperm(count)[: max(1, round(count * (1 - dropout)))].sort().values
