"""ELECTRA (Clark et al. 2020, arXiv 2003.10555)."""

from __future__ import annotations

from typing import Any

from transformers import ElectraModel

from cmt_export.families.text import TextFamily


class Electra(TextFamily):
    model_type = "electra"

    def architecture(self) -> Any:
        return ElectraModel


ELECTRA = Electra()
