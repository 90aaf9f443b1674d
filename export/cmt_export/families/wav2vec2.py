"""Wav2Vec2 (Baevski et al. 2020, arXiv 2006.11477)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Wav2Vec2Model

from cmt_export.encoders import AudioEncoder
from cmt_export.family import EncoderFamily
from cmt_pipeline.buckets import CONV_KERNELS, CONV_STRIDES


class Wav2Vec2(EncoderFamily):
    model_type = "wav2vec2"
    modality = "audio"

    def architecture(self) -> Any:
        return Wav2Vec2Model

    def check(self, config: Any) -> None:
        if (tuple(config.conv_kernel), tuple(config.conv_stride)) != (CONV_KERNELS, CONV_STRIDES):
            raise ValueError(
                f"got convolutions with kernels {config.conv_kernel} and strides {config.conv_stride}; the contract's "
                f"frame counts are those of {CONV_KERNELS} and {CONV_STRIDES}"
            )

    def wrap(self, backbone: Any) -> nn.Module:
        return AudioEncoder(backbone)


WAV2VEC2 = Wav2Vec2()
