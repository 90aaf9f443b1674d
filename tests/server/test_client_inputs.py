"""What a Python program holds, and sound of any length, on the real Triton: the answer of the plain file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cmt_cli.export import sample
from cmt_client import EmotionClient, InvalidInput, Sound
from cmt_client.film import scenes
from cmt_pipeline.limits import DEFAULT_LIMITS
from cmt_server.server import TritonServer
from small_media import write_video

FACE, SPEECH = sample("image"), sample("audio")


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, server: TritonServer) -> EmotionClient:
    with EmotionClient(server.grpc_url if request.param == "grpc" else server.http_url) as client:
        yield client


def test_every_form_of_an_image_gets_the_answer_of_its_file(client: EmotionClient) -> None:
    png = io.BytesIO()
    Image.open(FACE).convert("RGB").save(png, "PNG")
    pixels = np.array(Image.open(png))
    transparent = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    truth = client.predict(image=png.getvalue()).probabilities
    for image in (
        png,
        {"bytes": png.getvalue(), "path": "face.png"},
        pixels,
        pixels.transpose(2, 0, 1),
        pixels / 255,
        transparent,
        torch.from_numpy(pixels).permute(2, 0, 1) / 255,
        Image.open(png),
    ):
        assert client.predict(image=image).probabilities == truth


def test_every_form_of_a_sound_gets_the_answer_of_its_file(client: EmotionClient) -> None:
    samples, rate = soundfile.read(SPEECH, dtype="int16")
    floats = samples / np.float32(2**15)
    truth = client.predict(audio=SPEECH).probabilities
    with SPEECH.open("rb") as file:
        for audio in (
            file,
            {"bytes": None, "path": str(SPEECH)},
            {"array": floats.astype(np.float64), "sampling_rate": float(rate), "path": None},
            (samples.astype(np.int32) * 2**16, rate),
            Sound(np.stack([floats, floats]), rate),
            (rate, torch.from_numpy(floats)),
        ):
            assert client.predict(audio=audio).probabilities == truth


def long_sound(path: Path, seconds: int) -> tuple[Path, np.ndarray, int]:
    samples, rate = soundfile.read(SPEECH, dtype="int16")
    samples = np.resize(samples, seconds * rate)
    soundfile.write(path, samples, rate)
    return path, samples, rate


def test_a_long_sound_is_answered_window_by_window(client: EmotionClient, tmp_path: Path) -> None:
    path, samples, rate = long_sound(tmp_path / "long.wav", 40)
    with pytest.raises(InvalidInput) as raised:
        client.predict(audio=path)
    assert raised.value.code == "too_long"
    answer = client.predict_long(audio=path, text="Well done!")
    assert [w.start_s for w in answer.windows] == pytest.approx([0, 40 / 3, 80 / 3], abs=1e-3)
    assert [w.end_s for w in answer.windows] == pytest.approx([40 / 3, 80 / 3, 40], abs=1e-3)
    expected = []
    for window in answer.windows:
        piece = samples[round(window.start_s * rate) : round(window.end_s * rate)]
        expected.append(client.predict(audio=(piece, rate), text="Well done!"))
        assert window.emotion.probabilities == pytest.approx(expected[-1].probabilities, abs=1e-5)
    for name, probability in answer.whole.probabilities.items():
        assert probability == pytest.approx(np.mean([e.probabilities[name] for e in expected]), abs=1e-5)
    assert answer.whole.modalities == ("audio", "text")


def test_a_long_compressed_file_is_answered(client: EmotionClient, tmp_path: Path) -> None:
    path, samples, rate = long_sound(tmp_path / "long.wav", 20)
    soundfile.write(tmp_path / "long.flac", samples, rate)
    wav, flac = (client.predict_long(audio=file) for file in (path, tmp_path / "long.flac"))
    for one, other in zip(wav.windows, flac.windows, strict=True):
        assert one.emotion.probabilities == pytest.approx(other.emotion.probabilities, abs=1e-5)
    assert len(flac.windows) == 2


def test_a_short_sound_has_the_answer_of_predict(client: EmotionClient) -> None:
    answer = client.predict_long(audio=SPEECH)
    assert not answer.windows
    assert answer.whole.probabilities == client.predict(audio=SPEECH).probabilities


def test_a_film_is_answered_by_its_sound_and_its_pictures(client: EmotionClient, tmp_path: Path) -> None:
    path = write_video(tmp_path / "film.mp4", 3.0)
    [scene] = scenes(path, DEFAULT_LIMITS)
    answer = client.predict(video=path, text="Well done!")
    asked = [client.predict(image=picture, audio=scene.audio, text="Well done!") for picture in scene.pictures]
    for name, probability in answer.probabilities.items():
        assert probability == pytest.approx(np.mean([each.probabilities[name] for each in asked]), abs=1e-5)
    assert answer.modalities == ("image", "audio", "text")
