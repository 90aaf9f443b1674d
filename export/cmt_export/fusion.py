"""Cross-modal fusion: what each modality says is believed as far as the other two, attended to, bear it out.

The idea is the cross-modal attention of the Multimodal Transformer (Tsai et al. 2019, arXiv 1906.00295) as the paper
names it, between summaries rather than tokens, as bottlenecks do (Nagrani et al. 2021, arXiv 2107.00135): hundreds of
patches and frames are read once, and attention costs next to nothing. What it finds opens and closes gates on each
modality's own summary (as Arevalo et al. 2017, arXiv 1702.01992), and never takes its place: a fusion that mixed them
freely learnt a few thousand sentences by heart. Sizes and the details below are our own. Every sum and attention is
masked, so that neither padding nor an absent modality has a say, and each attention also sees one learned sink token,
so that a modality that is alone attends to something and the softmax is always defined.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.encoders import MASKED
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH

POOL_HEADS = 32
SCORES = 0.3  # standard deviation of their weights at first
BRANCH = 0.1  # of its usual size, that a residual branch adds at first


class CrossModalFusion(nn.Module):
    """Features and masks of the three modalities -> logits, probabilities, valence_arousal, attention."""

    temperature: Tensor

    def __init__(self, size: FusionSize, labels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(Pool() for _ in MODALITIES)
        self.layers = nn.ModuleList(CrossModalLayer(size) for _ in range(size.layers))
        self.norm = nn.LayerNorm(MODEL_WIDTH)
        self.context_norm = nn.LayerNorm(MODEL_WIDTH)
        self.belief = nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
        self.gate = nn.Linear(MODEL_WIDTH, 1)
        self.emotion_head = perceptron(len(MODALITIES) * MODEL_WIDTH, size.dropout, labels)
        self.valence_arousal_head = perceptron(len(MODALITIES) * MODEL_WIDTH, size.dropout, 2)
        self.register_buffer("temperature", torch.ones(()))  # calibrated after training
        nn.init.zeros_(self.belief.weight)
        nn.init.zeros_(self.belief.bias)

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
        features, masks = [image_features, audio_features, text_features], [image_mask, audio_mask, text_mask]
        return self.answer(*self.weigh(features, masks))

    def weigh(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """What is believed of each modality [batch, 3, width], its weight and whether it is there [batch, 3]."""
        presence = torch.cat([mask.amax(dim=1, keepdim=True) for mask in masks], dim=1)
        summaries = [pool(tokens, mask) for pool, tokens, mask in zip(self.pools, features, masks, strict=True)]
        streams = summaries
        for layer in self.layers:
            streams = layer(streams, presence)
        context = self.context_norm(torch.cat(streams, dim=1))
        believed = self.norm(torch.cat(summaries, dim=1)) * 2 * torch.sigmoid(self.belief(context))
        return believed, masked_softmax(self.gate(context)[..., 0], presence), presence

    def answer(self, believed: Tensor, attention: Tensor, presence: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What `weigh` returned -> what `forward` returns."""
        shares = attention * presence.to(attention.dtype).sum(dim=1, keepdim=True)  # 1 where all count alike
        fused = (believed * shares[..., None]).flatten(1)
        logits = self.emotion_head(fused)
        probabilities = functional.softmax(logits / self.temperature, dim=-1)
        return logits, probabilities, torch.tanh(self.valence_arousal_head(fused)), attention

    def separate(self, believed: Tensor) -> Tensor:
        """Logits [batch, 3, labels] of what is believed of each modality, with nothing beside it in the head.

        Training asks for those, so that no modality leaves the answer to the others.
        """
        alone = (
            believed[:, None] * torch.eye(len(MODALITIES), device=believed.device)[:, :, None]
        )  # [batch, 3, 3, width]
        logits: Tensor = self.emotion_head(alone.flatten(2))
        return logits


class Pool(nn.Module):
    """[batch, tokens, MODEL_WIDTH] -> [batch, 1, MODEL_WIDTH], by learned scores of each real token.

    Every part of the width, a head, has scores of its own: one looks at the mouth, one at the brows. They start far
    from even, so that each looks somewhere else from the beginning. Where no token is real, it is a learned vector.
    """

    def __init__(self, heads: int = POOL_HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(MODEL_WIDTH)
        self.score = nn.Linear(MODEL_WIDTH, heads)
        nn.init.normal_(self.score.weight, std=SCORES)
        self.value = nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
        self.absent = nn.Parameter(torch.randn(1, MODEL_WIDTH) * 0.02)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        tokens = self.norm(features)
        scores = self.score(tokens).transpose(1, 2)[:, :, None]  # [batch, heads, 1, tokens]
        weights = masked_softmax(scores, mask[:, None, None])
        values = self.value(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, part]
        summed = (weights @ values).transpose(1, 2).flatten(2)  # [batch, 1, width]
        present = mask.amax(dim=1)[:, None, None].to(summed.dtype)
        pooled: Tensor = summed * present + self.absent * (1 - present)
        return pooled


class CrossModalLayer(nn.Module):
    """For each modality: attention to the other two and the sink, then a feed-forward net; pre-norm, residual."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.streams = nn.ModuleList(_Stream(size) for _ in MODALITIES)

    def forward(self, streams: list[Tensor], presence: Tensor) -> list[Tensor]:
        """Streams [batch, 1, width], presence [batch, 3]."""
        updated = []
        for index, stream in enumerate(self.streams):
            others = [other for other in range(len(streams)) if other != index]
            context = torch.cat([streams[other] for other in others], dim=1)
            updated.append(stream(streams[index], context, presence[:, others]))
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


def perceptron(inputs: int, dropout: float, outputs: int) -> nn.Sequential:
    """One hidden layer of MODEL_WIDTH."""
    return nn.Sequential(
        nn.Linear(inputs, MODEL_WIDTH), nn.GELU(), nn.Dropout(dropout), nn.Linear(MODEL_WIDTH, outputs)
    )
