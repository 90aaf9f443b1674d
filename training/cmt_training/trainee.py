"""What is trained: a model with what only training needs, and the loss."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional

from cmt_export.attention import Head, Pool, presence_of
from cmt_export.baselines import LateFusion, SingleFusion
from cmt_export.fusion import CrossModalFusion, TaughtFusion
from cmt_export.model import CrossModalTransformer
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.presets import preset_of
from cmt_pipeline.tensors import ABSENT_TOKENS, MODEL_WIDTH, Array
from cmt_training.batches import Batch
from cmt_training.options import FROZEN, TrainOptions


@dataclass(frozen=True)
class Answers:
    """logits [n, labels], valence_arousal [n, 2]; separate [n, heads, labels]: each modality on its own, where
    trained: three heads, or twice three.

    cues: what each modality seems to show, [n, cues], in the order of MODALITIES, where that is trained.
    """

    logits: Tensor
    valence_arousal: Tensor
    separate: Tensor | None
    presence: Tensor
    cues: tuple[Tensor, ...] = ()


class Trainee(nn.Module):
    """A model, and beside it a light head on each modality alone that keeps its encoder learning.

    A fusion that has such heads needs none.
    """

    def __init__(
        self,
        model: CrossModalTransformer,
        options: TrainOptions,
        labels: int,
        *,
        features: bool,
        cues: Mapping[Modality, int] | None = None,
        shares: Mapping[str, float] | None = None,
        published: Collection[Modality] = (),
    ) -> None:
        """features: the encoders' work was done before, nothing of them is trained; cues: how many a modality has;
        shares: parameters of published encoders that are tuned -> share of the learning rate; published: whose
        encoders are, of which all tokens are learnt from."""
        super().__init__()
        self.model = model
        self.shares = shares or {}
        self.tuned = {name.split(".")[1] for name in self.shares}
        has_heads = options.model in (*MODALITIES, "late") or isinstance(model.fusion, CrossModalFusion)
        needed = not has_heads and options.auxiliary > 0 and not features
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            self.auxiliary = LateFusion(preset_of(options.preset).fusion, labels) if needed else None
            shown = cues if cues and options.cues > 0 and not features else {}
            self.cues = nn.ModuleDict({m: Cues(count, self._pool_of(m)) for m, count in shown.items()})
        self.features = features
        self._thinned = [m for m in MODALITIES if m not in ("text", *published)]
        self._dropout = options.token_dropout
        image = cast(Any, model.encoders["image"])
        if not features and options.token_dropout and hasattr(image, "backbone") and "image" in self._thinned:
            image.backbone.embeddings.register_forward_hook(self._without_patches)

    def forward(self, inputs: dict[str, Tensor], presence: Tensor) -> tuple[Any, ...]:
        """The fields of Answers; a tuple, because DistributedDataParallel looks for tensors in it."""
        encoded = self.model.encode(inputs, presence) if inputs else stand_ins(presence)
        cues = self._cues(encoded) if self.training else ()
        if self.training and self.features and self._dropout:
            encoded = self._thin(encoded)
        features, masks = encoded[::2], encoded[1::2]
        fusion: Any = self.model.fusion
        heads = self.auxiliary if self.auxiliary is not None else fusion
        separate = []
        if isinstance(heads, LateFusion) and self.training:
            separate.append(heads.separate(features, masks)[0])
        if isinstance(fusion, TaughtFusion) and self.training:
            logits, valence_arousal, apart = fusion.taught(features, masks)
            separate.append(apart)
        else:
            logits, _, valence_arousal, _ = fusion(*encoded)
        alone = torch.cat(separate, dim=1) if separate else None
        return logits, valence_arousal, alone, presence_of(masks), cues

    def _pool_of(self, modality: Modality) -> Pool:
        """That of the head which reads this modality alone, so that cues teach it where to look; else a new one."""
        heads = self.auxiliary if self.auxiliary is not None else self.model.fusion
        if isinstance(heads, LateFusion | CrossModalFusion):
            return cast(Head, heads.heads[MODALITIES.index(modality)]).pool
        return heads.head.pool if isinstance(heads, SingleFusion) else Pool()

    def _cues(self, encoded: list[Tensor]) -> tuple[Tensor, ...]:
        columns = {m: 2 * MODALITIES.index(cast(Modality, m)) for m in self.cues}
        return tuple(self.cues[m](encoded[column], encoded[column + 1]) for m, column in columns.items())

    def _thin(self, encoded: list[Tensor]) -> list[Tensor]:
        """Without a random part of the tokens of those modalities that have many."""
        thinned = list(encoded)
        for m in self._thinned:
            column = MODALITIES.index(m)
            count = encoded[2 * column].shape[1]
            if count > ABSENT_TOKENS:
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
        patches = _random_part(output.shape[1] - 1, self._dropout)
        return torch.cat([output[:, :1], output[:, 1:][:, patches]], dim=1)


class Cues(nn.Module):
    """Tokens of a modality -> what it seems to show."""

    def __init__(self, count: int, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self.read = nn.Linear(MODEL_WIDTH, count)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        """Features [batch, tokens, MODEL_WIDTH], mask [batch, tokens] -> [batch, cues]."""
        found: Tensor = self.read(self.pool(features, mask)[:, 0])
        return found


class Loss(nn.Module):
    """Sums and the counts they are to be divided by, so that parts of a batch add up to the whole batch's loss."""

    class_weights: Tensor
    prior: Tensor

    def __init__(self, options: TrainOptions, labels: Array, count: int) -> None:
        """labels [n]: of the training items; count: how many labels there are. prior [labels]: how often each comes,
        as it is weighted."""
        super().__init__()
        self.options = options
        self.register_buffer("class_weights", class_weights(labels, count, options.class_weighting))
        self.register_buffer("prior", self.class_weights * frequency_of(labels, count))

    def forward(self, answers: Answers, batch: Batch) -> Tensor:
        """Sums [4]: of the answer's loss, each modality's alone, valence and arousal, cues."""
        weights = self.class_weights[batch.labels]  # [n]
        sums = [self._cross_entropy(answers.logits, batch.labels, weights), weights.new_zeros(())]
        if answers.separate is not None:
            heads = answers.separate.shape[1]
            repeats = heads // len(MODALITIES)
            each = answers.presence.repeat(1, repeats).to(weights.dtype) * weights[:, None]  # [n, heads]
            repeated = batch.labels[:, None].expand(-1, heads).flatten()
            sums[1] = self._cross_entropy(answers.separate.flatten(0, 1), repeated, each.flatten()) / repeats
        known = torch.isfinite(batch.valence_arousal)
        error = (answers.valence_arousal.float() - batch.valence_arousal.nan_to_num()) ** 2
        return torch.stack([*sums, (error * known).sum(), self._cues(answers, batch)])

    def counts(self, batch: Batch) -> Tensor:
        """[4]: what the sums are to be divided by."""
        weights = self.class_weights.to(batch.labels.device)[batch.labels]
        known = torch.isfinite(batch.valence_arousal).sum().to(weights.dtype)
        cues = sum((known.sum() for known in _known_cues(batch).values()), weights.new_zeros(()))
        return torch.stack([weights.sum(), (batch.presence * weights[:, None]).sum(), known, cues])

    def weigh(self, sums: Tensor, counts: Tensor) -> Tensor:
        """One number of sums [4] and counts [4]."""
        own, alone = (0.0, 1.0) if self.options.model == "late" else (1.0, self.options.auxiliary)
        factors = sums.new_tensor([own, alone, self.options.valence_arousal, self.options.cues])
        return (factors * sums / counts.clamp(min=1e-6)).sum()

    def _cues(self, answers: Answers, batch: Batch) -> Tensor:
        """Sum over items of the mean squared errors, where a modality is there and has cues."""
        error = answers.logits.new_zeros((), dtype=torch.float32)
        known = _known_cues(batch)
        for found, (m, target) in zip(answers.cues, batch.cues.items(), strict=bool(answers.cues)):
            each = ((found.float() - target.nan_to_num()) ** 2).mean(dim=1)
            error = error + (each * known[m]).sum()
        return error

    def _cross_entropy(self, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        each = functional.cross_entropy(
            logits.float(), labels, reduction="none", label_smoothing=self.options.label_smoothing
        )
        return (each * weights).sum()


def _known_cues(batch: Batch) -> dict[Modality, Tensor]:
    """[n] for each modality that has cues: 1 where an item has both."""
    return {
        m: torch.isfinite(target[:, 0]) * batch.presence[:, MODALITIES.index(m)] for m, target in batch.cues.items()
    }


def modalities_of(model: str) -> NDArray[np.int64]:
    """[3]: 1 for each modality that a model reads."""
    return np.array([int(model not in MODALITIES or model == m) for m in MODALITIES], np.int64)


def class_weights(labels: Array, count: int, power: float) -> Tensor:
    """[count]: frequency to the power of minus `power`, 1 on average over the items."""
    frequency = frequency_of(labels, count)
    weights = frequency ** (-power)
    return weights / (weights * frequency).sum()


def frequency_of(labels: Array, count: int) -> Tensor:
    """[count]: of each label, none 0."""
    counted = np.bincount(labels.astype(np.int64), minlength=count).clip(1)
    return torch.tensor(counted / len(labels), dtype=torch.float32)


def stand_ins(presence: Tensor) -> list[Tensor]:
    """What a fusion takes for items [n, 3] that have no modality that is read."""
    tokens = torch.zeros(len(presence), ABSENT_TOKENS, MODEL_WIDTH, device=presence.device)
    return [tokens, torch.zeros_like(tokens[..., 0], dtype=torch.int64)] * len(MODALITIES)


def groups_of(trainee: Trainee, options: TrainOptions) -> Iterator[dict[str, Any]]:
    """AdamW's parameter groups, by their learning rates; vectors and norms don't decay."""
    rates = options.rates()
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trainee.named_parameters():
        if parameter.requires_grad:
            share = trainee.shares.get(name.removeprefix("model."))
            rate = rates["tuned"] * share if share else rates[_part_of(name, trainee, options.model)]
            # Tensors in shards and whole ones don't go together.
            groups.setdefault((rate, parameter.ndim > 1, isinstance(parameter, DTensor)), []).append(parameter)
    for (rate, decays, _), chosen in groups.items():
        yield {"params": chosen, "lr": rate, "peak": rate, "weight_decay": options.weight_decay if decays else 0.0}


def average_of(trainee: Trainee, options: TrainOptions) -> float:
    """Decay of the average of the weights; 0: none."""
    if options.ema is not None:
        return options.ema
    if options.tune != FROZEN:
        return 0.999
    trained = [name for name, parameter in trainee.named_parameters() if parameter.requires_grad]
    from_nothing = trainee.features or any(_part_of(name, trainee, options.model) == "encoder" for name in trained)
    return 0.0 if from_nothing else 0.99


def _part_of(name: str, trainee: Trainee, model: str) -> str:
    """Of a parameter: encoder, one that nobody published; heads, that read one which isn't tuned; rest."""
    path = name.split(".")
    if trainee.features:
        return "rest"
    if path[:2] == ["model", "encoders"]:
        modality = path[2]
        if path[3] != "projection":
            return "encoder"
    elif path[0] == "cues":
        modality = path[1]
    elif "heads" in path:
        modality = MODALITIES[int(path[path.index("heads") + 1])]
    else:
        modality = model
    return "heads" if modality in {"image", "audio"} - trainee.tuned else "rest"


def _random_part(count: int, dropout: float) -> Tensor:
    """Sorted positions of a random part of `count`."""
    return torch.randperm(count)[: max(1, round(count * (1 - dropout)))].sort().values
