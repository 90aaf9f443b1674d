"""Vision Transformer (Dosovitskiy et al. 2021, arXiv 2010.11929) and what differs from it by a line or two."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BeitModel, DeiTModel, ViTModel

from cmt_export.encoders import ImageEncoder
from cmt_export.family import EncoderFamily, LayerParts
from cmt_pipeline.image import Fit
from cmt_pipeline.tensors import IMAGE_SIDE

IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}


class ViT(EncoderFamily):
    model_type = "vit"
    modality = "image"
    arguments = {"add_pooling_layer": False}  # noqa: RUF012
    beside = ("decoder",)  # of pretraining by masked pixels
    layers_in = "layers"
    layer_decay = 0.75  # as He et al. 2022, arXiv 2111.06377
    lora_targets = ("q_proj", "v_proj")
    layer_parts: ClassVar[LayerParts | None] = LayerParts("layernorm_before", "layernorm_after")

    def architecture(self) -> Any:
        return ViTModel

    def check(self, config: Any) -> None:
        if config.image_size != IMAGE_SIDE or IMAGE_SIDE % config.patch_size:
            raise ValueError(
                f"got images of {config.image_size} pixels in patches of {config.patch_size}; expected {IMAGE_SIDE} "
                "pixels, a whole number of patches"
            )

    def wrap(self, backbone: Any) -> nn.Module:
        return ImageEncoder(backbone)


class DeiT(ViT):
    """DeiT (Touvron et al. 2021, arXiv 2012.12877); the token of distillation is no feature."""

    model_type = "deit"
    expects = {**IMAGENET, "image_fit": Fit(resize=256, resample="bicubic")}  # noqa: RUF012

    def architecture(self) -> Any:
        return DeiTModel

    def prefix_tokens(self, config: Any) -> int:  # noqa: ARG002  # they are two in every DeiT
        return 2

    def wrap(self, backbone: Any) -> nn.Module:
        return DeiTEncoder(backbone)


class DeiTEncoder(ImageEncoder):
    """As ImageEncoder, without the second token."""

    def states(self, pixel_values: Tensor) -> Tensor:
        hidden = super().states(pixel_values)
        return torch.cat([hidden[:, :1], hidden[:, 2:]], dim=1)


class Beit(ViT):
    """BEiT (Bao et al. 2022, arXiv 2106.08254)."""

    model_type = "beit"
    layer_parts = None  # its attention knows each patch by its place

    def architecture(self) -> Any:
        return BeitModel


VIT, DEIT, BEIT = ViT(), DeiT(), Beit()
