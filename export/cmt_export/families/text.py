"""What the families of text encoders have in common."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from cmt_export.encoders import TextEncoder
from cmt_export.family import EncoderFamily
from cmt_pipeline.buckets import TEXT_TOKENS


class TextFamily(EncoderFamily):
    """Token ids and mask in, a state of each token out. before_first_position: rows of the table of positions that no
    token ever takes."""

    modality = "text"
    before_first_position: ClassVar[int] = 0

    def check(self, config: Any) -> None:
        most = config.max_position_embeddings - self.before_first_position
        if most < TEXT_TOKENS[-1]:
            raise ValueError(f"got an encoder of at most {most} tokens; expected {TEXT_TOKENS[-1]} at least")

    def wrap(self, backbone: Any) -> nn.Module:
        return TextEncoder(backbone)
