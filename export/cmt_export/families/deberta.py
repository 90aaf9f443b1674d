"""DeBERTa (He et al. 2021, arXiv 2006.03654), its second version and its third (arXiv 2111.09543), which is of the
second's form: attention to what a token is and to how far away it stands."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaModel, DebertaV2Model
from transformers.models.deberta.modeling_deberta import DebertaLayerNorm
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from cmt_export.encoders import MASKED, TextEncoder
from cmt_export.families.text import TextFamily
from cmt_pipeline.buckets import TEXT_TOKENS

FARTHEST = TEXT_TOKENS[-1] - 1  # that one token may be from another


class Deberta(TextFamily):
    model_type = "deberta"
    lora_targets: ClassVar[tuple[str, ...]] = ("in_proj",)

    def architecture(self) -> Any:
        return DebertaModel

    def check(self, config: Any) -> None:
        super().check(config)
        if getattr(config, "talking_head", False):
            raise ValueError("got talking heads; expected heads that attend each for itself")
        if unknown := set(config.pos_att_type or ()) - {"c2p", "p2c"}:
            raise ValueError(f"got attention {', '.join(sorted(unknown))}; expected c2p, p2c or none")

    def wrap(self, backbone: Any) -> nn.Module:
        return DebertaEncoder(backbone)


class DebertaV2(Deberta):
    model_type = "deberta-v2"
    lora_targets = ("query_proj", "value_proj")

    def architecture(self) -> Any:
        return DebertaV2Model

    def wrap(self, backbone: Any) -> nn.Module:
        return DebertaV2Encoder(backbone)


class DebertaEncoder(TextEncoder):
    """DeBERTa with its relative positions as lookups: T tokens are compared with 2 T - 1 distances alone, and no shape
    depends on data. rows: the row of the table of relative positions for each distance of a query from a key."""

    rows: Tensor

    def __init__(self, backbone: Any) -> None:
        super().__init__(_with_layer_norms(backbone))
        self.register_buffer("rows", _rows(backbone.encoder), persistent=False)

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        encoder = self.backbone.encoder
        embedded = self.backbone.embeddings(input_ids, mask=attention_mask)
        table = encoder.get_rel_embedding()
        positions = None if table is None else table[self.rows]  # [distances, hidden]
        bias = ((1 - attention_mask).to(embedded.dtype) * MASKED)[:, None, None, :]
        convolution = getattr(encoder, "conv", None)
        hidden = embedded
        for index, layer in enumerate(encoder.layer):
            attended = layer.attention.output(self._attend(layer.attention.self, hidden, bias, positions), hidden)
            hidden = layer.output(layer.intermediate(attended), attended)
            if convolution is not None and index == 0:
                hidden = convolution(embedded, hidden, attention_mask)
        return cast(Tensor, hidden)

    def _attend(self, attention: Any, hidden: Tensor, bias: Tensor, positions: Tensor | None) -> Tensor:
        """[batch, tokens, hidden]; bias: [batch, 1, 1, tokens], of the mask."""
        query, key, value = self.query_key_value(attention, hidden)
        kinds = attention.pos_att_type
        scale = math.sqrt(query.shape[-1] * (1 + len(kinds)))
        scores = query @ key.transpose(2, 3)
        if positions is not None:
            to_key, to_query = self.position_projections(attention)
            positions = attention.pos_dropout(positions)
            if "c2p" in kinds:
                scores = scores + by_distance(query, to_key(positions))
            if "p2c" in kinds:
                scores = scores + by_distance(key, to_query(positions).flip(0)).transpose(2, 3)
        weights: Tensor = attention.dropout(functional.softmax(scores / scale + bias, dim=-1))
        return (weights @ value).transpose(1, 2).flatten(2)

    def query_key_value(self, attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each [batch, heads, tokens, head]."""
        query, key, value = attention.transpose_for_scores(attention.in_proj(hidden)).chunk(3, dim=-1)
        of_query, of_value = (
            attention.transpose_for_scores(bias[None, None]) for bias in (attention.q_bias, attention.v_bias)
        )
        return query + of_query, key, value + of_value

    def position_projections(self, attention: Any) -> tuple[Any, Any]:
        """What makes keys of positions, and queries."""
        return getattr(attention, "pos_proj", None), getattr(attention, "pos_q_proj", None)


class DebertaV2Encoder(DebertaEncoder):
    def query_key_value(self, attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, _ = hidden.shape
        projections = attention.query_proj, attention.key_proj, attention.value_proj
        query, key, value = (
            project(hidden).view(batch, tokens, attention.num_attention_heads, -1).transpose(1, 2)
            for project in projections
        )
        return query, key, value

    def position_projections(self, attention: Any) -> tuple[Any, Any]:
        if attention.share_att_key:
            return attention.key_proj, attention.query_proj
        return getattr(attention, "pos_key_proj", None), getattr(attention, "pos_query_proj", None)


def by_distance(states: Tensor, vectors: Tensor) -> Tensor:
    """states [batch, heads, tokens, head] and a vector of each distance [distances, heads * head] -> [batch, heads,
    tokens, tokens]: at [i, j] the product of i's state and the vector of the distance i - j."""
    batch, heads, tokens, head = states.shape
    at = torch.arange(tokens, device=states.device)
    met = torch.arange(2 * tokens - 1, device=states.device) + (FARTHEST + 1 - tokens)
    near = vectors.view(-1, heads, head)[met].permute(1, 2, 0)  # [heads, head, 2 tokens - 1]
    index = at[:, None] - at[None, :] + (tokens - 1)
    return (states @ near).gather(3, index.expand(batch, heads, tokens, tokens))


def _with_layer_norms(backbone: Any) -> Any:
    """The backbone, its own LayerNorms, which are written out, as torch's, which are one node in ONNX."""
    for part in list(backbone.modules()):
        for name, norm in list(part.named_children()):
            if isinstance(norm, DebertaLayerNorm):
                ours = nn.LayerNorm(norm.weight.shape, norm.variance_epsilon)
                ours.weight, ours.bias = norm.weight, norm.bias
                setattr(part, name, ours)
    return backbone


def _rows(encoder: Any) -> Tensor:
    """[distances]; in logarithmic buckets where the encoder has them."""
    distances: Tensor = torch.arange(-FARTHEST, FARTHEST + 1)
    if not encoder.relative_attention:
        return distances
    span, buckets = encoder.max_relative_positions, getattr(encoder, "position_buckets", -1)
    if buckets > 0:
        distances, span = make_log_bucket_position(distances, buckets, span).long(), buckets
    rows: Tensor = (distances + span).clamp(0, 2 * span - 1)
    return rows


DEBERTA, DEBERTA_V2 = Deberta(), DebertaV2()
