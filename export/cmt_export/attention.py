"""What fusions are made of: softmax masked by arithmetic, pooling and self-attention, feed-forward nets, heads."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.encoders import MASKED
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH

POOL_HEADS = 32
SCORES = 0.3  # standard deviation of their weights at first
BRANCH = 0.1  # of its usual size, that a residual branch adds at first
SINK = 0.02  # standard deviation of learned tokens at first


class Pool(nn.Module):
    """[batch, tokens, width] -> [batch, 1, width], by learned scores of each real token.

    Every part of the width, a head, has scores of its own: one looks at the mouth, one at the brows. They start far
    from even, so that each looks somewhere else from the beginning. Where no token is real, it is a learned vector.
    """

    def __init__(self, width: int = MODEL_WIDTH, heads: int = POOL_HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.score = nn.Linear(width, heads)
        nn.init.normal_(self.score.weight, std=SCORES)
        self.value = nn.Linear(width, width)
        self.absent = nn.Parameter(torch.randn(1, width) * SINK)

    def forward(self, features: Tensor, mask: Tensor) -> Tensor:
        tokens = self.norm(features)
        scores = self.score(tokens).transpose(1, 2)[:, :, None]  # [batch, heads, 1, tokens]
        weights = masked_softmax(scores, mask[:, None, None])
        values = self.value(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # [batch, heads, tokens, part]
        summed = (weights @ values).transpose(1, 2).flatten(2)  # [batch, 1, width]
        present = mask.amax(dim=1)[:, None, None].to(summed.dtype)
        pooled: Tensor = summed * present + self.absent * (1 - present)
        return pooled


class Head(nn.Module):
    """Tokens of one modality -> a pooled vector -> logits and valence_arousal."""

    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.pool = Pool(width)
        self.emotion_head = perceptron(width, size.dropout, labels, width)
        self.valence_arousal_head = perceptron(width, size.dropout, 2, width)

    def read(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features [batch, tokens, width], mask [batch, tokens] -> [batch, labels], [batch, 2] without bounds."""
        pooled = self.pool(features, mask)[:, 0]
        return self.emotion_head(pooled), self.valence_arousal_head(pooled)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """As `read`, the second in [-1, 1]."""
        logits, valence_arousal = self.read(features, mask)
        return logits, torch.tanh(valence_arousal)


class SelfAttentionLayer(nn.Module):
    """Self-attention and a feed-forward net; pre-norm, residual."""

    def __init__(self, size: FusionSize, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = feed_forward(size, width)
        self.dropout = nn.Dropout(size.dropout)
        small_at_first(self.output, self.feed_forward[-1])

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Tokens [batch, n, width], mask [batch, n] -> [batch, n, width]."""
        parts = self.query_key_value(self.norm(tokens)).chunk(3, dim=-1)
        query, key, value = (p.reshape(*p.shape[:2], self.heads, -1).transpose(1, 2) for p in parts)
        bias = bias_of(mask, query.dtype)[:, None, None, :]
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        tokens = tokens + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        updated: Tensor = tokens + self.dropout(self.feed_forward(tokens))
        return updated


def feed_forward(size: FusionSize, width: int = MODEL_WIDTH) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, size.feed_forward_width),
        nn.GELU(),
        nn.Dropout(size.dropout),
        nn.Linear(size.feed_forward_width, width),
    )


def perceptron(inputs: int, dropout: float, outputs: int, hidden: int = MODEL_WIDTH) -> nn.Sequential:
    """One hidden layer."""
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, outputs))


@torch.no_grad()
def small_at_first(*lasts: nn.Module) -> None:
    """Of residual branches: what an encoder says then reaches the answer from the first step on (as LayerScale)."""
    for last in lasts:
        cast(nn.Linear, last).weight.mul_(BRANCH)


@torch.no_grad()
def nothing_at_first(last: nn.Module) -> None:
    """Of what is added to something that is right without it (Zhang et al. 2019, arXiv 1901.09321)."""
    for parameter in last.parameters():
        parameter.zero_()


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis of scores where mask, which broadcasts over them, is 1."""
    return functional.softmax(scores + bias_of(mask, scores.dtype), dim=-1)


def bias_of(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores: 0 where the mask is 1, else enough to close them."""
    return (1 - mask.to(dtype)) * MASKED


def presence_of(masks: list[Tensor]) -> Tensor:
    """Masks [batch, tokens] -> [batch, 3], 1 where an item has the modality."""
    return torch.cat([mask.amax(dim=1, keepdim=True) for mask in masks], dim=1)
