"""Token merging (ToMe, Bolya et al. 2023, arXiv 2210.09461): patches that are alike merge in a Vision Transformer.

Between attention and feed-forward net every layer takes each second patch, finds the one among the others whose keys
are most like its own, and merges the most similar pairs into their mean. What a token stands for counts in later
attention as that many patches would (the logarithm of its size is added to scores). In the end each patch gets back
what the token that it is part of has become, so that whoever reads the encoder meets as many tokens as before, in the
same places: a pair that a lower precision merges and PyTorch doesn't then moves two tokens by little, and no others.

Nothing has to be learnt, and an encoder that was trained without may merge; its weights and their names stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.family import FAMILIES, LayerParts
from cmt_pipeline.presets import MERGED_TOKENS


def merging_states(backbone: Any, pixel_values: Tensor) -> Tensor:
    """What a backbone whose configuration says how many patches to merge makes of `pixel_values`: [batch, tokens,
    hidden], as many tokens as without."""
    config = backbone.config
    family = FAMILIES[config.model_type]
    assert family.layer_parts is not None, "checked with the configuration"
    layers, prefix = list(backbone.get_submodule(family.layers_in)), family.prefix_tokens(config)
    embedded = backbone.embeddings(pixel_values)
    count = getattr(config, MERGED_TOKENS)
    states = merged_states(embedded, layers, family.layer_parts, count=count, prefix=prefix)
    normed: Tensor = backbone.layernorm(states)
    return normed


def merged_states(
    embedded: Tensor, layers: Sequence[nn.Module], parts: LayerParts, *, count: int, prefix: int
) -> Tensor:
    """Tokens through all layers, `count` patches merged away by each, while there are two to merge.

    embedded: [batch, prefix + patches, hidden]; the prefix, class tokens and registers, never merges.
    Returns the same shape, a patch's row that of the token which it became part of.
    """
    patches = embedded.shape[1] - prefix
    sizes = embedded.new_ones((embedded.shape[0], patches))
    places = torch.arange(patches, device=embedded.device).expand(embedded.shape[0], -1)
    tokens = embedded
    for layer in layers:
        found, keys = _attended(layer, tokens, functional.pad(sizes.log(), (prefix, 0)), parts)
        tokens = tokens + found
        if merging := min(count, sizes.shape[1] // 2):
            moved = _partners(keys[:, prefix:], merging)
            joined, sizes = _joined(tokens[:, prefix:], sizes, moved, sizes.shape[1] - merging)
            tokens = torch.cat([tokens[:, :prefix], joined], dim=1)
            places = moved.gather(1, places)
        tokens = tokens + _part(layer, parts.scale_after)(_part(layer, "mlp")(_part(layer, parts.norm_after)(tokens)))
    rows = places[..., None].expand(-1, -1, embedded.shape[2])
    return torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, rows)], dim=1)


def _attended(layer: nn.Module, tokens: Tensor, bias: Tensor, parts: LayerParts) -> tuple[Tensor, Tensor]:
    """What a layer's attention adds to tokens [batch, n, hidden], and their keys [batch, n, width of a head], the mean
    over heads; bias [batch, n]: added to the scores of each token."""
    attention: Any = layer.attention
    normed = _part(layer, parts.norm_before)(tokens)
    split = (*tokens.shape[:2], attention.num_attention_heads, -1)
    query, key, value = (
        projection(normed).reshape(split).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    found = functional.scaled_dot_product_attention(query, key, value, attn_mask=bias[:, None, None])
    return _part(layer, parts.scale_before)(attention.o_proj(found.transpose(1, 2).flatten(2))), key.mean(dim=1)


def _partners(keys: Tensor, count: int) -> Tensor:
    """Keys [batch, n, width] -> where each token goes [batch, n], of n - count places: those of the even tokens that
    stay, in their order, then those of the odd ones, each shared with the even tokens that merge into it."""
    keys = functional.normalize(keys, dim=-1)
    alike, partner = (keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)).max(dim=-1)  # [batch, even]
    even, odd = alike.shape[1], keys.shape[1] // 2
    chosen = alike.topk(count, dim=1).indices
    goes = (chosen[:, None] == torch.arange(even, device=keys.device)[:, None]).any(dim=2).to(torch.int64)
    stays = (1 - goes).cumsum(dim=1) - 1
    moved = goes * (even - count + partner) + (1 - goes) * stays
    own = torch.arange(even - count, even - count + odd, device=keys.device).expand(keys.shape[0], -1)
    by_turns = torch.arange(keys.shape[1], device=keys.device)
    return torch.cat([moved, own], dim=1)[:, by_turns // 2 + by_turns % 2 * even]


def _joined(patches: Tensor, sizes: Tensor, moved: Tensor, left: int) -> tuple[Tensor, Tensor]:
    """Means of the patches [batch, n, hidden] that go to the same of `left` places, weighted by size, and the sizes."""
    rows = moved[..., None].expand(-1, -1, patches.shape[2])
    whole = sizes.new_zeros((sizes.shape[0], left)).scatter_add(1, moved, sizes)
    sums = patches.new_zeros((patches.shape[0], left, patches.shape[2]))
    return sums.scatter_add(1, rows, patches * sizes[..., None]) / whole[..., None], whole


def _part(layer: nn.Module, name: str) -> nn.Module:
    return layer.get_submodule(name) if name else nn.Identity()
