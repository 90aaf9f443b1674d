"""How encoders that nobody published weights for start, when there is little data to learn from.

A transformer's usual first weights (normal, 0.02) suit long training on much data. Here, after Trockman & Kolter 2023
(arXiv 2305.09828), attention of the Vision Transformer starts as it ends up after pretraining: queries and keys near
the identity, so that a patch looks at those like it and near it, values and output near its negative; patches know
their place from sinusoids; all else is scaled to keep variance. A patch is seen through Gabor filters (Gabor 1946), as
trained networks come to see it: edges by direction and place, whatever the light and the skin.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmt_export.checkpoint import Checkpoint

QUERY_KEY = (0.7, 0.7)  # of noise and of the identity, the paper's values
VALUE_OUTPUT = (0.4, -0.4)
DIRECTIONS = 8
WAVES = (0.3, 0.6)  # lengths, in sides of a patch
PATCH_GAIN = 3.0  # of a filter of unit norm
POSITION = 0.5  # amplitude of the sinusoids, about that of a patch's content
LONGEST_WAVE = 100.0  # patches


@torch.no_grad()
def start_from_scratch(checkpoint: Checkpoint, seed: int) -> None:
    """Sets the first weights of the image and audio encoders that weren't published."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if checkpoint.config.encoders["image"].weights_from is None:
            _vision_transformer(cast(Any, checkpoint.model.encoders["image"]).backbone)
        if checkpoint.config.encoders["audio"].weights_from is None:
            for layer in cast(Any, checkpoint.model.encoders["audio"]).backbone.encoder.layers:
                _keep_variance(layer)


def _vision_transformer(backbone: Any) -> None:
    embeddings = backbone.embeddings
    projection = embeddings.patch_embeddings.projection  # [width, 3, side, side]
    _gabor_filters(projection.weight)
    nn.init.zeros_(projection.bias)
    width, patches = projection.weight.shape[0], embeddings.position_embeddings.shape[1] - 1
    embeddings.position_embeddings[0, 1:] = _sinusoids(math.isqrt(patches), width)
    heads = backbone.config.num_attention_heads
    for layer in backbone.layers:
        _keep_variance(layer)
        attention = layer.attention
        for head in range(heads):
            part = slice(head * (width // heads), (head + 1) * (width // heads))
            left, right = _factors(width, *QUERY_KEY, rank=width // heads)
            attention.q_proj.weight[part], attention.k_proj.weight[part] = left.T, right
        attention.o_proj.weight[:], attention.v_proj.weight[:] = _factors(width, *VALUE_OUTPUT, rank=width)


def _gabor_filters(weight: Tensor) -> None:
    """Sets [width, 3, side, side]: every direction and wave, sine and cosine, on a grid of places; of grey values."""
    width, colours, side, _ = weight.shape
    rows, columns = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    grid = max(1, round(math.sqrt(width / (2 * DIRECTIONS * len(WAVES)))))
    places = [(place + 0.5) * side / grid for place in range(grid)]
    shapes = itertools.product(places, places, range(DIRECTIONS), WAVES, (0.0, math.pi / 2))
    for kernel, (row, column, direction, wave, phase) in zip(weight, itertools.cycle(shapes), strict=False):
        down, right, angle = rows - row, columns - column, math.pi * direction / DIRECTIONS
        along = right * math.cos(angle) + down * math.sin(angle)
        envelope = torch.exp(-(down**2 + right**2) / (2 * (0.375 * side / grid) ** 2))
        gabor = envelope * torch.cos(2 * math.pi * along / (wave * side) + phase)
        gabor -= gabor.mean()  # a plain patch has no edges
        kernel[:] = PATCH_GAIN * gabor / gabor.norm() / colours


def _factors(width: int, noise: float, identity: float, rank: int) -> tuple[Tensor, Tensor]:
    """Two matrices [width, rank] and [rank, width] whose product is near noise + identity."""
    target = noise * torch.randn(width, width) / math.sqrt(width) + identity * torch.eye(width)
    left, scale, right = torch.linalg.svd(target)
    root = scale[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]


def _keep_variance(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=1 / math.sqrt(part.in_features))


def _sinusoids(side: int, width: int) -> Tensor:
    """[side * side, width]: a quarter of the channels each for sine and cosine of a patch's row and column."""
    frequencies = LONGEST_WAVE ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies  # [side, width / 4]
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    waves = [rows.sin(), rows.cos(), columns.sin(), columns.cos()]
    return POSITION * torch.cat(waves, dim=-1).flatten(0, 1)
