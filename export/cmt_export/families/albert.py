"""ALBERT (Lan et al. 2020, arXiv 1909.11942)."""

from __future__ import annotations

from typing import Any

from transformers import AlbertModel

from cmt_export.families.text import TextFamily


class Albert(TextFamily):
    model_type = "albert"
    layers_in = "encoder.albert_layer_groups"  # one, which all layers share
    arguments = {"add_pooling_layer": False}  # noqa: RUF012

    def architecture(self) -> Any:
        return AlbertModel


ALBERT = Albert()
