"""The Cross-Modal Transformer in PyTorch: the truth that every engine is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from cmt_export.encoders import Features
from cmt_export.fusion import Fusion
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.stages import FUSE, READY, STAGES, Stage
from cmt_pipeline.tensors import ABSENT_TOKENS, DEFAULT_SIZES, MODEL_WIDTH, Array, Arrays, Sizes


class CrossModalTransformer(nn.Module):
    """Encoders of the modalities and their fusion, or a baseline's in its place. A modality without an encoder is
    never there."""

    def __init__(self, encoders: Mapping[Modality, nn.Module], fusion: Fusion) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({m: encoders[m] if m in encoders else NoEncoder() for m in MODALITIES})
        self.fusion = fusion

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that have an encoder."""
        return tuple(m for m in MODALITIES if not isinstance(self.encoders[m], NoEncoder))

    @property
    def reads_valence_arousal(self) -> bool:
        """Whether that output means anything."""
        return bool(getattr(self.fusion, "reads_valence_arousal", True))

    @property
    def sizes(self) -> Sizes:
        """Of the features: an encoder that makes other tokens than usual of its input says so by `tokens`."""
        told: dict[str, Any] = {m: getattr(self.encoders[m], "tokens", DEFAULT_SIZES.tokens(m)) for m in MODALITIES}
        return Sizes(**told)

    def forward(self, inputs: Mapping[str, Tensor], presence: Tensor | None = None) -> dict[str, Tensor]:
        """Ready tensors of one or more modalities -> logits, probabilities, valence_arousal, attention.

        presence: [batch, 3], 1 where an item has the modality; without it, an item has whatever `inputs` has.
        """
        fused = self.fusion(*self.encode(inputs, presence))
        return {spec.name: tensor for spec, tensor in zip(FUSE.outputs, fused, strict=True)}

    def encode(self, inputs: Mapping[str, Tensor], presence: Tensor | None = None) -> list[Tensor]:
        """What the fusion takes: features and mask of each modality, stand-ins for those that `inputs` lacks."""
        encoded = {}
        for index, m in enumerate(MODALITIES):
            names = [spec.name for spec in READY[m]]
            if names[0] not in inputs:
                continue
            features, mask = self.encoders[m](*(inputs[name] for name in names))
            if presence is not None:
                mask = mask * presence[:, index : index + 1].to(mask.dtype)
            encoded[m] = (features, mask)
        if not encoded:
            raise ValueError(f"got tensors {sorted(inputs)}; expected those of one modality or more")
        stand_in = absent_like(next(iter(encoded.values()))[0])
        return [tensor for m in MODALITIES for tensor in encoded.get(m, stand_in)]

    def run_stage(self, stage: Stage, inputs: Arrays) -> dict[str, Array]:
        """`run_stage`, as the truth that engines are held against."""
        return run_stage(self, stage, inputs)

    def stage(self, stage: Stage) -> nn.Module:
        """The part that a compiled stage runs, with the contract's inputs and outputs in order."""
        if stage.modality is None:
            return self.fusion
        return EncodeStage(self.encoders[stage.modality])


class NoEncoder(nn.Module):
    """In the place of an encoder that a model doesn't have: any ready tensors -> one token, masked out."""

    tokens = (ABSENT_TOKENS,)

    def forward(self, *inputs: Tensor) -> Features:
        nothing = sum(tensor.flatten(1)[:, :1].float() * 0 for tensor in inputs)  # of every input, or some would go
        features, mask = absent_like(cast(Tensor, nothing)[:, :, None])
        return features + cast(Tensor, nothing)[:, :, None], mask


class EncodeStage(nn.Module):
    """An encoder with the masked stand-in for absent modalities beside its features."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        features, mask = self.encoder(*inputs)
        return features, mask, *absent_like(features)


def absent_like(features: Tensor) -> Features:
    """The stand-in for an absent modality: zeros [batch, 1, MODEL_WIDTH] with a mask of zeros [batch, 1]."""
    batch = features.shape[0]
    return features.new_zeros((batch, ABSENT_TOKENS, MODEL_WIDTH)), features.new_zeros(
        (batch, ABSENT_TOKENS), dtype=torch.int64
    )


@torch.inference_mode()
def run_model(model: CrossModalTransformer, inputs: Arrays) -> dict[str, Array]:
    """The reference answer, fp32: ready tensors [batch, ...] -> the outputs of `fuse`."""
    model.eval()
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in inputs.items()}
    return {name: tensor.numpy() for name, tensor in model(tensors).items()}


@torch.inference_mode()
def run_stage(model: CrossModalTransformer, stage: Stage, inputs: Arrays) -> dict[str, Array]:
    """The reference for one stage: its contract inputs [batch, ...] -> its contract outputs."""
    model.eval()
    tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in stage.inputs]
    outputs = cast("tuple[Tensor, ...]", model.stage(stage)(*tensors))
    return {spec.name: tensor.numpy() for spec, tensor in zip(STAGES[stage.name].outputs, outputs, strict=True)}
