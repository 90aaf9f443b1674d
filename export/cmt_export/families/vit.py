"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import ViTModel

from cmt_export.encoders import ImageEncoder
from cmt_export.family import EncoderFamily
from cmt_pipeline.tensors import IMAGE_SIDE, PATCH_SIDE


class ViT(EncoderFamily):
    model_type = "vit"
    modality = "image"
    arguments = {"add_pooling_layer": False}  # noqa: RUF012

    def architecture(self) -> Any:
        return ViTModel

    def check(self, config: Any) -> None:
        if (config.image_size, config.patch_size) != (IMAGE_SIDE, PATCH_SIDE):
            raise ValueError(
                f"got images of {config.image_size} pixels in patches of {config.patch_size}; the contract's token "
                f"count is that of {IMAGE_SIDE} and {PATCH_SIDE}"
            )

    def wrap(self, backbone: Any) -> nn.Module:
        return ImageEncoder(backbone)


VIT = ViT()
