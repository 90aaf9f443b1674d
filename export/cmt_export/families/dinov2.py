"""DINOv2 (Oquab et al. 2023, arXiv 2304.07193), with registers (Darcet et al. 2023, arXiv 2309.16588) and without."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Dinov2Model, Dinov2WithRegistersModel

from cmt_export.encoders import ImageEncoder
from cmt_export.families.vit import IMAGENET, ViT
from cmt_export.family import LayerParts
from cmt_pipeline.image import Fit
from cmt_pipeline.tensors import IMAGE_SIDE


class Dinov2(ViT):
    """Published for pictures of 518 pixels: transformers interpolates its table of positions at every forward, which is
    done once here."""

    model_type = "dinov2"
    layers_in = "encoder.layer"
    layer_parts = LayerParts("norm1", "norm2", "layer_scale1", "layer_scale2")
    arguments = {}  # noqa: RUF012
    expects = {**IMAGENET, "image_fit": Fit(resize=256, keeps_ratio=True, resample="bicubic")}  # noqa: RUF012

    def architecture(self) -> Any:
        return Dinov2Model

    def check(self, config: Any) -> None:
        if IMAGE_SIDE % config.patch_size:
            raise ValueError(f"got patches of {config.patch_size} pixels; expected a whole number in {IMAGE_SIDE}")

    def settled(self, backbone: Any) -> Any:
        embeddings, config = backbone.embeddings, backbone.config
        if config.image_size != IMAGE_SIDE:
            tokens = torch.empty(1, 1 + (IMAGE_SIDE // config.patch_size) ** 2, config.hidden_size)
            with torch.no_grad():
                positions = embeddings.interpolate_pos_encoding(tokens, IMAGE_SIDE, IMAGE_SIDE)
            embeddings.position_embeddings = nn.Parameter(positions)
            config.image_size = IMAGE_SIDE
        return backbone


class Dinov2WithRegisters(Dinov2):
    model_type = "dinov2_with_registers"

    def architecture(self) -> Any:
        return Dinov2WithRegistersModel

    def prefix_tokens(self, config: Any) -> int:
        return 1 + int(config.num_register_tokens)

    def wrap(self, backbone: Any) -> nn.Module:
        return RegisteredEncoder(backbone)


class RegisteredEncoder(ImageEncoder):
    """As ImageEncoder; registers are no features."""

    def states(self, pixel_values: Tensor) -> Tensor:
        hidden = super().states(pixel_values)
        return torch.cat([hidden[:, :1], hidden[:, 1 + self.backbone.config.num_register_tokens :]], dim=1)


DINOV2, DINOV2_WITH_REGISTERS = Dinov2(), Dinov2WithRegisters()
