"""The models that the Cross-Modal Transformer is compared with, each in the place of its fusion.

All take and give what CrossModalFusion does, so that one export, one server and one evaluation run any of them, and
each is masked as it is: neither padding nor an absent modality has a say. None but the Cross-Modal Transformer weighs
modalities; their `attention` is shared evenly among those that they used.

    image, audio, text   one modality alone; without it, the same answer to everything
    late                 probabilities of three separate models, averaged over the modalities that are there
    concat               one pooled vector a modality, concatenated, and a perceptron
    gated                one pooled vector a modality, added up by gates that see all three (Arevalo et al. 2017, arXiv
                         1702.01992)
    conventional         self-attention over the concatenated tokens of all (as VisualBERT, Li et al. 2019,
                         arXiv 1908.03557, and MMBT, Kiela et al. 2019, arXiv 1909.02950), read out at a class token
    bottleneck           self-attention within each modality and a few tokens that all share (Nagrani et al. 2021, arXiv
                         2107.00135), pooled
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.attention import SINK, Head, Pool, SelfAttentionLayer, bias_of, perceptron, presence_of
from cmt_export.fusion import Fusion, TaughtFusion
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.registry import Registry
from cmt_pipeline.tensors import MODEL_WIDTH

BOTTLENECKS = 4  # tokens, as in the paper

#: What a preset's `kind` of fusion names: subclasses of TaughtFusion, made of a size, a count of labels and a width.
FUSIONS: Registry[Callable[[FusionSize, int, int], TaughtFusion]] = Registry(
    "fusion",
    "cmt_triton.fusions",
    type,
    {"cross_attention": "cmt_export.fusion:CrossModalFusion"},
)


class SingleFusion(Fusion):
    def __init__(self, modality: Modality, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.index = MODALITIES.index(modality)
        self.head = Head(size, labels, width)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, valence_arousal = self.head(features[self.index], masks[self.index])
        return logits, valence_arousal

    def weights_of(self, presence: Tensor) -> Tensor:
        return presence * presence.new_tensor([float(index == self.index) for index in range(len(MODALITIES))])


class LateFusion(Fusion):
    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(size, labels, width) for _ in MODALITIES)

    def separate(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [batch, 3, labels] and valence_arousal [batch, 3, 2] of each modality on its own."""
        answers = [head(f, m) for head, f, m in zip(self.heads, features, masks, strict=True)]
        return torch.stack([a[0] for a in answers], dim=1), torch.stack([a[1] for a in answers], dim=1)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, valence_arousal = self.separate(features, masks)
        present = presence_of(masks).to(logits.dtype)
        count = present.sum(dim=1, keepdim=True).clamp(min=1)
        log_p = functional.log_softmax(logits, dim=-1) + bias_of(present, logits.dtype)[..., None]
        mean = (valence_arousal * present[..., None]).sum(dim=1) / count
        return torch.logsumexp(log_p, dim=1) - count.log(), mean


class ConcatenationFusion(Fusion):
    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.pools = nn.ModuleList(Pool(width) for _ in MODALITIES)
        self.emotion_head = perceptron(len(MODALITIES) * width, size.dropout, labels, width)
        self.valence_arousal_head = perceptron(len(MODALITIES) * width, size.dropout, 2, width)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        pooled = torch.cat([pool(f, m)[:, 0] for pool, f, m in zip(self.pools, features, masks, strict=True)], dim=-1)
        return self.emotion_head(pooled), torch.tanh(self.valence_arousal_head(pooled))


class GatedFusion(Fusion):
    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.pools = nn.ModuleList(Pool(width) for _ in MODALITIES)
        self.values = nn.ModuleList(nn.Linear(width, width) for _ in MODALITIES)
        self.gates = nn.Linear(len(MODALITIES) * width, len(MODALITIES) * width)
        self.emotion_head = perceptron(width, size.dropout, labels, width)
        self.valence_arousal_head = perceptron(width, size.dropout, 2, width)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        present = presence_of(masks).to(features[0].dtype)[..., None]
        pooled = torch.cat([pool(f, m) for pool, f, m in zip(self.pools, features, masks, strict=True)], dim=1)
        values = torch.stack([value(pooled[:, own]) for own, value in enumerate(self.values)], dim=1).tanh()
        gates = torch.sigmoid(self.gates(pooled.flatten(1))).reshape(values.shape)
        fused = (values * gates * present).sum(dim=1)  # [batch, width]
        return self.emotion_head(fused), torch.tanh(self.valence_arousal_head(fused))


class ConventionalFusion(Fusion):
    """Depth, heads and feed-forward width are those of the Cross-Modal Transformer."""

    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.input_norms = nn.ModuleList(nn.LayerNorm(width) for _ in MODALITIES)
        self.modality_embedding = nn.Parameter(torch.randn(len(MODALITIES), width) * SINK)
        self.class_token = nn.Parameter(torch.randn(1, 1, width) * SINK)
        self.layers = nn.ModuleList(SelfAttentionLayer(size, width) for _ in range(size.layers))
        self.output_norm = nn.LayerNorm(width)
        self.emotion_head = perceptron(width, size.dropout, labels, width)
        self.valence_arousal_head = perceptron(width, size.dropout, 2, width)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        streams = [
            norm(stream) + embedding
            for norm, stream, embedding in zip(self.input_norms, features, self.modality_embedding, strict=True)
        ]
        batch = streams[0].shape[0]
        tokens = torch.cat([self.class_token.expand(batch, -1, -1), *streams], dim=1)  # [batch, 1 + tokens, width]
        mask = torch.cat([masks[0].new_ones((batch, 1)), *masks], dim=1)
        for layer in self.layers:
            tokens = layer(tokens, mask)
        fused = self.output_norm(tokens[:, 0])
        return self.emotion_head(fused), torch.tanh(self.valence_arousal_head(fused))


class BottleneckFusion(Fusion):
    """Depth, heads and feed-forward width are those of the Cross-Modal Transformer."""

    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.bottlenecks = nn.Parameter(torch.randn(1, BOTTLENECKS, width) * SINK)
        self.layers = nn.ModuleList(
            nn.ModuleList(SelfAttentionLayer(size, width) for _ in MODALITIES) for _ in range(size.layers)
        )
        self.pools = nn.ModuleList(Pool(width) for _ in MODALITIES)
        self.emotion_head = perceptron(len(MODALITIES) * width, size.dropout, labels, width)
        self.valence_arousal_head = perceptron(len(MODALITIES) * width, size.dropout, 2, width)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        batch, present = features[0].shape[0], presence_of(masks).to(features[0].dtype)
        shares = present / present.sum(dim=1, keepdim=True).clamp(min=1)  # [batch, 3]
        shared, open_mask = self.bottlenecks.expand(batch, -1, -1), masks[0].new_ones((batch, BOTTLENECKS))
        streams = features
        for layer in self.layers:
            made = [
                own(torch.cat([shared, tokens], dim=1), torch.cat([open_mask, mask], dim=1))
                for own, tokens, mask in zip(cast(nn.ModuleList, layer), streams, masks, strict=True)
            ]
            streams = [tokens[:, BOTTLENECKS:] for tokens in made]
            told = torch.stack([tokens[:, :BOTTLENECKS] for tokens in made], dim=1)  # [batch, 3, bottlenecks, width]
            shared = (told * shares[..., None, None]).sum(dim=1)
        pooled = torch.cat([pool(f, m)[:, 0] for pool, f, m in zip(self.pools, streams, masks, strict=True)], dim=-1)
        return self.emotion_head(pooled), torch.tanh(self.valence_arousal_head(pooled))


def fusion_of(model: str, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> Fusion:
    """The fusion of a model by name: `cmt`, whose kind the size names, or one of the baselines. ValueError for an
    unknown one."""
    if model == "cmt":
        return FUSIONS[size.kind](size, labels, width)
    if model in MODALITIES:
        return SingleFusion(MODALITIES[MODALITIES.index(model)], size, labels, width)
    others: dict[str, Callable[[FusionSize, int, int], Fusion]] = {
        "late": LateFusion,
        "concat": ConcatenationFusion,
        "gated": GatedFusion,
        "conventional": ConventionalFusion,
        "bottleneck": BottleneckFusion,
    }
    if model not in others:
        raise ValueError(f"model: got {model!r}; expected cmt, {', '.join(MODALITIES)}, {', '.join(others)}")
    return others[model](size, labels, width)
