"""Wav2Vec2 (Baevski et al. 2020, arXiv 2006.11477)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import HubertModel, Wav2Vec2Model

from cmt_export.encoders import AudioEncoder
from cmt_export.family import EncoderFamily
from cmt_pipeline.buckets import CONV_KERNELS, CONV_STRIDES


class Wav2Vec2(EncoderFamily):
    model_type = "wav2vec2"
    modality = "audio"
    layers_in = "encoder.layers"
    untuned = ("feature_extractor",)  # its convolutions (as Wang et al. 2021, arXiv 2111.02735)
    lora_targets = ("q_proj", "v_proj")

    def architecture(self) -> Any:
        return Wav2Vec2Model

    def check(self, config: Any) -> None:
        if (tuple(config.conv_kernel), tuple(config.conv_stride)) != (CONV_KERNELS, CONV_STRIDES):
            raise ValueError(
                f"got convolutions with kernels {config.conv_kernel} and strides {config.conv_stride}; the contract's "
                f"frame counts are those of {CONV_KERNELS} and {CONV_STRIDES}"
            )

        if getattr(config, "add_adapter", False):
            raise ValueError("got an encoder with an adapter, which halves its frames; expected one without")

    def wrap(self, backbone: Any) -> nn.Module:
        return AudioEncoder(backbone)


class Hubert(Wav2Vec2):
    """HuBERT (Hsu et al. 2021, arXiv 2106.07447) and DistilHuBERT: the same layers, trained in another way."""

    model_type = "hubert"

    def architecture(self) -> Any:
        return HubertModel

    def check(self, config: Any) -> None:
        super().check(config)
        if config.conv_pos_batch_norm:
            raise ValueError("got a batch norm before the positional convolution; expected none")


WAV2VEC2, HUBERT = Wav2Vec2(), Hubert()
