"""MPNet (Song et al. 2020, arXiv 2004.09297)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import MPNetModel

from cmt_export.families.text import PositionedTextEncoder, TextFamily


class MPNet(TextFamily):
    model_type = "mpnet"
    lora_targets = ("q", "v")
    arguments = {"add_pooling_layer": False}  # noqa: RUF012
    before_first_position = 2

    def architecture(self) -> Any:
        return MPNetModel

    def wrap(self, backbone: Any) -> nn.Module:
        return PositionedTextEncoder(backbone)


MPNET = MPNet()
