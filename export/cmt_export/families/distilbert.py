"""DistilBERT (Sanh et al. 2019, arXiv 1910.01108)."""

from __future__ import annotations

from typing import Any

from transformers import DistilBertModel

from cmt_export.families.text import TextFamily


class DistilBert(TextFamily):
    model_type = "distilbert"
    layers_in = "transformer.layer"
    lora_targets = ("q_lin", "v_lin")

    def architecture(self) -> Any:
        return DistilBertModel


DISTILBERT = DistilBert()
