"""Fusion of summaries: what each modality says is believed as far as the other two, attended to, bear it out.

Each modality is pooled first, and three vectors attend to each other rather than hundreds of tokens. What they find
opens and closes gates on each modality's own summary (as Arevalo et al. 2017, arXiv 1702.01992), and never takes its
place. It costs next to nothing and suits little data; what has to be read from two modalities at once, token by token,
it can't see.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.attention import (
    SINK,
    Pool,
    bias_of,
    feed_forward,
    masked_softmax,
    perceptron,
    presence_of,
    small_at_first,
)
from cmt_export.fusion import OTHERS, TaughtFusion
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH


class SummaryFusion(TaughtFusion):
    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.pools = nn.ModuleList(Pool(width) for _ in MODALITIES)
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 1)
        self.emotion_head = perceptron(len(MODALITIES) * width, size.dropout, labels, width)
        self.valence_arousal_head = perceptron(len(MODALITIES) * width, size.dropout, 2, width)
        self.layers = nn.ModuleList(SummaryLayer(size, width) for _ in range(size.layers))
        self.context_norm = nn.LayerNorm(width)
        self.belief = nn.Linear(width, width)
        nn.init.zeros_(self.belief.weight)
        nn.init.zeros_(self.belief.bias)

    def answer(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        believed, context = self._summarised(features, masks)
        return self._read(believed, context, presence_of(masks))

    def taught(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The separate logits are those of each modality's summary with zeros in the place of the others'."""
        believed, context = self._summarised(features, masks)
        logits, valence_arousal, _ = self._read(believed, context, presence_of(masks))
        alone = believed[:, None] * torch.eye(len(MODALITIES), device=believed.device)[:, :, None]
        return logits, valence_arousal, self.emotion_head(alone.flatten(2))  # of [batch, 3, 3 * width]

    def _summarised(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What is believed of each modality, and what the others bear out."""
        presence = presence_of(masks)
        summaries = [pool(tokens, mask) for pool, tokens, mask in zip(self.pools, features, masks, strict=True)]
        streams = summaries
        for layer in self.layers:
            streams = layer(streams, presence)
        context = self.context_norm(torch.cat(streams, dim=1))
        believed = self.norm(torch.cat(summaries, dim=1)) * 2 * torch.sigmoid(self.belief(context))
        return believed, context

    def _read(self, summaries: Tensor, context: Tensor, presence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summaries and context [batch, 3, width], presence [batch, 3] -> what `answer` returns."""
        attention = masked_softmax(self.gate(context)[..., 0], presence)
        shares = attention * presence.to(attention.dtype).sum(dim=1, keepdim=True)  # 1 where all count alike
        fused = (summaries * shares[..., None]).flatten(1)
        return self.emotion_head(fused), torch.tanh(self.valence_arousal_head(fused)), attention


class SummaryLayer(nn.Module):
    """For each modality: attention to the other two and the sink, then a feed-forward net."""

    def __init__(self, size: FusionSize, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.streams = nn.ModuleList(SummaryStream(size, width) for _ in MODALITIES)

    def forward(self, streams: list[Tensor], presence: Tensor) -> list[Tensor]:
        """Streams [batch, 1, width], presence [batch, 3]."""
        return [
            stream(
                streams[own],
                torch.cat([streams[other] for other in OTHERS[own]], dim=1),
                presence[:, list(OTHERS[own])],
            )
            for own, stream in enumerate(self.streams)
        ]


class SummaryStream(nn.Module):
    """One modality's part of a layer; pre-norm, residual."""

    def __init__(self, size: FusionSize, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.heads = size.heads
        self.query_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.sink = nn.Parameter(torch.randn(1, 1, width) * SINK)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = feed_forward(size, width)
        self.dropout = nn.Dropout(size.dropout)
        small_at_first(self.output, self.feed_forward[-1])

    def forward(self, stream: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        """Stream [batch, 1, width], context [batch, 2, width], context_mask [batch, 2] -> [batch, 1, width]."""
        stream = stream + self.dropout(self._attend(self.query_norm(stream), context, context_mask))
        updated: Tensor = stream + self.dropout(self.feed_forward(stream))
        return updated

    def _attend(self, query: Tensor, context: Tensor, context_mask: Tensor) -> Tensor:
        batch = query.shape[0]
        context = torch.cat([self.sink.expand(batch, -1, -1), context], dim=1)
        keys, values = self.key_value(self.context_norm(context)).chunk(2, dim=-1)
        open_sink = context_mask.new_ones((batch, 1))
        bias = bias_of(torch.cat([open_sink, context_mask], dim=1), query.dtype)  # [batch, 1 + context]
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
