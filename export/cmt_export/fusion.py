"""Cross-modal fusion over tokens: what each modality says by itself, added up, and what they say only together.

    logits = log prior + sum over modalities m of weight m * (logits m - log prior) + interaction

The sum is log-linear pooling (`cmt_export.log_linear`), exact where the modalities are independent given the label, of
a head for each modality, which is also what answers for a modality that is alone. The interaction is all that isn't a
sum: it begins as nothing, so that a training starts from the sum of evidence and has to find what is better. It is read
from tokens that attend to those of the other two modalities, as the Multimodal Transformer's directional cross-modal
attention (Tsai et al. 2019, arXiv 1906.00295): each modality's tokens keep a stream of their own and take from the
others what they attend to, so that a word can find the very frame that stressed it. Here the heads are shared out, half
of them to each of the other two, which costs a token what self-attention does, and the first half of the layers is
self-attention within each modality (modalities that meet in the later layers did best in Nagrani et al. 2021, arXiv
2107.00135). Every attention across also sees a learned sink, so that a modality that is alone attends to something.
`cmt_training.binding` and `cmt_training.interplay` set it beside other fusions.
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
    Head,
    Pool,
    SelfAttentionLayer,
    bias_of,
    feed_forward,
    nothing_at_first,
    perceptron,
    presence_of,
    small_at_first,
)
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH

Answer = tuple[Tensor, Tensor, Tensor, Tensor]

LEAST_WEIGHT = 1e-6  # of all modalities together; where none is there, none weighs
DIMENSIONS = 2  # valence and arousal
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


class TaughtFusion(Fusion):
    """A fusion that training also asks what each modality says by itself, so that none leaves the answer to others."""

    def taught(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, valence_arousal and separate logits [batch, 3, labels], of each modality alone."""
        raise NotImplementedError


class CrossModalFusion(TaughtFusion):
    """Layers within each modality; heads that read them; layers between modalities, and what is found there."""

    log_prior: Tensor
    evidence_weights: Tensor

    def __init__(self, size: FusionSize, labels: int, width: int = MODEL_WIDTH) -> None:
        super().__init__()
        within = size.layers // 2
        self.register_buffer("log_prior", torch.zeros(labels))
        self.register_buffer("evidence_weights", torch.ones(len(MODALITIES)))  # beside others; calibrated
        self.within = nn.ModuleList(
            nn.ModuleList(SelfAttentionLayer(size, width) for _ in MODALITIES) for _ in range(within)
        )
        self.heads = nn.ModuleList(Head(size, labels, width) for _ in MODALITIES)
        self.layers = nn.ModuleList(CrossModalLayer(size, width) for _ in range(size.layers - within))
        self.pools = nn.ModuleList(Pool(width) for _ in MODALITIES)
        self.norm = nn.LayerNorm(width)
        self.interaction = perceptron(len(MODALITIES) * width, size.dropout, labels + DIMENSIONS, width)
        nothing_at_first(self.interaction[-1])

    def answer(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        streams = self._within(features, masks)
        own, valence_arousal = self._own(streams, masks)
        return self._together(own, valence_arousal, self._interaction(streams, masks), presence_of(masks))

    def taught(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        streams = self._within(features, masks)
        own, each = self._own(streams, masks)
        logits, valence_arousal, _ = self._together(own, each, self._interaction(streams, masks), presence_of(masks))
        return logits, valence_arousal, own

    @torch.no_grad()
    def calibrate(
        self, *, log_prior: Tensor, temperatures: Tensor, biases: Tensor, weights: Tensor, interaction: float
    ) -> None:
        """Takes temperatures [3] and biases [3, labels] into the heads, and how much of the interaction counts into
        what reads it; weights [3]: of the evidence, beside others; log_prior [labels]."""
        for head, temperature, bias in zip(self.heads, temperatures, biases, strict=True):
            last = cast(nn.Linear, cast(Head, head).emotion_head[-1])
            last.weight.div_(temperature)
            last.bias.div_(temperature).add_(bias)
        for parameter in self.interaction[-1].parameters():
            parameter[:-DIMENSIONS].mul_(interaction)
        self.log_prior.copy_(log_prior)
        self.evidence_weights.copy_(weights)

    def _within(self, features: list[Tensor], masks: list[Tensor]) -> list[Tensor]:
        streams = features
        for layer in self.within:
            own = cast(nn.ModuleList, layer)
            streams = [each(tokens, mask) for each, tokens, mask in zip(own, streams, masks, strict=True)]
        return streams

    def _own(self, streams: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What each modality says: logits [batch, 3, labels], valence and arousal before the bounds [batch, 3, 2]."""
        said = [cast(Head, head).read(s, m) for head, s, m in zip(self.heads, streams, masks, strict=True)]
        return torch.stack([one[0] for one in said], dim=1), torch.stack([one[1] for one in said], dim=1)

    def _interaction(self, streams: list[Tensor], masks: list[Tensor]) -> Tensor:
        """[batch, labels + DIMENSIONS]."""
        for layer in self.layers:
            streams = layer(streams, masks)
        pooled = [pool(stream, mask) for pool, stream, mask in zip(self.pools, streams, masks, strict=True)]
        found: Tensor = self.interaction(self.norm(torch.cat(pooled, dim=1)).flatten(1))
        return found

    def _together(
        self, own: Tensor, valence_arousal: Tensor, interaction: Tensor, presence: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, valence and arousal, and the share of each modality in the evidence: how far it moves the labels."""
        there = presence.to(own.dtype)
        count = there.sum(dim=1, keepdim=True)
        several = (count > 1).to(own.dtype)
        logits, evidence = self.sum_of_evidence(own, there)
        moved = (evidence - evidence.mean(dim=2, keepdim=True)).abs().mean(dim=2) + LEAST_WEIGHT * there
        mean = (valence_arousal * there[..., None]).sum(dim=1) / count.clamp(min=1)
        return (
            logits + several * interaction[:, :-DIMENSIONS],
            torch.tanh(mean + several * interaction[:, -DIMENSIONS:]),
            moved / moved.sum(dim=1, keepdim=True).clamp(min=LEAST_WEIGHT),
        )

    def sum_of_evidence(self, own: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """Separate logits [batch, 3, labels], presence [batch, 3] of their type -> the sum [batch, labels], and what
        each modality adds to it [batch, 3, labels]."""
        several = (there.sum(dim=1, keepdim=True) > 1).to(own.dtype)
        weights = there * (several * self.evidence_weights + 1 - several)
        evidence = (own - self.log_prior) * weights[..., None]
        return self.log_prior + evidence.sum(dim=1), evidence


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
