"""Cross-modal fusion: each modality is summed up in a few latent tokens, which attend to those of the other two.

The idea is the cross-modal attention of the Multimodal Transformer (Tsai et al. 2019, arXiv 1906.00295) as the paper
names it, between latents as in the Perceiver Resampler (Alayrac et al. 2022, arXiv 2204.14198) and the bottlenecks of
Nagrani et al. (2021, arXiv 2107.00135): hundreds of patches and frames are read once, and attention costs next to
nothing. Sizes and the details below are our own. Every sum and attention is masked, so that neither padding nor an
absent modality has a say, and each attention also sees one learned sink token, so that a modality that is alone attends
to something and the softmax is always defined.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.encoders import MASKED
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH

POOL_HEADS = 32  # of a single vector
LATENT_HEADS = 8  # of each latent
SCORES = 0.3  # standard deviation of their weights at first
BRANCH = 0.1  # of its usual size, that a residual branch adds at first


class CrossModalFusion(nn.Module):
    """Features and masks of the three modalities -> logits, probabilities, valence_arousal, attention."""

    temperature: Tensor

    def __init__(self, size: FusionSize, labels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(Pool(size.latents, LATENT_HEADS) for _ in MODALITIES)
        self.layers = nn.ModuleList(CrossModalLayer(size) for _ in range(size.layers))
        self.reads = nn.Parameter(torch.randn(len(MODALITIES), size.latents, MODEL_WIDTH) / math.sqrt(size.latents))
        self.gate = nn.Linear(MODEL_WIDTH, 1)
        self.output_norm = nn.LayerNorm(MODEL_WIDTH)
        self.emotion_head = _mlp(size.dropout, labels)
        self.valence_arousal_head = _mlp(size.dropout, 2)
        self.register_buffer("temperature", torch.ones(()))  # calibrated after training

    def forward(
        self,
        image_features: Tensor,
        image_mask: Tensor,
        audio_features: Tensor,
        audio_mask: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features [batch, tokens, MODEL_WIDTH], masks [batch, tokens]; a mask of zeros says that a modality is absent.

        Returns logits [batch, labels], probabilities [batch, labels], valence_arousal [batch, 2] in [-1, 1] and
        attention [batch, 3]: the weight of each modality in the answer, 0 where absent.
        """
        return self.read([image_features, audio_features, text_features], [image_mask, audio_mask, text_mask])[:4]

    def read(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What forward returns, and the logits [batch, 3, labels] that each modality's pooled vector alone would give.

        Training asks for those, so that no modality leaves the answer to the others.
        """
        presence = torch.cat([mask.amax(dim=1, keepdim=True) for mask in masks], dim=1)  # [batch, 3]
        streams = [pool(tokens, mask) for pool, tokens, mask in zip(self.pools, features, masks, strict=True)]
        for layer in self.layers:
            streams = layer(streams, presence)
        pooled = (torch.stack(streams, dim=1) * self.reads).sum(dim=2)  # [batch, 3, width]
        attention = masked_softmax(self.gate(pooled)[..., 0], presence)
        fused = self.output_norm((attention[..., None] * pooled).sum(dim=1))
        logits = self.emotion_head(fused)
        probabilities = functional.softmax(logits / self.temperature, dim=-1)
        separate = self.emotion_head(self.output_norm(pooled))
        return logits, probabilities, torch.tanh(self.valence_arousal_head(fused)), attention, separate


class Pool(nn.Module):
    """[batch, tokens, MODEL_WIDTH] -> [batch, latents, MODEL_WIDTH], by learned scores of each real token.

    Every latent, and every part of its width, has scores of its own: one looks at the mouth, one at the brows. They
    start far from even, so that each looks somewhere else from the beginning. Where no token is real, latents are
    learned vectors.
    """

    def __init__(self, latents: int = 1, heads: int = POOL_HEADS) -> None:
        super().__init__()
        self.latents, self.heads = latents, heads
        self.norm = nn.LayerNorm(MODEL_WIDTH)
        self.score = nn.Linear(MODEL_WIDTH, latents * heads)
        nn.init.normal_(self.score.weight, std=SCORES)
        self.value = nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
        self.absent = nn.Parameter(torch.randn(latents, MODEL_WIDTH) * 0.02)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        tokens = self.norm(features)
        scores = self.score(tokens).unflatten(2, (self.heads, self.latents)).permute(0, 2, 3, 1)
        weights = masked_softmax(scores, mask[:, None, None])  # [batch, heads, latents, tokens]
        values = self.value(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, part]
        summed = (weights @ values).transpose(1, 2).flatten(2)  # [batch, latents, width]
        present = mask.amax(dim=1)[:, None, None].to(summed.dtype)
        pooled: Tensor = summed * present + self.absent * (1 - present)
        return pooled


class CrossModalLayer(nn.Module):
    """For each modality: attention to the other two and the sink, then a feed-forward net; pre-norm, residual."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.streams = nn.ModuleList(_Stream(size) for _ in MODALITIES)

    def forward(self, streams: list[Tensor], presence: Tensor) -> list[Tensor]:
        """Streams [batch, latents, width], presence [batch, 3]."""
        updated = []
        for index, stream in enumerate(self.streams):
            others = [other for other in range(len(streams)) if other != index]
            context = torch.cat([streams[other] for other in others], dim=1)
            latents = [presence[:, other : other + 1].expand(-1, streams[other].shape[1]) for other in others]
            updated.append(stream(streams[index], context, torch.cat(latents, dim=1)))
        return updated


class _Stream(nn.Module):
    """One modality's part of a layer."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.query_norm = nn.LayerNorm(MODEL_WIDTH)
        self.context_norm = nn.LayerNorm(MODEL_WIDTH)
        self.sink = nn.Parameter(torch.randn(1, 1, MODEL_WIDTH) * 0.02)
        self.query = nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
        self.key_value = nn.Linear(MODEL_WIDTH, 2 * MODEL_WIDTH)
        self.output = nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(MODEL_WIDTH),
            nn.Linear(MODEL_WIDTH, size.feed_forward_width),
            nn.GELU(),
            nn.Dropout(size.dropout),
            nn.Linear(size.feed_forward_width, MODEL_WIDTH),
        )
        self.dropout = nn.Dropout(size.dropout)
        small_at_first(self.output, self.feed_forward[-1])

    def forward(self, stream: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        stream = stream + self.dropout(self._attend(self.query_norm(stream), context, context_mask))
        updated: Tensor = stream + self.dropout(self.feed_forward(stream))
        return updated

    def _attend(self, query: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        batch = query.shape[0]
        context = torch.cat([self.sink.expand(batch, -1, -1), context], dim=1)
        keys, values = self.key_value(self.context_norm(context)).chunk(2, dim=-1)
        open_sink = context_mask.new_ones((batch, 1))
        bias = _bias(torch.cat([open_sink, context_mask], dim=1), query.dtype)  # [batch, 1 + context]
        attended = functional.scaled_dot_product_attention(
            self._split(self.query(query)),
            self._split(keys),
            self._split(values),
            attn_mask=bias[:, None, None, :],
        )
        return self.output(attended.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _split(self, tokens: Tensor) -> Tensor:
        """[batch, tokens, width] -> [batch, heads, tokens, width / heads]."""
        return tokens.reshape(*tokens.shape[:2], self.heads, -1).transpose(1, 2)


@torch.no_grad()
def small_at_first(*lasts: nn.Module) -> None:
    """Of residual branches: what an encoder says then reaches the answer from the first step on (as LayerScale)."""
    for last in lasts:
        cast(nn.Linear, last).weight.mul_(BRANCH)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis of scores where mask, which broadcasts over them, is 1."""
    return functional.softmax(scores + _bias(mask, scores.dtype), dim=-1)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return (1 - mask.to(dtype)) * MASKED


def _mlp(dropout: float, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(MODEL_WIDTH, MODEL_WIDTH), nn.GELU(), nn.Dropout(dropout), nn.Linear(MODEL_WIDTH, outputs)
    )
