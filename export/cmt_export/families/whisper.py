"""Whisper's encoder (Radford et al. 2022, arXiv 2212.04356) on a clip's own length instead of half a minute.

What "the numbers of transformers" are of a clip shorter than that:
- its log-mel spectra are those that WhisperFeatureExtractor gives it with silence up to 30 s: two for each whole frame
  of 20 ms that it has, and none of the silence beyond;
- its states are those of transformers' WhisperEncoder for these spectra alone, with as many rows of its table of
  positions as there are frames.
A window of 30 s would be 10 times the work of 3 s, and its silence would be attended to; what the encoder says of a
clip then is another thing.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.audio_utils import mel_filter_bank
from transformers.models.whisper.modeling_whisper import WhisperEncoder as Backbone

from cmt_export.encoders import MASKED, Features, at_least, positions_below
from cmt_export.family import EncoderFamily
from cmt_pipeline.buckets import AUDIO_FRAMES, HOP, SAMPLE_RATE_HZ
from cmt_pipeline.tensors import MODEL_WIDTH

WINDOW = 400  # samples of one spectrum, 25 ms
MEL_HOP = HOP // 2  # from one spectrum to the next, 10 ms; two are a frame
BINS = WINDOW // 2 + 1
FLOOR = 1e-10  # the least power that is told from none
SPECTRA_BEYOND = 2  # whose windows hold the last samples of a bucket, and are centred after its last frame
RANGE = 8.0  # orders of magnitude below a clip's loudest that are told apart


class Whisper(EncoderFamily):
    model_type = "whisper"
    modality = "audio"
    expects = {"normalize_audio": False}  # noqa: RUF012
    renamed = {r"^(model\.)?encoder\.": ""}  # noqa: RUF012
    beside = ("decoder", "proj_out")
    layers_in = "layers"
    lora_targets = ("q_proj", "v_proj")

    def architecture(self) -> Any:
        return Backbone

    def check(self, config: Any) -> None:
        if config.max_source_positions < AUDIO_FRAMES[-1]:
            raise ValueError(
                f"got an encoder of at most {config.max_source_positions} frames; expected {AUDIO_FRAMES[-1]} at least"
            )

    def wrap(self, backbone: Any) -> nn.Module:
        return WhisperEncoder(backbone)


class WhisperEncoder(nn.Module):
    """`input_values` [batch, samples], `num_samples` [batch, 1] -> features of 20 ms frames; padding changes nothing.

    Whisper's own forward takes no mask and no other length than half a minute.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.log_mel = LogMel(backbone.config.num_mel_bins)
        self.projection = nn.Linear(backbone.config.hidden_size, MODEL_WIDTH)

    def forward(self, input_values: Tensor, num_samples: Tensor) -> Features:
        frames = at_least(1, torch.div(num_samples, HOP, rounding_mode="trunc"))  # of each clip, [batch, 1]
        log_mel = self.log_mel(input_values, num_samples)
        own = positions_below(log_mel.shape[2], 2 * frames)[:, None, :].to(log_mel.dtype)
        hidden = functional.gelu(self.backbone.conv1(log_mel * own)) * own
        hidden = functional.gelu(self.backbone.conv2(hidden)).transpose(1, 2)  # [batch, frames, hidden]
        mask = positions_below(hidden.shape[1], frames)
        bias = ((1 - mask.to(hidden.dtype)) * MASKED)[:, None, None, :]
        hidden = hidden + self.backbone.embed_positions.weight[: hidden.shape[1]]
        for layer in self.backbone.layers:
            hidden = layer(hidden, bias)
        return self.projection(self.backbone.layer_norm(hidden)), mask.to(torch.int64)


class LogMel(nn.Module):
    """Sound -> the spectra of WhisperFeatureExtractor, a convolution with a window's cosines and sines."""

    waves: Tensor
    filters: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        window = 0.5 - 0.5 * np.cos(2 * math.pi * np.arange(WINDOW) / WINDOW)
        turns = np.exp(2j * math.pi * np.outer(np.arange(BINS), np.arange(WINDOW)) / WINDOW) * window
        waves = np.concatenate([turns.real, turns.imag])[:, None]  # [2 * BINS, 1, WINDOW]
        filters = mel_filter_bank(BINS, bands, 0.0, SAMPLE_RATE_HZ / 2, SAMPLE_RATE_HZ, "slaney", "slaney").T
        self.register_buffer("waves", torch.from_numpy(waves).float(), persistent=False)
        self.register_buffer("filters", torch.from_numpy(filters).float(), persistent=False)  # [bands, BINS]

    def forward(self, sound: Tensor, num_samples: Tensor) -> Tensor:
        """[batch, bands, spectra], two a frame. The sound begins mirrored and ends in silence.

        In fp32, whatever the rest is in: the loudest and the faintest of a spectrum are orders of magnitude apart.
        """
        with torch.autocast(sound.device.type, enabled=False):
            return self._of(sound.float(), num_samples)

    def _of(self, sound: Tensor, num_samples: Tensor) -> Tensor:
        sound = sound * positions_below(sound.shape[1], num_samples).to(sound.dtype)
        half = WINDOW // 2
        mirrored = sound[:, 1 : half + 1].flip(1)
        around = torch.cat([mirrored, sound, sound.new_zeros(sound.shape[0], WINDOW)], dim=1)
        around = around.reshape(around.shape[0], 1, -1)  # an unsqueeze is in bf16 to OpenVINO, whatever it is told
        real, imaginary = functional.conv1d(around, self.waves, stride=MEL_HOP).chunk(2, dim=1)
        power = self.filters @ (real * real + imaginary * imaginary)
        log = power.clamp(min=FLOOR).log10()
        log = torch.maximum(log, log.amax(dim=(1, 2), keepdim=True) - RANGE)
        return (log[:, :, :-SPECTRA_BEYOND] + 4.0) / 4.0


WHISPER = Whisper()
