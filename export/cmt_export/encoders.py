"""The three encoders, each ending in a projection to the fusion's width.

Image: Vision Transformer (Dosovitskiy et al. 2021). Audio: Wav2Vec2 (Baevski et al. 2020). Text: BERT (Devlin et al.
2019). And their kin, all from Hugging Face transformers; every encoder returns features [batch, tokens, MODEL_WIDTH]
float32 and a mask [batch, tokens] int64, 1 = real.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from cmt_export.token_merging import merging_states
from cmt_pipeline.buckets import CONV_KERNELS, CONV_STRIDES, HOP, RECEPTIVE_FIELD
from cmt_pipeline.presets import MERGED_TOKENS
from cmt_pipeline.tensors import IMAGE_SIDE, MODEL_WIDTH

Features = tuple[Tensor, Tensor]

#: Added to a masked attention score. Its exponential is 0 in fp32, and it is still a finite number in fp16.
MASKED = -1e4


class ImageEncoder(nn.Module):
    """`pixel_values` [batch, 3, 224, 224] -> features of the class token and the patches."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Linear(backbone.config.hidden_size, MODEL_WIDTH)
        self.tokens = (1 + (IMAGE_SIDE // backbone.config.patch_size) ** 2,)

    def forward(self, pixel_values: Tensor) -> Features:
        hidden = self.states(pixel_values)
        return self.projection(hidden), hidden.new_ones(hidden.shape[:2], dtype=torch.int64)

    def states(self, pixel_values: Tensor) -> Tensor:
        """[batch, tokens, hidden]."""
        if getattr(self.backbone.config, MERGED_TOKENS, 0):
            return merging_states(self.backbone, pixel_values)
        hidden: Tensor = self.backbone(pixel_values).last_hidden_state
        return hidden


class TextEncoder(nn.Module):
    """`input_ids`, `attention_mask` [batch, tokens] -> features of the tokens."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = nn.Linear(backbone.config.hidden_size, MODEL_WIDTH)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Features:
        return self.projection(self.states(input_ids, attention_mask)), attention_mask

    def states(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[batch, tokens, hidden]."""
        hidden: Tensor = self.backbone(input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


class AudioEncoder(nn.Module):
    """`input_values` [batch, samples], `num_samples` [batch, 1] -> features of 20 ms frames.

    Padding changes nothing. Transformers' own forward normalises each channel of the first convolution over *all* of
    time, padding included, so that a clip's features would depend on the bucket it was padded to; here that GroupNorm
    takes its statistics over the clip's own frames. Later convolutions are unpadded: a real frame never reaches into
    padding.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        # Weight normalisation of the positional convolution is a way to train, not a part of the function: folded in.
        for part in backbone.encoder.pos_conv_embed.modules():
            if parametrize.is_parametrized(part):
                parametrize.remove_parametrizations(part, "weight")
        self.backbone = backbone
        self.projection = nn.Linear(backbone.config.hidden_size, MODEL_WIDTH)
        self.layer_weights: nn.Parameter | None = None  # [1 + layers], where a published head reads a sum of all

    def forward(self, input_values: Tensor, num_samples: Tensor) -> Features:
        frames = self.convolve(input_values, num_samples)  # [batch, frames, conv_dim]
        mask = positions_below(frames.shape[1], frame_count(num_samples))
        projected = self.backbone.feature_projection(frames)
        hidden = projected[0] if isinstance(projected, tuple) else projected  # HuBERT's gives nothing beside it
        return self.projection(self._transform(hidden, mask)), mask.to(torch.int64)

    def _transform(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Wav2Vec2's transformer with its masks as arithmetic.

        Transformers writes zeros through a boolean index, which in ONNX becomes NonZero and shapes that depend on data.
        In a sum of all layers the last state counts as it leaves the encoder, after its norm: so it was until
        transformers 5, and so were the published sums learnt (seen on 5.23: before the norm, where that comes last).
        """
        real = mask.to(hidden.dtype)
        hidden = hidden * real[..., None]
        bias = ((1 - real) * MASKED)[:, None, None, :]
        encoder = self.backbone.encoder
        hidden = hidden + self.positions(hidden, real)
        stable = getattr(self.backbone.config, "do_stable_layer_norm", False)  # then the norm comes last
        hidden = hidden if stable else encoder.layer_norm(hidden)
        states: list[Tensor] = [encoder.dropout(hidden)]
        states.extend(self.layers(states[0], bias))
        if stable:
            states[-1] = encoder.layer_norm(states[-1])
        if self.layer_weights is None:
            return states[-1]
        mixed: Tensor = torch.stack(states, dim=-1) @ functional.softmax(self.layer_weights, dim=-1)
        return mixed

    def positions(self, hidden: Tensor, real: Tensor) -> Tensor:  # noqa: ARG002  # who has several convolutions needs it
        """What a frame's place adds to it [batch, frames, hidden]; real: [batch, frames], 1 or 0."""
        added: Tensor = self.backbone.encoder.pos_conv_embed(hidden)
        return added

    def layers(self, hidden: Tensor, bias: Tensor) -> Iterator[Tensor]:
        """What each of the transformer's layers makes; bias: [batch, 1, 1, frames], of the mask."""
        for layer in self.backbone.encoder.layers:
            made = layer(hidden, attention_mask=bias)
            hidden = made[0] if isinstance(made, tuple) else made
            yield hidden

    def convolve(self, input_values: Tensor, num_samples: Tensor) -> Tensor:
        """The convolutions alone: [batch, frames, conv_dim]."""
        hidden = input_values[:, None]  # [batch, channels, time]
        for layer in self.backbone.feature_extractor.conv_layers:
            hidden = layer.conv(hidden)
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):  # "group" flavour: after the first convolution alone
                first = _windows(num_samples, CONV_KERNELS[0], CONV_STRIDES[0])
                hidden = masked_group_norm(hidden, norm, first)
            elif norm is not None:  # "layer" flavour: over channels, frame by frame
                hidden = norm(hidden.transpose(1, 2)).transpose(1, 2)
            hidden = layer.activation(hidden)
        return hidden.transpose(1, 2)


def frame_count(num_samples: Tensor) -> Tensor:
    """Frames of so many samples, at least 1; any shape, int64. The tensor twin of `buckets.frames_of`."""
    return _windows(num_samples, RECEPTIVE_FIELD, HOP)


def _windows(num_samples: Tensor, size: int, hop: int) -> Tensor:
    """How many windows of `size` samples, `hop` apart, lie within so many samples (and at least one frame's)."""
    return torch.div(at_least(RECEPTIVE_FIELD, num_samples) - size, hop, rounding_mode="trunc") + 1


def at_least(least: int, counts: Tensor) -> Tensor:
    """int64, as a Max of two tensors: of a Clip, which `clamp` becomes, TensorRT takes floats alone."""
    return torch.maximum(counts, torch.full((), least, dtype=torch.int64, device=counts.device))


def positions_below(size: int, lengths: Tensor) -> Tensor:
    """Mask [batch, size] bool: position < length, of lengths [batch, 1]."""
    return torch.arange(size, device=lengths.device)[None, :] < lengths


def masked_group_norm(hidden: Tensor, norm: nn.GroupNorm, lengths: Tensor) -> Tensor:
    """GroupNorm over the first `lengths` [batch, 1] positions of hidden [batch, channels, time], one channel a group.

    Frames beyond are scaled alike; nothing reads them.
    """
    if norm.num_groups != norm.num_channels:
        raise ValueError(
            f"got {norm.num_groups} groups of {norm.num_channels} channels; Wav2Vec2 has a group a channel"
        )
    hidden = hidden.float()  # sums over seconds of sound
    mask = positions_below(hidden.shape[2], lengths)[:, None, :].to(hidden.dtype)  # [batch, 1, time]
    count = lengths[:, :, None].to(hidden.dtype)  # [batch, 1, 1]
    mean = (hidden * mask).sum(dim=2, keepdim=True) / count
    centred = hidden - mean
    variance = (centred * centred * mask).sum(dim=2, keepdim=True) / count
    scale = norm.weight[None, :, None] * torch.rsqrt(variance + norm.eps)
    return centred * scale + norm.bias[None, :, None]
