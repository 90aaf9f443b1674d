"""The models that the Cross-Modal Transformer is compared with, each in the place of its fusion.

All take and give what CrossModalFusion does, so that one export, one server and one evaluation run any of them, and
each is masked as it is: neither padding nor an absent modality has a say. None but the Cross-Modal Transformer weighs
modalities; their `attention` is shared evenly among those that they used.

    image, audio, text   one modality alone; without it, the same answer to everything
    late                 probabilities of three separate models, averaged over the modalities that are there
    concat               one pooled vector a modality, concatenated, and a perceptron
    conventional         self-attention over the concatenated tokens of all (as VisualBERT, Li et al. 2019,
                         arXiv 1908.03557, and MMBT, Kiela et al. 2019, arXiv 1909.02950), read out at a class token
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.encoders import MASKED
from cmt_export.fusion import CrossModalFusion, Pool, perceptron
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH

Answer = tuple[Tensor, Tensor, Tensor, Tensor]

LEAST_WEIGHT = 1e-6  # of all modalities together; where none is there, none weighs


class Head(nn.Module):
    """Tokens of one modality -> a pooled vector -> logits and valence_arousal."""

    def __init__(self, size: FusionSize, labels: int) -> None:
        super().__init__()
        self.pool = Pool()
        self.emotion_head = perceptron(MODEL_WIDTH, size.dropout, labels)
        self.valence_arousal_head = perceptron(MODEL_WIDTH, size.dropout, 2)

    def forward(self, features: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features [batch, tokens, MODEL_WIDTH], mask [batch, tokens] -> [batch, labels], [batch, 2]."""
        pooled = self.pool(features, mask)[:, 0]
        return self.emotion_head(pooled), torch.tanh(self.valence_arousal_head(pooled))


class Fusion(nn.Module):
    """What the baselines share: six inputs in, the contract's four outputs out."""

    temperature: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.ones(()))

    def forward(
        self,
        image_features: Tensor,
        image_mask: Tensor,
        audio_features: Tensor,
        audio_mask: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
    ) -> Answer:
        """As CrossModalFusion.forward."""
        masks = [image_mask, audio_mask, text_mask]
        logits, valence_arousal = self.combine([image_features, audio_features, text_features], masks)
        weights = self.weights_of(presence_of(masks).to(logits.dtype))
        attention = weights / weights.sum(dim=1, keepdim=True).clamp(min=LEAST_WEIGHT)
        return logits, functional.softmax(logits / self.temperature, dim=-1), valence_arousal, attention

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [batch, labels] and valence_arousal [batch, 2]."""
        raise NotImplementedError

    def weights_of(self, presence: Tensor) -> Tensor:
        """How much each modality that is there weighs [batch, 3], of presence [batch, 3]."""
        return presence


class SingleFusion(Fusion):
    def __init__(self, modality: Modality, size: FusionSize, labels: int) -> None:
        super().__init__()
        self.index = MODALITIES.index(modality)
        self.head = Head(size, labels)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, valence_arousal = self.head(features[self.index], masks[self.index])
        return logits, valence_arousal

    def weights_of(self, presence: Tensor) -> Tensor:
        return presence * presence.new_tensor([float(index == self.index) for index in range(len(MODALITIES))])


class LateFusion(Fusion):
    def __init__(self, size: FusionSize, labels: int) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head(size, labels) for _ in MODALITIES)

    def separate(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [batch, 3, labels] and valence_arousal [batch, 3, 2] of each modality on its own."""
        answers = [head(f, m) for head, f, m in zip(self.heads, features, masks, strict=True)]
        return torch.stack([a[0] for a in answers], dim=1), torch.stack([a[1] for a in answers], dim=1)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, valence_arousal = self.separate(features, masks)
        present = presence_of(masks).to(logits.dtype)
        count = present.sum(dim=1, keepdim=True).clamp(min=1)
        log_p = functional.log_softmax(logits, dim=-1) + (1 - present)[..., None] * MASKED
        mean = (valence_arousal * present[..., None]).sum(dim=1) / count
        return torch.logsumexp(log_p, dim=1) - count.log(), mean


class ConcatenationFusion(Fusion):
    def __init__(self, size: FusionSize, labels: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(Pool() for _ in MODALITIES)
        self.emotion_head = perceptron(len(MODALITIES) * MODEL_WIDTH, size.dropout, labels)
        self.valence_arousal_head = perceptron(len(MODALITIES) * MODEL_WIDTH, size.dropout, 2)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        pooled = torch.cat([pool(f, m)[:, 0] for pool, f, m in zip(self.pools, features, masks, strict=True)], dim=-1)
        return self.emotion_head(pooled), torch.tanh(self.valence_arousal_head(pooled))


class ConventionalFusion(Fusion):
    """Depth, heads and feed-forward width are those of the Cross-Modal Transformer."""

    def __init__(self, size: FusionSize, labels: int) -> None:
        super().__init__()
        self.input_norms = nn.ModuleList(nn.LayerNorm(MODEL_WIDTH) for _ in MODALITIES)
        self.modality_embedding = nn.Parameter(torch.randn(len(MODALITIES), MODEL_WIDTH) * 0.02)
        self.class_token = nn.Parameter(torch.randn(1, 1, MODEL_WIDTH) * 0.02)
        self.layers = nn.ModuleList(SelfAttentionLayer(size) for _ in range(size.layers))
        self.output_norm = nn.LayerNorm(MODEL_WIDTH)
        self.emotion_head = perceptron(MODEL_WIDTH, size.dropout, labels)
        self.valence_arousal_head = perceptron(MODEL_WIDTH, size.dropout, 2)

    def combine(self, features: list[Tensor], masks: list[Tensor]) -> tuple[Tensor, Tensor]:
        streams = [
            norm(stream) + embedding
            for norm, stream, embedding in zip(self.input_norms, features, self.modality_embedding, strict=True)
        ]
        batch = streams[0].shape[0]
        tokens = torch.cat([self.class_token.expand(batch, -1, -1), *streams], dim=1)  # [batch, 1 + tokens, width]
        mask = torch.cat([masks[0].new_ones((batch, 1)), *masks], dim=1)
        bias = ((1 - mask.to(tokens.dtype)) * MASKED)[:, None, None, :]
        for layer in self.layers:
            tokens = layer(tokens, bias)
        fused = self.output_norm(tokens[:, 0])
        return self.emotion_head(fused), torch.tanh(self.valence_arousal_head(fused))


class SelfAttentionLayer(nn.Module):
    """Self-attention and a feed-forward net; pre-norm, residual."""

    def __init__(self, size: FusionSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm = nn.LayerNorm(MODEL_WIDTH)
        self.query_key_value = nn.Linear(MODEL_WIDTH, 3 * MODEL_WIDTH)
        self.output = nn.Linear(MODEL_WIDTH, MODEL_WIDTH)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(MODEL_WIDTH),
            nn.Linear(MODEL_WIDTH, size.feed_forward_width),
            nn.GELU(),
            nn.Dropout(size.dropout),
            nn.Linear(size.feed_forward_width, MODEL_WIDTH),
        )
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Tokens [batch, n, width]; bias [batch, 1, 1, n] is added to every score."""
        parts = self.query_key_value(self.norm(tokens)).chunk(3, dim=-1)
        query, key, value = (p.reshape(*p.shape[:2], self.heads, -1).transpose(1, 2) for p in parts)
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        tokens = tokens + self.dropout(self.output(attended.transpose(1, 2).flatten(2)))
        updated: Tensor = tokens + self.dropout(self.feed_forward(tokens))
        return updated


def fusion_of(model: str, size: FusionSize, labels: int) -> CrossModalFusion | Fusion:
    """The fusion of a model by name: `cmt` or one of the baselines. ValueError for an unknown one."""
    if model == "cmt":
        return CrossModalFusion(size, labels)
    if model in MODALITIES:
        return SingleFusion(MODALITIES[MODALITIES.index(model)], size, labels)
    others = {"late": LateFusion, "concat": ConcatenationFusion, "conventional": ConventionalFusion}
    if model not in others:
        raise ValueError(f"model: got {model!r}; expected cmt, {', '.join(MODALITIES)}, {', '.join(others)}")
    made: Fusion = others[model](size, labels)
    return made


def presence_of(masks: list[Tensor]) -> Tensor:
    """Masks [batch, tokens] -> [batch, 3], 1 where an item has the modality."""
    return torch.cat([mask.amax(dim=1, keepdim=True) for mask in masks], dim=1)
