"""WavLM (Chen et al. 2022, arXiv 2110.13900): Wav2Vec2 with relative positions in its attention, behind gates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WavLMModel

from cmt_export.encoders import AudioEncoder
from cmt_export.families.wav2vec2 import Wav2Vec2
from cmt_pipeline.buckets import AUDIO_FRAMES

FARTHEST = AUDIO_FRAMES[-1] - 1  # that one frame may be from another


class WavLM(Wav2Vec2):
    model_type = "wavlm"

    def architecture(self) -> Any:
        return WavLMModel

    def wrap(self, backbone: Any) -> nn.Module:
        return WavLMEncoder(backbone)


class WavLMEncoder(AudioEncoder):
    """Which bucket a distance falls into is looked up: the logarithm that decides it is one of constants, and an engine
    of less precision could take another side of a border."""

    buckets: Tensor

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        first = backbone.encoder.layers[0].attention
        with torch.no_grad():
            buckets = first._relative_positions_bucket(torch.arange(-FARTHEST, FARTHEST + 1))
        self.register_buffer("buckets", buckets, persistent=False)

    def layers(self, hidden: Tensor, bias: Tensor) -> Iterator[Tensor]:
        encoder = self.backbone.encoder
        stable = self.backbone.config.do_stable_layer_norm
        distances = self._of_distances(hidden.shape[1])
        for layer in encoder.layers:
            if stable:
                hidden = hidden + layer.dropout(attend(layer.attention, layer.layer_norm(hidden), bias, distances))
                hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
            else:
                attended = layer.dropout(attend(layer.attention, hidden, bias, distances))
                hidden = layer.layer_norm(hidden + attended)
                hidden = layer.final_layer_norm(hidden + layer.feed_forward(hidden))
            yield hidden

    def _of_distances(self, frames: int) -> Tensor:
        """What the first layer learnt of each distance and all share: [heads, frames, frames]."""
        table: Tensor = self.backbone.encoder.layers[0].attention.rel_attn_embed(self.buckets)  # [distances, heads]
        at = torch.arange(frames, device=table.device)
        return table[at[None, :] - at[:, None] + FARTHEST].permute(2, 0, 1)


def attend(attention: Any, hidden: Tensor, bias: Tensor, distances: Tensor) -> Tensor:
    """WavLMAttention as sums and products: [batch, frames, hidden]. bias: [batch, 1, 1, frames], of the mask."""
    batch, frames, width = hidden.shape

    def heads(projected: Tensor) -> Tensor:  # [batch, heads, frames, head]
        return projected.view(batch, frames, attention.num_heads, attention.head_dim).transpose(1, 2)

    gates = attention.gru_rel_pos_linear(heads(hidden)).view(batch, attention.num_heads, frames, 2, 4).sum(-1)
    reset, update = torch.sigmoid(gates).chunk(2, dim=-1)
    gate = reset * (update * attention.gru_rel_pos_const - 1.0) + 2.0  # [batch, heads, frames, 1]
    scores = heads(attention.q_proj(hidden) * attention.scaling) @ heads(attention.k_proj(hidden)).transpose(2, 3)
    weights = functional.softmax(scores + gate * distances + bias, dim=-1)
    weights = functional.dropout(weights, attention.dropout, attention.training)
    context = (weights @ heads(attention.v_proj(hidden))).transpose(1, 2).reshape(batch, frames, width)
    projected: Tensor = attention.out_proj(context)
    return projected


WAVLM = WavLM()
