"""BERT (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import BertModel

from cmt_export.encoders import TextEncoder
from cmt_export.family import EncoderFamily


class Bert(EncoderFamily):
    model_type = "bert"
    modality = "text"
    arguments = {"add_pooling_layer": False}  # noqa: RUF012

    def architecture(self) -> Any:
        return BertModel

    def wrap(self, backbone: Any) -> nn.Module:
        return TextEncoder(backbone)


BERT = Bert()
