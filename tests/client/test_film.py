"""Films: the sound that is heard, in windows, and the pictures that are seen at their times."""

from __future__ import annotations

import asyncio
import io
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmt_client import (
    AsyncEmotionClient,
    AsyncFakeTransport,
    Emotion,
    EmotionClient,
    FakeTransport,
    InvalidInput,
)
from cmt_client.film import MOST_PIXELS_A_SIDE, PICTURES_PER_WINDOW, Scene, scenes
from cmt_pipeline.limits import DEFAULT_LIMITS
from small_media import write_video

#: A window holds 2 s.
LIMITS = replace(DEFAULT_LIMITS, max_audio_s=2.0)
IDENTITY = b"".join(n.to_bytes(4, "big") for n in (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30))
CLOCKWISE = b"".join(n.to_bytes(4, "big", signed=True) for n in (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30))


def redness(picture: bytes) -> float:
    """Of the film's red from 0 to 250: which share of its length has gone by."""
    return float(np.asarray(Image.open(io.BytesIO(picture)))[..., 0].mean()) / 250


def heard_s(scene: Scene) -> float:
    assert scene.audio is not None
    samples, rate = soundfile.read(io.BytesIO(scene.audio))
    return len(samples) / rate


def anonymous(emotion: Emotion) -> Emotion:
    """Without the request's own name."""
    return replace(emotion, request_id="")


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_a_short_film_is_one_window(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"film.{suffix}", 1.5)
    for film in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
        [scene] = scenes(film, LIMITS)
        assert (scene.start_s, scene.end_s) == (0, pytest.approx(1.5, abs=0.06))
        assert heard_s(scene) == pytest.approx(1.5, abs=0.06)
        assert [redness(picture) for picture in scene.pictures] == pytest.approx([1 / 6, 3 / 6, 5 / 6], abs=0.1)


@pytest.mark.parametrize("layout", ["mono", None])
def test_a_long_film_is_cut_and_each_window_has_its_own_pictures(tmp_path: Path, layout: str | None) -> None:
    found = list(scenes(write_video(tmp_path / "film.mp4", 20.0, layout=layout), LIMITS))
    assert len(found) == pytest.approx(10, abs=1)
    for index, scene in enumerate(found):
        assert (scene.audio is None) == (layout is None)
        shown = [redness(picture) for picture in scene.pictures]
        expected = [(index + part) / len(found) for part in (1 / 6, 3 / 6, 5 / 6)]
        assert shown == pytest.approx(expected, abs=0.03)


def test_pictures_are_turned_as_the_film_says(tmp_path: Path) -> None:
    """Its left half is green and its right one blue; turned clockwise the green one lies above."""
    path = write_video(tmp_path / "film.mp4", size=(64, 48), halves=True)
    data = path.read_bytes()
    at = data.index(IDENTITY, data.index(b"tkhd"))
    path.write_bytes(data[:at] + CLOCKWISE + data[at + len(IDENTITY) :])
    [scene] = scenes(path, LIMITS)
    picture = np.asarray(Image.open(io.BytesIO(scene.pictures[0])))
    assert picture.shape == (64, 48, 3)
    assert picture[8, 24, 1] > 150 > picture[8, 24, 2]
    assert picture[56, 24, 2] > 150 > picture[56, 24, 1]


def test_large_pictures_are_shrunk(tmp_path: Path) -> None:
    [scene] = scenes(write_video(tmp_path / "film.mp4", size=(1920, 1080)), LIMITS)
    assert Image.open(io.BytesIO(scene.pictures[0])).size == (MOST_PIXELS_A_SIDE, MOST_PIXELS_A_SIDE * 1080 // 1920)


@pytest.mark.parametrize("text", [None, "Hello?"])
def test_each_picture_is_asked_for_with_the_sound_and_the_text(tmp_path: Path, text: str | None) -> None:
    path, fake = write_video(tmp_path / "film.mp4", 5.0), FakeTransport()
    with EmotionClient("fake:1", transport=fake, limits=LIMITS) as client:
        answer = client.predict_video(path, text=text)
        assert len(answer.windows) == 3
        assert [call.model for call in fake.calls] == (  # type: ignore[attr-defined]
            ["emotion" if text else "emotion_image_audio"] * PICTURES_PER_WINDOW * 3
        )
        assert anonymous(client.predict(video=path, text=text)) == anonymous(answer.whole)

    async def main() -> None:
        async with AsyncEmotionClient("fake:1", transport=AsyncFakeTransport(), limits=LIMITS) as client:
            again = await client.predict_video(path, text=text)
            assert [anonymous(w.emotion) for w in again.windows] == [anonymous(w.emotion) for w in answer.windows]
            assert anonymous(await client.predict(video=path, text=text)) == anonymous(answer.whole)

    asyncio.run(main())


def test_a_film_goes_with_text_alone(tmp_path: Path) -> None:
    with EmotionClient("fake:1", transport=FakeTransport()) as client:
        with pytest.raises(InvalidInput) as raised:
            client.predict(video=b"", audio=b"")
        assert (raised.value.field, raised.value.code) == ("video", "unexpected")
        with pytest.raises(ValueError, match="request_id"):
            client.predict(video=b"", request_id="1")


@pytest.mark.parametrize("data", [b"", b"no film", b"\0\0\0\x18ftypmp42" + bytes(100)])
def test_what_is_no_film_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput) as raised:
        next(scenes(data, LIMITS))
    assert (raised.value.field, raised.value.code) == ("video", "not_decodable")


@pytest.mark.parametrize(
    ("there", "instead", "code"),
    [
        (b"V_MPEG4/ISO/ASP", b"V_NONE4/ISO/ASP", "wrong_format"),
        (b"A_MPEG/L2", b"A_NONE/L2", "wrong_format"),
        (b"\xff\xfd", b"\0\0", "not_decodable"),  # every frame of the sound begins so
    ],
)
def test_a_film_that_can_be_seen_or_heard_but_in_part_is_refused(
    tmp_path: Path, there: bytes, instead: bytes, code: str
) -> None:
    data = write_video(tmp_path / "film.mkv").read_bytes()
    with pytest.raises(InvalidInput) as raised:
        next(scenes(data.replace(there, instead), LIMITS))
    assert raised.value.code == code


def test_a_sound_is_no_film(tmp_path: Path) -> None:
    path = tmp_path / "sound.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    with pytest.raises(InvalidInput) as raised:
        next(scenes(path, LIMITS))
    assert (raised.value.field, raised.value.code) == ("video", "not_decodable")


def test_without_pyav_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "film.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InvalidInput, match="pip install"):
        next(scenes(path, LIMITS))
