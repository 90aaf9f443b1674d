"""Data2VecAudio (Baevski et al. 2022, arXiv 2202.03555): Wav2Vec2 whose positions are several convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Data2VecAudioModel

from cmt_export.encoders import AudioEncoder
from cmt_export.families.wav2vec2 import Wav2Vec2


class Data2VecAudio(Wav2Vec2):
    model_type = "data2vec-audio"

    def architecture(self) -> Any:
        return Data2VecAudioModel

    def wrap(self, backbone: Any) -> nn.Module:
        return Data2VecAudioEncoder(backbone)


class Data2VecAudioEncoder(AudioEncoder):
    """What one convolution says of the padding beside a clip's end is hidden from the next."""

    def positions(self, hidden: Tensor, real: Tensor) -> Tensor:
        hidden, real = hidden.transpose(1, 2), real[:, None, :]  # [batch, hidden, frames]
        for layer in self.backbone.encoder.pos_conv_embed.layers:
            hidden = layer(hidden) * real
        return hidden.transpose(1, 2)


DATA2VEC_AUDIO = Data2VecAudio()
