"""A ladder of fusions on identical tokens: about as many parameters, the same items, steps and learning rates to try.

    image, audio, text   one modality alone
    log-linear           three experts, calibrated, their evidence added (`cmt_export.log_linear`)
    stacked              a small net over the three experts' logits
    concat, gated        vectors pooled of each modality, concatenated or added by gates
    self-attention       over the tokens of all, together
    bottleneck           self-attention within each modality and a few shared tokens
    cross-attention      each modality's tokens attend to those of the others (`cmt_export.fusion`)

What pools each modality before it meets the others first gets layers of self-attention within each, as deep as the
others are: an encoder's share, so that the rungs differ in where modalities meet and not in how much they read.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast, get_args

from torch import Tensor, nn

from cmt_export.attention import SelfAttentionLayer
from cmt_export.baselines import LateFusion, fusion_of
from cmt_export.fusion import Fusion
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import FusionSize
from cmt_training.binding.family import WIDTH

Rung = Literal[
    "image",
    "audio",
    "text",
    "log-linear",
    "stacked",
    "concat",
    "gated",
    "self-attention",
    "bottleneck",
    "cross-attention",
]
RUNGS: tuple[Rung, ...] = get_args(Rung)
LABELS = 2
SIZE = FusionSize(layers=2, heads=4, feed_forward_width=64, dropout=0.0)
MATCHED = 0.1  # share of the reference's parameters that a rung may be off
#: Rungs that are trained, by the model each is; the others read the experts of `late`.
MODELS: dict[str, str] = {
    "image": "image",
    "audio": "audio",
    "text": "text",
    "late": "late",
    "concat": "concat",
    "gated": "gated",
    "self-attention": "conventional",
    "bottleneck": "bottleneck",
    "cross-attention": "cmt",
}
MEET_AS_TOKENS = ("self-attention", "bottleneck", "cross-attention")


class Reading(nn.Module):
    """Layers of self-attention within each modality that is read, then a fusion."""

    def __init__(self, read: Sequence[int], size: FusionSize, fusion: Fusion) -> None:
        super().__init__()
        self.read = nn.ModuleDict(
            {str(m): nn.ModuleList(SelfAttentionLayer(size, WIDTH) for _ in range(size.layers)) for m in read}
        )
        self.fusion = fusion

    def forward(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> Tensor:
        """Features [items, length, WIDTH] and masks of the three -> logits [items, labels]; of `late`, [items, 3,
        labels]."""
        streams = self.streams(features, masks)
        if isinstance(self.fusion, LateFusion):
            return self.fusion.separate(streams, list(masks))[0]
        logits: Tensor = self.fusion.answer(streams, list(masks))[0]
        return logits

    def streams(self, features: Sequence[Tensor], masks: Sequence[Tensor]) -> list[Tensor]:
        """What the fusion reads, the same shapes."""
        streams = list(features)
        for m, layers in self.read.items():
            for layer in cast(nn.ModuleList, layers):
                streams[int(m)] = layer(streams[int(m)], masks[int(m)])
        return streams


def made(model: str, labels: int = LABELS, dropout: float = 0.0) -> Reading:
    """A net of random weights, its feed-forward nets as wide as it takes to have the parameters of cross-attention."""
    return _of_size(model, replace(SIZE, feed_forward_width=_width_of(model, labels), dropout=dropout), labels)


@functools.cache
def _width_of(model: str, labels: int) -> int:
    """A multiple of 8; the count of parameters is linear in it."""
    wanted = parameters_of(_of_size("cross-attention", SIZE, labels))
    one, two = (parameters_of(_of_size(model, replace(SIZE, feed_forward_width=width), labels)) for width in (8, 16))
    return 8 * max(1, 1 + round((wanted - one) / (two - one)))


def parameters_of(net: nn.Module) -> int:
    """Of those that take part; heads of valence and arousal don't."""
    return sum(p.numel() for name, p in net.named_parameters() if "valence_arousal" not in name)


def _of_size(model: str, size: FusionSize, labels: int) -> Reading:
    if model in MEET_AS_TOKENS:
        read: Sequence[int] = ()
    else:
        read = [MODALITIES.index(model)] if model in MODALITIES else range(len(MODALITIES))
    return Reading(read, size, fusion_of(MODELS[model], size, labels, WIDTH))
