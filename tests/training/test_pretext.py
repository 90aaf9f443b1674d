"""What encoders learn beside emotion: its targets say what they claim to, whatever the padding."""

from __future__ import annotations

import math

import pytest
import torch

from cmt_export.checkpoint import checkpoint_from_preset
from cmt_pipeline.buckets import SAMPLE_RATE_HZ, frames_of
from cmt_training.batches import Reader, raw_sources
from cmt_training.options import TrainOptions
from cmt_training.prepare import Prepared
from cmt_training.pretext import BANDS, DIRECTIONS, EDGES, Pretext, edges_of, mel_bands, sounds_of
from cmt_training.trainee import Trainee
from small_corpus import TINY


def tone(hertz: float, samples: int = 8_000) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(samples) / SAMPLE_RATE_HZ)[None]


def targets(sound: torch.Tensor) -> torch.Tensor:
    pretext = Pretext()
    return sounds_of(sound, pretext.bands, pretext.lags)


@pytest.mark.parametrize("samples", [200, 400, 8_000, 16_001])
def test_a_sounds_targets_are_as_many_as_the_encoders_frames(samples: int) -> None:
    expected = frames_of(max(400, samples))
    assert targets(torch.randn(2, samples)).shape[:2] == (2, expected)


def test_the_spectrum_tells_a_high_tone_from_a_low_one() -> None:
    low, high = (int(targets(tone(hertz))[0, 5, :BANDS].argmax()) for hertz in (200, 3_000))
    assert low < high
    centres = (mel_bands() * torch.linspace(0, SAMPLE_RATE_HZ / 2, 513)[:, None]).sum(dim=0)
    assert float(centres[high]) == pytest.approx(3_000, rel=0.1)


@pytest.mark.parametrize("hertz", [110, 180, 300])
def test_the_lags_tell_the_pitch(hertz: float) -> None:
    lags = Pretext().lags
    found = int(lags[targets(sum(tone(k * hertz) for k in range(1, 6)))[0, 5, BANDS:].argmax()])  # type: ignore[arg-type]
    assert found == pytest.approx(SAMPLE_RATE_HZ / hertz, rel=0.1)


def test_silence_has_finite_targets() -> None:
    assert torch.isfinite(targets(torch.zeros(1, 8_000))).all()
    assert torch.isfinite(edges_of(torch.zeros(1, 3, 224, 224))).all()


def test_edges_tell_their_direction_and_no_light() -> None:
    stripes = torch.sin(torch.arange(224) / 2.0).expand(1, 3, 224, 224)  # vertical stripes: change from left to right
    found = edges_of(stripes)
    assert found.shape == (1, 196, EDGES)
    by_direction = found[0].mean(dim=0).reshape(DIRECTIONS, -1).mean(dim=1)
    assert int(by_direction.argmax()) == 0
    assert int(by_direction.argmin()) == DIRECTIONS // 2
    face = torch.rand(1, 3, 224, 224)
    assert (edges_of(0.5 * face + 0.2) - edges_of(face)).abs().mean() < 0.1


def test_a_patchs_edges_are_its_own() -> None:
    image = torch.zeros(1, 3, 224, 224)
    image[:, :, 100:110, 52:58] = 1.0  # inside the patch of row 6, column 3
    strongest = int(edges_of(image)[0].mean(dim=1).argmax())
    assert strongest == 6 * 14 + 3


def test_the_error_counts_real_patches_and_frames_alone(prepared: Prepared) -> None:
    options = TrainOptions(preset=TINY.name, token_dropout=0.5)
    checkpoint = checkpoint_from_preset(TINY.name, "meld")
    trainee = Trainee(checkpoint.model, options, 7, features=False).train()
    reader = Reader(prepared, raw_sources(prepared))
    batch = reader.batch(range(10))
    *_, error, counted = trainee(batch.inputs, batch.presence)
    items = prepared.items[:10]
    frames = sum(frames_of(item.audio[1]) for item in items if item.audio)
    assert float(counted) == frames + 98 * sum(item.image is not None for item in items)
    assert torch.isfinite(error)
