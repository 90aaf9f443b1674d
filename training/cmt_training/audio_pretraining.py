"""How an audio encoder that nobody published weights for learns to represent sound, before it is trained on emotions.

Few labels teach convolutions from nothing almost nothing: all that they see at first is noise. So the convolutions
start as a cascade of wavelets and rectifiers, each channel a path of its own through the bands (a scattering transform,
Andén & Mallat 2014, arXiv 1304.6763), and are then fitted, without labels, to say of each frame what a linear layer can
turn into its mel spectrum and its periodicity (as PASE does, Pascual et al. 2019, arXiv 1904.03416): a minute's work.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from cmt_export.checkpoint import Checkpoint
from cmt_export.encoders import AudioEncoder
from cmt_pipeline.buckets import HOP, RECEPTIVE_FIELD, SAMPLE_RATE_HZ
from cmt_pipeline.progress import Progress
from cmt_release.locks import make_once
from cmt_training.prepare import SAMPLES_FILE, Prepared

FFT = 1_024
BANDS = 40  # mel
LAGS = 24
PITCH_HZ = (80.0, 500.0)
HEARD = BANDS + LAGS  # of a frame
QUIET = 1e-2  # added before a logarithm

HIGHEST = 0.35  # of the first layer's bands, in cycles a sample
WAVELETS = {3: ((1.0, 2.0, 1.0), (1.0, 0.0, -1.0), (-1.0, 2.0, -1.0)), 2: ((1.0, 1.0), (1.0, -1.0))}
MIXING = 0.1  # of noise between the paths, so that they can learn from each other
STRETCH = SAMPLE_RATE_HZ // 2  # samples of a sound that a step hears
BATCH = 32
LEARNING_RATE = 2e-3
WARM_UP = 0.05


def pretrain_audio(checkpoint: Checkpoint, data: Prepared, steps: int, seed: int, progress: Progress) -> bool:
    """Sets the convolutions of an audio encoder that starts from nothing; done before, they lie beside the data.

    False when there is none, or no sound to learn from.
    """
    config = checkpoint.config.encoders["audio"]
    spans = [data.items[i].audio for i in data.of("train") if data.items[i].audio is not None]
    if config.weights_from is not None or not steps or not spans:
        return False
    encoder = cast(AudioEncoder, checkpoint.model.encoders["audio"])
    front_end = cast(nn.Module, encoder.backbone.feature_extractor)
    recipe = json.dumps([asdict(config), steps, seed, STRETCH, BATCH, LEARNING_RATE, torch.__version__], sort_keys=True)
    path = data.folder / f"audio-pretraining-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.safetensors"

    def learn(draft: Path) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            scatter(encoder)
            _fit(encoder, data.array(SAMPLES_FILE), cast(list[tuple[int, int]], spans), steps, seed, progress)
        save_file({name: tensor.detach().contiguous() for name, tensor in front_end.state_dict().items()}, draft)

    make_once(path, learn)
    front_end.load_state_dict(load_file(path))
    return True


@torch.no_grad()
def scatter(encoder: AudioEncoder) -> None:
    """The wavelets, each layer scaled to unit variance on buzzing sounds with noise (LSUV, arXiv 1511.06422)."""
    layers = cast(Any, encoder.backbone.feature_extractor).conv_layers
    _bands(layers[0].conv.weight)
    for layer in layers[1:]:
        _paths(layer.conv.weight)
    hidden = _buzz()[:, None]
    for layer in layers:
        deviation = layer.conv(hidden).std(dim=(0, 2))
        layer.conv.weight /= deviation[:, None, None].clamp(min=1e-4)
        hidden = layer(hidden)


def sounds_of(input_values: Tensor, bands: Tensor, lags: Tensor) -> Tensor:
    """[batch, samples] -> [batch, frames, HEARD]: log mel spectrum, then autocorrelation at the lags of a pitch."""
    short = max(0, RECEPTIVE_FIELD - input_values.shape[1])
    frames = functional.pad(input_values, (0, short)).unfold(1, RECEPTIVE_FIELD, HOP)  # [batch, frames, samples]
    power = torch.fft.rfft(frames * torch.hann_window(RECEPTIVE_FIELD), FFT).abs() ** 2
    spectrum = (power @ bands + QUIET).log()
    correlation = torch.fft.irfft(power, FFT)
    periodic = correlation[..., lags] / (correlation[..., :1] + QUIET)
    audible = (frames.abs().amax(dim=2) > 0).to(spectrum.dtype)
    return torch.cat([_standard(spectrum, audible), 2 * periodic], dim=2)


def mel_bands() -> Tensor:
    """[FFT / 2 + 1, BANDS]: triangles of equal width on the mel scale (O'Shaughnessy's), each of area 1."""
    mel = torch.linspace(0, 2595 * math.log10(1 + SAMPLE_RATE_HZ / 2 / 700), BANDS + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = torch.linspace(0, SAMPLE_RATE_HZ / 2, FFT // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    bands = torch.minimum(rising, falling).clamp(min=0)
    return bands / bands.sum(dim=0).clamp(min=1e-6)


def pitch_lags() -> Tensor:
    """[LAGS] int64: samples, from the highest pitch's period to the lowest's."""
    longest, shortest = (SAMPLE_RATE_HZ / hertz for hertz in PITCH_HZ)
    return torch.logspace(math.log10(shortest), math.log10(longest), LAGS).round().long()


def _fit(
    encoder: AudioEncoder, samples: Any, spans: list[tuple[int, int]], steps: int, seed: int, progress: Progress
) -> None:
    front_end = cast(nn.Module, encoder.backbone.feature_extractor)
    width = int(cast(Any, front_end).conv_layers[-1].conv.out_channels)
    head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HEARD))
    parameters = [*front_end.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, LEARNING_RATE, weight_decay=0.0)
    rng, bands, lags = np.random.default_rng(seed), mel_bands(), pitch_lags()
    counts = torch.full((BATCH, 1), STRETCH)
    for step in range(steps):
        progress("audio encoder learns to hear", step / steps)
        batch = np.zeros((BATCH, STRETCH), np.float32)
        for row, choice in enumerate(rng.integers(len(spans), size=BATCH)):
            start, count = spans[choice]
            offset = int(rng.integers(0, max(1, count - STRETCH)))
            stretch = samples[start + offset : start + min(offset + STRETCH, count)]
            batch[row, : len(stretch)] = stretch
        sounds = torch.from_numpy(batch)
        found = head(encoder.convolve(sounds, counts))
        targets = sounds_of(sounds, bands, lags)[:, : found.shape[1]]
        share = (step + 1) / steps
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, share / WARM_UP) * (1 + math.cos(math.pi * share)) / 2
        optimizer.zero_grad()
        torch.autograd.backward(functional.mse_loss(found, targets))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()


def _bands(weight: Tensor) -> None:
    """[channels, 1, taps]: windowed waves, each band in four phases."""
    channels, _, taps = weight.shape
    time = torch.arange(taps) - (taps - 1) / 2
    window = torch.hann_window(taps + 2, periodic=False)[1:-1]
    bands = max(1, channels // 4)
    for channel in range(channels):
        frequency = (channel // 4 + 0.5) / bands * HIGHEST
        wave = window * torch.cos(2 * math.pi * frequency * time + channel % 4 * math.pi / 2)
        wave -= wave.mean()
        weight[channel, 0] = wave / wave.norm()


def _paths(weight: Tensor) -> None:
    """[channels, channels, taps]: every channel takes one of those below through a short wavelet, half of them low."""
    channels, below, taps = weight.shape
    nn.init.normal_(weight, std=MIXING / math.sqrt(below * taps))
    source = torch.randperm(below) if below == channels else torch.randint(below, (channels,))
    low, *high = (torch.tensor(shape) / torch.tensor(shape).norm() for shape in WAVELETS[taps])
    for channel in range(channels):
        chosen = low if torch.rand(()) < 0.5 else high[int(torch.randint(len(high), ()))]
        weight[channel, source[channel]] += chosen if torch.rand(()) < 0.5 else -chosen


def _buzz() -> Tensor:
    """[6, 1 s of samples] of zero mean and unit variance: voices' harmonics at six pitches, under noise."""
    time = torch.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    pitch = torch.tensor([90.0, 120.0, 160.0, 220.0, 300.0, 400.0])[:, None]
    harmonics = sum((torch.cos(2 * math.pi * n * pitch * time) / n for n in range(1, 25)), torch.zeros(()))
    sound = harmonics * (0.6 + 0.4 * torch.cos(2 * math.pi * 3 * time)) + 0.3 * torch.randn(len(pitch), len(time))
    return (sound - sound.mean(dim=1, keepdim=True)) / sound.std(dim=1, keepdim=True)


def _standard(values: Tensor, mask: Tensor) -> Tensor:
    """[batch, n, values] of zero mean and unit variance over the real rows of each item."""
    weight = mask[..., None]
    count = (weight.sum(dim=(1, 2), keepdim=True) * values.shape[2]).clamp(min=1)
    centred = values - (values * weight).sum(dim=(1, 2), keepdim=True) / count
    variance = (centred**2 * weight).sum(dim=(1, 2), keepdim=True) / count
    return centred * torch.rsqrt(variance + 1e-4)
