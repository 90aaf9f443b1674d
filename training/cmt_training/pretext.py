"""A second thing that encoders learn while they learn emotions: to say what is where in a picture and in a sound.

Labels say little about what to look at, and from a few thousand of them a transformer that starts from nothing learns
almost nothing. What lies under every patch and frame says much, and costs no labels: edges by direction, as in MaskFeat
(Wei et al. 2022, arXiv 2112.09133); spectrum and periodicity, as in PASE (Pascual et al. 2019, arXiv 1904.03416).
The heads that say it are thrown away after training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.encoders import RECEPTIVE_FIELD
from cmt_pipeline.buckets import CONV_STRIDES, SAMPLE_RATE_HZ
from cmt_pipeline.tensors import MODEL_WIDTH, PATCH_SIDE

DIRECTIONS = 8
CELL = 8  # pixels
EDGES = DIRECTIONS * (PATCH_SIDE // CELL) ** 2  # of a patch

HOP = math.prod(CONV_STRIDES)  # 20 ms, between two frames of the audio encoder, which see RECEPTIVE_FIELD samples
FFT = 1_024
BANDS = 40  # mel
LAGS = 24
PITCH_HZ = (80.0, 500.0)
SOUNDS = BANDS + LAGS  # of a frame

QUIET = 1e-2  # added before a logarithm


class Pretext(nn.Module):
    """Features of patches and frames -> how far from their edges and spectra a linear head on them is."""

    bands: Tensor
    lags: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.edges = nn.Linear(MODEL_WIDTH, EDGES)
        self.sounds = nn.Linear(MODEL_WIDTH, SOUNDS)
        self.register_buffer("bands", mel_bands(), persistent=False)
        longest, shortest = (SAMPLE_RATE_HZ / hertz for hertz in PITCH_HZ)
        lags = torch.logspace(math.log10(shortest), math.log10(longest), LAGS).round().long()
        self.register_buffer("lags", lags, persistent=False)

    def forward(
        self, inputs: Mapping[str, Tensor], encoded: Sequence[Tensor], patches: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sum over the real patches and frames of their mean squared errors, and how many they are.

        encoded: as CrossModalTransformer.encode; patches: which of an image's are among its features, None for all.
        """
        image, image_mask, audio, audio_mask = encoded[:4]
        terms = []
        if "pixel_values" in inputs:
            wanted = edges_of(inputs["pixel_values"].float())
            wanted = wanted if patches is None else wanted[:, patches]
            terms.append(_error(self.edges(image[:, 1:]), wanted, image_mask[:, 1:]))
        if "input_values" in inputs:
            wanted = sounds_of(inputs["input_values"].float(), self.bands, self.lags)
            terms.append(_error(self.sounds(audio), wanted, audio_mask))
        nothing = encoded[0].new_zeros((), dtype=torch.float32)
        return sum((term[0] for term in terms), nothing), sum((term[1] for term in terms), nothing)


@torch.no_grad()
def edges_of(pixel_values: Tensor) -> Tensor:
    """[batch, 3, height, width] -> [batch, patches, EDGES]: how strong edges of each direction are, by cells.

    Of zero mean and unit variance within each image, so that light doesn't matter.
    """
    grey = pixel_values.mean(dim=1)
    across = functional.pad(grey[:, :, 2:] - grey[:, :, :-2], (1, 1))
    down = functional.pad(grey[:, 2:] - grey[:, :-2], (0, 0, 1, 1))
    angles = [math.pi * k / DIRECTIONS for k in range(DIRECTIONS)]
    strength = torch.stack([(across * math.cos(a) + down * math.sin(a)).abs() for a in angles], dim=1)
    cells = (functional.avg_pool2d(strength, CELL) + QUIET).log()
    patches = functional.unfold(cells, PATCH_SIDE // CELL, stride=PATCH_SIDE // CELL).transpose(1, 2)
    return _standard(patches, patches.new_ones(patches.shape[:2]))


@torch.no_grad()
def sounds_of(input_values: Tensor, bands: Tensor, lags: Tensor) -> Tensor:
    """[batch, samples] -> [batch, frames, SOUNDS]: log mel spectrum, then autocorrelation at the lags of a pitch."""
    short = max(0, RECEPTIVE_FIELD - input_values.shape[1])
    frames = functional.pad(input_values, (0, short)).unfold(1, RECEPTIVE_FIELD, HOP)  # [batch, frames, samples]
    window = torch.hann_window(RECEPTIVE_FIELD, device=frames.device)
    power = torch.fft.rfft(frames * window, FFT).abs() ** 2
    spectrum = (power @ bands + QUIET).log()
    correlation = torch.fft.irfft(power, FFT)
    periodic = correlation[..., lags] / (correlation[..., :1] + QUIET)
    heard = (frames.abs().amax(dim=2) > 0).to(spectrum.dtype)
    return torch.cat([_standard(spectrum, heard), 2 * periodic], dim=2)


def mel_bands() -> Tensor:
    """[FFT / 2 + 1, BANDS]: triangles of equal width on the mel scale (O'Shaughnessy's), each of area 1."""
    mel = torch.linspace(0, 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = torch.linspace(0, SAMPLE_RATE_HZ / 2, FFT // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    bands = torch.minimum(rising, falling).clamp(min=0)
    return bands / bands.sum(dim=0).clamp(min=1e-6)


def _standard(values: Tensor, mask: Tensor) -> Tensor:
    """[batch, n, values] of zero mean and unit variance over the real rows of each item."""
    weight = mask[..., None]
    count = (weight.sum(dim=(1, 2), keepdim=True) * values.shape[2]).clamp(min=1)
    centred = values - (values * weight).sum(dim=(1, 2), keepdim=True) / count
    variance = (centred**2 * weight).sum(dim=(1, 2), keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-4)


def _error(found: Tensor, wanted: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    each = ((found.float() - wanted) ** 2).mean(dim=2)  # [batch, tokens]
    return (each * mask).sum(), mask.sum().to(torch.float32)
