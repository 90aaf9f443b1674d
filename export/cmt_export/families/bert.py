"""BERT (Devlin et al. 2019, arXiv 1810.04805)."""

from __future__ import annotations

from typing import Any

from transformers import BertModel

from cmt_export.families.text import TextFamily


class Bert(TextFamily):
    model_type = "bert"
    arguments = {"add_pooling_layer": False}  # noqa: RUF012

    def architecture(self) -> Any:
        return BertModel


BERT = Bert()
