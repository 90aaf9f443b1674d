"""RoBERTa (Liu et al. 2019, arXiv 1907.11692) and XLM-RoBERTa (Conneau et al. 2020, arXiv 1911.02116)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import RobertaModel, XLMRobertaModel

from cmt_export.families.text import PositionedTextEncoder, TextFamily


class Roberta(TextFamily):
    model_type = "roberta"
    arguments = {"add_pooling_layer": False}  # noqa: RUF012
    before_first_position = 2  # the first token's position follows that of padding, which is 1

    def architecture(self) -> Any:
        return RobertaModel

    def wrap(self, backbone: Any) -> nn.Module:
        return PositionedTextEncoder(backbone)


class XLMRoberta(Roberta):
    model_type = "xlm-roberta"

    def architecture(self) -> Any:
        return XLMRobertaModel


ROBERTA, XLM_ROBERTA = Roberta(), XLMRoberta()
