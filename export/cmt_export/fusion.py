"""Cross-modal fusion: each modality attends to the other two, then all are pooled and weighed into one answer.

The idea is the cross-modal attention of the Multimodal Transformer (Tsai et al. 2019, arXiv 1906.00295) as the paper
names it; sizes and the details below are our own. Every attention is masked, so that neither padding nor an absent
modality has a say, and each also sees one learned sink token, so that a modality that is alone attends to something
and the softmax is always defined.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.encoders import MASKED
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH

POOL_HEADS = 32
SCORES = 0.3  # standard deviation of their weights at first


class CrossModalFusion(nn.Module):
    """Features and masks of the three modalities -> logits, probabilities, valence_arousal, attention."""

    temperature: Tensor

    def __init__(self, size: FusionSize, labels: int) -> None:
        super().__init__()
        count = len(MODALITIES)
        self.input_norms = nn.ModuleList(nn.LayerNorm(MODEL_WIDTH) for _ in MODALITIES)
        self.modality_embedding = nn.Parameter(torch.randn(count, MODEL_WIDTH) * 0.02)
        self.layers = nn.ModuleList(CrossModalLayer(size) for _ in range(size.layers))
        self.pools = nn.ModuleList(Pool() for _ in MODALITIES)
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
        masks = [image_mask, audio_mask, text_mask]
        streams = [
            norm(features) + embedding
            for norm, features, embedding in zip(
                self.input_norms,
                (image_features, audio_features, text_features),
                self.modality_embedding,
                strict=True,
            )
        ]
        for layer in self.layers:
            streams = layer(streams, masks)
        pooled = torch.stack(
            [pool(s, m) for pool, s, m in zip(self.pools, streams, masks, strict=True)], dim=1
        )  # [batch, 3, width]
        presence = torch.cat([mask.amax(dim=1, keepdim=True) for mask in masks], dim=1)  # [batch, 3]
        attention = masked_softmax(self.gate(pooled)[..., 0], presence)
        fused = self.output_norm((attention[..., None] * pooled).sum(dim=1))
        logits = self.emotion_head(fused)
        probabilities = functional.softmax(logits / self.temperature, dim=-1)
        return logits, probabilities, torch.tanh(self.valence_arousal_head(fused)), attention


class Pool(nn.Module):
    """[batch, tokens, MODEL_WIDTH] -> [batch, MODEL_WIDTH] by learned scores; a learned vector where none is real.

    Every part of the width has scores of its own: one looks at the mouth, one at the brows. They start far from even,
    so that each looks somewhere else from the beginning.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(MODEL_WIDTH)
        self.score = nn.Linear(MODEL_WIDTH, POOL_HEADS)
        nn.init.normal_(self.score.weight, std=SCORES)
        self.value = nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
        self.absent = nn.Parameter(torch.randn(MODEL_WIDTH) * 0.02)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        tokens = self.norm(features)
        weights = masked_softmax(self.score(tokens).transpose(1, 2), mask[:, None])  # [batch, heads, tokens]
        present = mask.amax(dim=1, keepdim=True).to(tokens.dtype)
        values = self.value(tokens).unflatten(2, (POOL_HEADS, -1)).transpose(1, 2)  # [batch, heads, tokens, width]
        pooled: Tensor = (weights[:, :, None] @ values).flatten(1)
        return pooled * present + self.absent * (1 - present)


class CrossModalLayer(nn.Module):
    """For each modality: attention to the other two and the sink, then a feed-forward net; pre-norm, residual."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.streams = nn.ModuleList(_Stream(size) for _ in MODALITIES)

    def forward(self, streams: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        updated = []
        for index, stream in enumerate(self.streams):
            others = [other for other in range(len(streams)) if other != index]
            context = torch.cat([streams[other] for other in others], dim=1)
            context_mask = torch.cat([masks[other] for other in others], dim=1)
            updated.append(stream(streams[index], context, context_mask))
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


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis of scores where mask is 1; both [batch, n]."""
    return functional.softmax(scores + _bias(mask, scores.dtype), dim=-1)


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return (1 - mask.to(dtype)) * MASKED


def _mlp(dropout: float, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(MODEL_WIDTH, MODEL_WIDTH), nn.GELU(), nn.Dropout(dropout), nn.Linear(MODEL_WIDTH, outputs)
    )
