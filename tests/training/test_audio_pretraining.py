"""How an audio encoder learns to hear: its targets say what they claim to, and it comes to tell them."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch

from cmt_export.checkpoint import checkpoint_from_preset
from cmt_export.encoders import AudioEncoder
from cmt_pipeline.buckets import SAMPLE_RATE_HZ, frames_of
from cmt_training.audio_pretraining import BANDS, mel_bands, pitch_lags, pretrain_audio, scatter, sounds_of
from cmt_training.prepare import Prepared
from small_training import silent
from tiny_model import TINY


def tone(hertz: float, samples: int = 8_000) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(samples) / SAMPLE_RATE_HZ)[None]


def targets(sound: torch.Tensor) -> torch.Tensor:
    return sounds_of(sound, mel_bands(), pitch_lags())


def encoder() -> AudioEncoder:
    return cast(AudioEncoder, checkpoint_from_preset(TINY.name, "meld").model.encoders["audio"])


@pytest.mark.parametrize("samples", [200, 400, 8_000, 16_001])
def test_a_sounds_targets_are_as_many_as_the_encoders_frames(samples: int) -> None:
    assert targets(torch.randn(2, samples)).shape[:2] == (2, frames_of(max(400, samples)))


def test_the_spectrum_tells_a_high_tone_from_a_low_one() -> None:
    low, high = (int(targets(tone(hertz))[0, 5, :BANDS].argmax()) for hertz in (200, 3_000))
    assert low < high
    centres = (mel_bands() * torch.linspace(0, SAMPLE_RATE_HZ / 2, 513)[:, None]).sum(dim=0)
    assert float(centres[high]) == pytest.approx(3_000, rel=0.1)


@pytest.mark.parametrize("hertz", [110, 180, 300])
def test_the_lags_tell_the_pitch(hertz: float) -> None:
    voice = sum((tone(k * hertz) for k in range(1, 6)), torch.zeros(()))
    found = int(pitch_lags()[targets(voice)[0, 5, BANDS:].argmax()])
    assert found == pytest.approx(SAMPLE_RATE_HZ / hertz, rel=0.1)


def test_silence_has_finite_targets() -> None:
    assert torch.isfinite(targets(torch.zeros(1, 8_000))).all()


@torch.no_grad()
def test_the_cascade_starts_at_even_loudness() -> None:
    hearing = encoder()
    scatter(hearing)
    torch.manual_seed(1)
    hidden = torch.randn(4, 1, SAMPLE_RATE_HZ)
    for layer in cast(Any, hearing.backbone.feature_extractor).conv_layers:
        hidden = layer(hidden)
        assert 0.05 < float(hidden.std()) < 5


def test_what_was_learnt_is_found_again_and_is_of_its_seed(prepared: Prepared) -> None:
    learnt, before = [], len(list(prepared.folder.glob("audio-pretraining-*.safetensors")))
    for seed in (0, 0, 1):
        checkpoint = checkpoint_from_preset(TINY.name, "meld")
        assert pretrain_audio(checkpoint, prepared, 3, seed, silent)
        learnt.append(cast(Any, checkpoint.model.encoders["audio"]).backbone.feature_extractor.state_dict())
    assert all(torch.equal(learnt[0][name], learnt[1][name]) for name in learnt[0])
    assert not all(torch.equal(learnt[0][name], learnt[2][name]) for name in learnt[0])
    assert len(list(prepared.folder.glob("audio-pretraining-*.safetensors"))) == before + 2


@pytest.mark.long
def test_more_steps_hear_better(prepared: Prepared) -> None:
    """Linear readout of the convolutions' answer to tones that tells their pitch."""
    errors = []
    pitches = torch.linspace(100, 2_000, 48)
    sounds = torch.cat([tone(float(hertz)) for hertz in pitches])
    wanted = pitches.log()[:, None] - pitches.log().mean()
    for steps in (1, 60):
        checkpoint = checkpoint_from_preset(TINY.name, "meld")
        pretrain_audio(checkpoint, prepared, steps, 5, silent)
        hearing = cast(AudioEncoder, checkpoint.model.encoders["audio"])
        with torch.no_grad():
            heard = hearing.convolve(sounds, torch.full((len(sounds), 1), sounds.shape[1])).mean(dim=1)
        heard = torch.cat([heard / heard.std(), torch.ones(len(heard), 1)], dim=1)
        solved = torch.linalg.lstsq(heard, wanted).solution
        errors.append(float(((heard @ solved - wanted) ** 2).mean() / wanted.var()))
    assert errors[1] < errors[0]


def test_nothing_is_learnt_where_there_is_nothing_to_learn(prepared: Prepared) -> None:
    checkpoint = checkpoint_from_preset(TINY.name, "meld")
    before = {name: tensor.clone() for name, tensor in checkpoint.model.state_dict().items()}
    assert not pretrain_audio(checkpoint, prepared, 0, 0, silent)
    after = checkpoint.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
