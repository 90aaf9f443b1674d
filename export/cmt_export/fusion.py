"""Cross-modal fusion over tokens: every patch, frame and word attends to those of the other two modalities.

As the Multimodal Transformer's directional cross-modal attention (Tsai et al. 2019, arXiv 1906.00295): each modality's
tokens keep a stream of their own and take from the others what they attend to, so that a word can find the very frame
that stressed it. Here the heads are shared out, half of them to each of the other two, which costs a token what
self-attention does. Depth, width and the readout are our own: each stream is pooled by attention, and
the three summaries weigh in the answer by learned shares. Every attention also sees a learned sink, so that a modality
that is alone attends to something. `cmt_training.binding` sets it beside bottleneck tokens (Nagrani et al. 2021, arXiv
2107.00135) and other rungs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

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
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH

Answer = tuple[Tensor, Tensor, Tensor, Tensor]

LEAST_WEIGHT = 1e-6  # of all modalities together; where none is there, none weighs
OTHERS = tuple(tuple(other for other in range(3) if other != own) for own in range(3))


class Fusion(nn.Module):
    """What all fusions share: six inputs in, the contract's four outputs out."""

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))  # calibrated after training

    def forward(
        self,
        image_features: Tensor,
        image_mask: Tensor,
        audio_features: Tensor,
        audio_mask: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
    ) -> Answer:
        """Features [batch, tokens, width], masks [batch, tokens]; a mask of zeros says that a modality is absent.

        Returns logits [batch, labels], probabilities [batch, labels], valence_arousal [batch, 2] in [-1, 1] and
        attention [batch, 3]: the weight of each modality in the answer, 0 where absent.
        """
        features, masks = [image_features, audio_features, text_features], [image_mask, audio_mask, text_mask]
        logits, valence_arousal, attention = self.answer(features, masks)
        return logits, functional.softmax(logits / self.temperature, dim=-1), valence_arousal, attention

    def answer(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [batch, labels], valence_arousal [batch, 2] and attention [batch, 3]."""
        logits, valence_arousal = self.combine(features, masks)
        weights = self.weights_of(presence_of(masks).to(logits.dtype))
        return logits, valence_arousal, weights / weights.sum(dim=1, keepdim=True).clamp(min=LEAST_WEIGHT)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [batch, labels] and valence_arousal [batch, 2]."""
        raise NotImplementedError

    def weights_of(self, presence: Tensor) -> Tensor:
        """How much each modality that is there weighs [batch, 3], of presence [batch, 3]."""
        return presence


class WeighedFusion(Fusion):
    """A summary of each modality, what each weighs, and heads over the three. Kinds differ in how they summarise."""

    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.pools = nn.ModuleList(Pool(width) for _ in MODALITIES)
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 1)
        self.emotion_head = perceptron(len(MODALITIES) * width, size.dropout, labels, width)
        self.valence_arousal_head = perceptron(len(MODALITIES) * width, size.dropout, 2, width)

    def answer(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        summaries, context = self.summarised(features, masks)
        return self.read(summaries, context, presence_of(masks))

    def taught(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, valence_arousal and separate logits [batch, 3, labels]: with nothing in the head beside what is said
        by one modality.

        Training asks for those, so that no modality leaves the answer to the others.
        """
        raise NotImplementedError

    def summarised(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """A summary of each modality [batch, 3, width], and what their weights are read from, the same shape."""
        raise NotImplementedError

    def read(self, summaries: Tensor, context: Tensor, presence: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summaries and context [batch, 3, width], presence [batch, 3] -> what `answer` returns."""
        attention = masked_softmax(self.gate(context)[..., 0], presence)
        shares = attention * presence.to(attention.dtype).sum(dim=1, keepdim=True)  # 1 where all count alike
        fused = (summaries * shares[..., None]).flatten(1)
        return self.emotion_head(fused), torch.tanh(self.valence_arousal_head(fused)), attention

    def apart(self, summaries: Tensor) -> Tensor:
        """Logits [batch, 3, labels] of each modality's summary with zeros in the place of the others'."""
        alone = summaries[:, None] * torch.eye(len(MODALITIES), device=summaries.device)[:, :, None]
        logits: Tensor = self.emotion_head(alone.flatten(2))  # of [batch, 3, 3 * width]
        return logits


class CrossModalFusion(WeighedFusion):
    """Streams of tokens that attend to each other, then pooled."""

    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__(size, labels, width)
        self.layers = nn.ModuleList(CrossModalLayer(size, width) for _ in range(size.layers))

    def summarised(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        streams = features
        for layer in self.layers:
            streams = layer(streams, masks)
        pooled = [pool(stream, mask) for pool, stream, mask in zip(self.pools, streams, masks, strict=True)]
        summaries = self.norm(torch.cat(pooled, dim=1))
        return summaries, summaries

    def taught(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The separate logits are those of each modality without the others, as its own pipeline answers."""
        logits, valence_arousal, _ = self.answer(features, masks)
        streams = features
        for layer in self.layers:
            streams = cast(CrossModalLayer, layer).alone(streams)
        pooled = [pool(stream, mask) for pool, stream, mask in zip(self.pools, streams, masks, strict=True)]
        return logits, valence_arousal, self.apart(self.norm(torch.cat(pooled, dim=1)))


class CrossModalLayer(nn.Module):
    """A stream for each modality."""

    def __init__(self, size: FusionSize, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        self.streams = nn.ModuleList(CrossModalStream(size, width) for _ in MODALITIES)

    def forward(self, streams: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        """Streams [batch, tokens, width] and masks [batch, tokens], of each modality."""
        projected = [stream.project(tokens) for stream, tokens in zip(self._streams, streams, strict=True)]
        return [
            stream(
                streams[own],
                projected[own].queries,
                [projected[other].keys_values[OTHERS[other].index(own)] for other in OTHERS[own]],
                [masks[other] for other in OTHERS[own]],
            )
            for own, stream in enumerate(self._streams)
        ]

    def alone(self, streams: list[Tensor]) -> list[Tensor]:
        """As `forward`, of each modality without the others."""
        updated = []
        for stream, tokens in zip(self._streams, streams, strict=True):
            projected, nothing = stream.project(tokens), tokens.new_zeros(tokens.shape[0], 0)
            contexts = [(keys[:, :, :0], values[:, :, :0]) for keys, values in projected.keys_values]
            updated.append(stream(tokens, projected.queries, contexts, [nothing, nothing]))
        return updated

    @property
    def _streams(self) -> list[CrossModalStream]:
        return [cast(CrossModalStream, stream) for stream in self.streams]


@dataclass(frozen=True)
class Projected:
    """A modality's queries to the other two, and its keys and values for each of them.

    Each [batch, heads, tokens, width of a head].
    """

    queries: tuple[Tensor, Tensor]
    keys_values: tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]


class CrossModalStream(nn.Module):
    """One modality's part of a layer: tokens attend to those of the other two, with half of the heads each, then a
    feed-forward net; pre-norm, residual."""

    def __init__(self, size: FusionSize, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        if size.heads % 2:
            raise ValueError(f"heads: got {size.heads}; expected an even number: half look at each other modality")
        self.heads = size.heads // 2
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.sinks = nn.Parameter(torch.randn(2, 2, 1, self.heads, 1, width // size.heads) * SINK)  # keys and values
        self.output = nn.Linear(width, width)
        self.feed_forward = feed_forward(size, width)
        self.dropout = nn.Dropout(size.dropout)
        small_at_first(self.output, self.feed_forward[-1])

    def project(self, tokens: Tensor) -> Projected:
        """Of tokens [batch, n, width]."""
        parts = self.query_key_value(self.norm(tokens)).reshape(*tokens.shape[:2], 6, self.heads, -1)
        first, second, *keys_values = parts.permute(2, 0, 3, 1, 4).unbind(0)
        keys, values, other_keys, other_values = keys_values
        return Projected((first, second), ((keys, values), (other_keys, other_values)))

    def forward(
        self,
        tokens: Tensor,
        queries: tuple[Tensor, Tensor],
        contexts: Sequence[tuple[Tensor, Tensor]],
        masks: Sequence[Tensor],
    ) -> Tensor:
        """Tokens [batch, n, width] and their queries; keys and values of the other two, and their masks [batch, m]."""
        found = [
            self._attend(query, keys, values, mask, sink)
            for query, (keys, values), mask, sink in zip(queries, contexts, masks, self.sinks, strict=True)
        ]
        attended = torch.cat(found, dim=1).transpose(1, 2).flatten(2)  # [batch, n, width]
        tokens = tokens + self.dropout(self.output(attended))
        updated: Tensor = tokens + self.dropout(self.feed_forward(tokens))
        return updated

    def _attend(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, sink: Tensor) -> Tensor:
        batch = query.shape[0]
        sink_key, sink_value = (part.expand(batch, -1, -1, -1) for part in sink)
        bias = bias_of(torch.cat([mask.new_ones((batch, 1)), mask], dim=1), query.dtype)  # [batch, 1 + m]
        return functional.scaled_dot_product_attention(
            query,
            torch.cat([sink_key, keys], dim=2),
            torch.cat([sink_value, values], dim=2),
            attn_mask=bias[:, None, None, :],
        )
