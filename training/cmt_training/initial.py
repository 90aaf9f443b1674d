"""How encoders that nobody published weights for start, when there is little data to learn from.

A transformer's usual first weights (normal, 0.02) suit long training on much data. Here a Vision Transformer starts as
what was known to work before it: a patch is seen through Gabor filters (Gabor 1946), and the first layer's feed-forward
net turns them into energies, whatever their phase, relative to the patch's contrast, as histograms of gradients do
(Dalal & Triggs 2005). Its attention and all later layers start as next to nothing (as ReZero, arXiv 2003.04887, and
LayerScale, arXiv 2103.17239, do), so that what a patch shows, and where, reaches the heads from the first step on.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from cmt_export.checkpoint import Checkpoint

PLACES_SHARE = 4  # one of so many channels says where a patch is, the others what it shows
PLACES = 4.0  # amplitude of the sinusoids that say where
LONGEST_WAVE = 10.0  # of them, in patches over two pi
CLASS_TOKEN = 0.3  # standard deviation
WAVES = (0.3, 0.6)  # lengths of a Gabor filter's, in sides of a patch
PATCH_GRID = 2  # places of filters along a patch's side
RESPONSES = 3.6  # to a patch, of filters of unit norm, about as large as the sinusoids where there is an edge
SHARPNESS = 3.0  # of a rectifier made of two GELUs
ENERGIES = 3.0  # written over responses: large enough for these to be lost in them
USUAL_ENERGY = 0.8  # of a pair of filters, taken off
BRANCH = 0.1  # of its usual size, that a layer adds at first


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
                for last in (layer.attention.out_proj, layer.feed_forward.output_dense):
                    last.weight.mul_(BRANCH)


def _vision_transformer(backbone: Any) -> None:
    embeddings = backbone.embeddings
    projection = embeddings.patch_embeddings.projection  # [width, 3, side, side]
    width, patches = projection.weight.shape[0], embeddings.position_embeddings.shape[1] - 1
    filters = width - width // PLACES_SHARE
    nn.init.zeros_(projection.weight)
    nn.init.zeros_(projection.bias)
    _gabor_filters(projection.weight[:filters])
    nn.init.normal_(embeddings.cls_token, std=CLASS_TOKEN)
    nn.init.zeros_(embeddings.position_embeddings)
    embeddings.position_embeddings[0, 1:, filters:] = _sinusoids(math.isqrt(patches), width - filters)
    for layer in backbone.layers:
        _keep_variance(layer)
        layer.attention.o_proj.weight.mul_(BRANCH)
        layer.mlp.fc2.weight.mul_(BRANCH)
    nn.init.zeros_(backbone.layers[0].attention.o_proj.weight)
    _energies(backbone.layers[0].mlp, filters)


def _gabor_filters(weight: Tensor) -> None:
    """Sets [filters, 3, side, side]: every place, direction and wave, cosine and sine next to each other; of grey."""
    filters, colours, side, _ = weight.shape
    rows, columns = torch.meshgrid(torch.arange(side) + 0.5, torch.arange(side) + 0.5, indexing="ij")
    places = [(place + 0.5) * side / PATCH_GRID for place in range(PATCH_GRID)]
    directions = max(1, filters // (2 * len(WAVES) * len(places) ** 2))
    shapes = itertools.product(places, places, range(directions), WAVES, (0.0, math.pi / 2))
    for kernel, (row, column, direction, wave, phase) in zip(weight, itertools.cycle(shapes), strict=False):
        down, right, angle = rows - row, columns - column, math.pi * direction / directions
        along = right * math.cos(angle) + down * math.sin(angle)
        envelope = torch.exp(-(down**2 + right**2) / (2 * (0.375 * side / PATCH_GRID) ** 2))
        gabor = envelope * torch.cos(2 * math.pi * along / (wave * side) + phase)
        gabor -= gabor.mean()  # a plain patch has no edges
        kernel[:] = RESPONSES * gabor / gabor.norm() / colours


def _energies(mlp: Any, filters: int) -> None:
    """A feed-forward net that adds, for each pair of filters, the sum of their responses' sizes, spread over all."""
    width, pairs = mlp.fc1.in_features, min(filters, mlp.fc1.out_features // 2) // 2
    filters = 2 * pairs
    positive = torch.eye(width)[:filters] * SHARPNESS
    mlp.fc1.weight[: 2 * filters] = torch.cat([positive, -positive])  # GELU(x) + GELU(-x) is about |x|
    spread = torch.linalg.qr(torch.randn(filters, filters))[0][:, :pairs] * ENERGIES
    energy = torch.eye(pairs).repeat_interleave(2, dim=1) / SHARPNESS
    mlp.fc2.weight[:, : 2 * filters] = 0.0
    mlp.fc2.weight[:filters, : 2 * filters] = (spread @ energy).repeat(1, 2)
    mlp.fc2.bias[:filters] = -USUAL_ENERGY * spread.sum(dim=1)


def _keep_variance(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=1 / math.sqrt(part.in_features))
            nn.init.zeros_(part.bias)


def _sinusoids(side: int, channels: int) -> Tensor:
    """[side * side, channels]: a quarter of them each for sine and cosine of a patch's row and column."""
    frequencies = LONGEST_WAVE ** -(torch.arange(channels // 4) / (channels // 4))
    angles = torch.arange(side)[:, None] * frequencies  # [side, channels / 4]
    rows, columns = angles[:, None].expand(-1, side, -1), angles[None].expand(side, -1, -1)
    waves = [rows.sin(), rows.cos(), columns.sin(), columns.cos()]
    return PLACES * torch.cat(waves, dim=-1).flatten(0, 1)
