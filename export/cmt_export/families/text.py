"""What the families of text encoders have in common."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cmt_export.encoders import TextEncoder
from cmt_export.family import EncoderFamily
from cmt_pipeline.buckets import TEXT_TOKENS


class TextFamily(EncoderFamily):
    """Token ids and mask in, a state of each token out. before_first_position: rows of the table of positions that no
    token ever takes."""

    modality = "text"
    layer_decay = 0.95  # Sun et al. 2019, arXiv 1905.05583
    before_first_position: ClassVar[int] = 0

    def check(self, config: Any) -> None:
        most = config.max_position_embeddings - self.before_first_position
        if most < TEXT_TOKENS[-1]:
            raise ValueError(f"got an encoder of at most {most} tokens; expected {TEXT_TOKENS[-1]} at least")

    def wrap(self, backbone: Any) -> nn.Module:
        return TextEncoder(backbone)


class PositionedTextEncoder(TextEncoder):
    """One whose positions count the tokens that aren't padding, from the row after padding's own."""

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        padding = self.backbone.embeddings.padding_idx
        real = input_ids != padding
        positions = counted(real) * real + padding
        hidden: Tensor = self.backbone(
            input_ids, attention_mask=attention_mask, position_ids=positions
        ).last_hidden_state
        return hidden


def counted(real: Tensor) -> Tensor:
    """How many are real up to each, itself included: [batch, tokens] bool -> int64.

    A product, exact in fp16 and in bf16 for the tokens of any text, since TensorRT sums floats alone (CumSum).
    """
    at = torch.arange(real.shape[1], device=real.device)
    up_to = (at[:, None] <= at[None, :]).to(torch.float32)  # [tokens, tokens]
    return (real.to(torch.float32) @ up_to).to(torch.int64)
