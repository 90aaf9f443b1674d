"""Log-linear pooling of published classifiers; exact where the modalities are independent given the label.

    log p(y | all)  =  log prior(y) + sum over modalities of weight * log ( p(y | modality) / prior(y) )  + a constant

Each p(y | modality) is a head's own: its logits over a temperature, plus a bias for each label, its names gathered
into labels. Names that have no place among the labels leave it. Of labels that a head doesn't know it says nothing:
they keep the prior's share. A modality that is absent adds nothing; alone, its weight is 1, so that what was calibrated
alone is answered alone. (Logarithmic opinion pool: Genest and Zidek 1986, Statistical Science 1, 114.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from cmt_export.attention import presence_of
from cmt_export.fusion import Fusion
from cmt_pipeline.modality import MODALITIES, Modality

#: softmax: one of its names; sigmoid: any of its names, each by itself; dimensional: numbers from 0 to 1.
HeadKind = Literal["softmax", "sigmoid", "dimensional"]
DIMENSIONS = ("valence", "arousal")  # as the contract's output has them


@dataclass(frozen=True)
class Expert:
    """What a head's outputs mean. places: of each output, the index of its label, or of its dimension; -1 for none."""

    kind: HeadKind
    places: tuple[int, ...]

    def of(self, place: int) -> list[int]:
        """The outputs that mean a label."""
        return [output for output, meant in enumerate(self.places) if meant == place]


@dataclass(frozen=True)
class Calibrated:
    """What calibration finds. log_prior: [labels]; temperatures and weights: [3]; biases: [3, labels]."""

    log_prior: Tensor
    temperatures: Tensor
    biases: Tensor
    weights: Tensor

    @classmethod
    def none(cls, labels: int) -> Calibrated:
        """Heads as they are: every label alike before anything is read, every modality of the same weight."""
        heads = len(MODALITIES)
        prior = torch.full((labels,), -math.log(labels))
        return cls(prior, torch.ones(heads), torch.zeros(heads, labels), torch.ones(heads))


class LogLinearFusion(Fusion):
    """Features [batch, 1, width] of classifiers, their logits in the first channels -> the contract's four outputs."""

    def __init__(self, experts: Mapping[Modality, Expert], labels: int) -> None:
        super().__init__()
        self.experts = dict(experts)
        self.count = labels
        for name, tensor in vars(Calibrated.none(labels)).items():
            self.register_buffer(name, tensor)

    @property
    def calibrated(self) -> Calibrated:
        return Calibrated(**{field.name: getattr(self, field.name) for field in fields(Calibrated)})

    def calibrate(self, found: Calibrated) -> None:
        for name, tensor in vars(found).items():
            getattr(self, name).copy_(tensor)

    @property
    def reads_valence_arousal(self) -> bool:
        return any(expert.kind == "dimensional" for expert in self.experts.values())

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        presence = presence_of(masks).to(features[0].dtype)
        return self.pooled([tokens[:, 0] for tokens in features], presence, self.calibrated)

    def weights_of(self, presence: Tensor) -> Tensor:
        return weights_of(presence, self.calibrated)

    def pooled(self, outputs: Sequence[Tensor], presence: Tensor, by: Calibrated) -> tuple[Tensor, Tensor]:
        """Outputs of the three heads [batch, width] and presence [batch, 3] -> log-probabilities [batch, labels],
        valence and arousal [batch, 2]."""
        weights = weights_of(presence, by)
        logits = by.log_prior.expand(outputs[0].shape[0], -1)
        dimensions = outputs[0].new_zeros((outputs[0].shape[0], len(DIMENSIONS)))
        read = outputs[0].new_zeros((outputs[0].shape[0], 1))
        for index, m in enumerate(MODALITIES):
            expert, there = self.experts.get(m), presence[:, index : index + 1]
            if expert is None:
                continue
            if expert.kind == "dimensional":
                dimensions, read = dimensions + there * _dimensions(expert, outputs[index]), read + there
            else:
                logits = logits + weights[:, index : index + 1] * self.evidence(m, outputs[index], by)
        return functional.log_softmax(logits, dim=-1), dimensions / read.clamp(min=1)

    def evidence(self, modality: Modality, outputs: Tensor, by: Calibrated) -> Tensor:
        """log ( p(y | modality) / prior(y) ) [batch, labels] of a head's outputs [batch, width]; 0 for the labels that
        it doesn't know."""
        expert, index = self.experts[modality], MODALITIES.index(modality)
        known = [label for label in range(self.count) if expert.of(label)]
        scores = torch.stack([_score(expert, outputs / by.temperatures[index], label) for label in known], dim=1)
        posterior = functional.log_softmax(scores + by.biases[index, known], dim=1)
        prior = functional.log_softmax(by.log_prior[known], dim=0)
        ratios = dict(zip(known, (posterior - prior).unbind(dim=1), strict=True))
        nothing = torch.zeros_like(outputs[:, 0])
        return torch.stack([ratios.get(label, nothing) for label in range(self.count)], dim=1)


def weights_of(presence: Tensor, by: Calibrated) -> Tensor:
    """What each modality weighs [batch, 3]: alone 1."""
    several = presence.sum(dim=1, keepdim=True) > 1
    return presence * torch.where(several, by.weights, torch.ones_like(by.weights))


def _score(expert: Expert, logits: Tensor, label: int) -> Tensor:
    """What a head gives a label [batch], up to a constant for all labels: the log of the sum of its names'
    probabilities; of names that stand each by itself, that of the likeliest."""
    own = logits[:, expert.of(label)]
    if expert.kind == "softmax":
        return torch.logsumexp(own, dim=1)
    return functional.logsigmoid(own).amax(dim=1)


def _dimensions(expert: Expert, outputs: Tensor) -> Tensor:
    """Numbers from 0 to 1 -> valence and arousal [batch, 2] from -1 to 1; 0 for one that the head doesn't give."""
    nothing = torch.zeros_like(outputs[:, 0])
    found = [expert.of(place) for place in range(len(DIMENSIONS))]
    return torch.stack([2 * outputs[:, own[0]].clamp(0, 1) - 1 if own else nothing for own in found], dim=1)
