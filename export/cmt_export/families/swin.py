"""Swin Transformer (Liu et al. 2021, arXiv 2103.14030)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import SwinModel

from cmt_export.encoders import ImageEncoder
from cmt_export.families.vit import IMAGENET, ViT
from cmt_pipeline.image import Fit
from cmt_pipeline.presets import LAYERS
from cmt_pipeline.tensors import IMAGE_SIDE


class Swin(ViT):
    """Features are those of its last stage, which has no class token: 49 for patches of 4 and four stages."""

    model_type = "swin"
    layers_in = "encoder.layers"  # its stages
    layer_parts = None  # which merge neighbours anyway
    expects = {**IMAGENET, "image_fit": Fit(resample="bicubic")}  # noqa: RUF012

    def architecture(self) -> Any:
        return SwinModel

    def check(self, config: Any) -> None:
        super().check(config)
        if config.num_hidden_layers != len(config.depths):
            raise ValueError(f"{LAYERS}: got {config.num_hidden_layers}; a Swin's are told by `depths`, stage by stage")

    def wrap(self, backbone: Any) -> nn.Module:
        return SwinEncoder(backbone)


class SwinEncoder(ImageEncoder):
    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        side = IMAGE_SIDE // backbone.config.patch_size
        for _ in backbone.config.depths[1:]:
            side = -(-side // 2)  # neighbours are merged between stages
        self.tokens = (side**2,)


SWIN = Swin()
