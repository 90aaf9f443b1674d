"""Bytes out of real containers: the right moment, half, box, stretch and mix; damaged files are named."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmt_pipeline.audio import decode_audio
from cmt_pipeline.image import decode_image
from cmt_training.data.media import read_audio, read_image
from cmt_training.examples import DataError, Media
from small_media import RATE_HZ, write_video


def red(data: bytes) -> float:
    return float(np.asarray(decode_image(data), np.float64)[..., 0].mean())


def samples(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getsampwidth()) == (1, 2)
        return np.frombuffer(file.readframes(file.getnframes()), "<i2") / 32_768, file.getframerate()


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mp4", "mpeg4"), ("a.avi", "mpeg4")])
def test_the_frame_in_the_middle(tmp_path: Path, name: str, codec: str) -> None:
    video = write_video(tmp_path / name, seconds=3, codec=codec)
    assert red(read_image(Media(video))) == pytest.approx(125, abs=15)
    assert red(read_image(Media(video, 2.0, 3.0))) == pytest.approx(250 * 25 / 29, abs=15)
    assert red(read_image(Media(video, 0.0, 0.4))) == pytest.approx(250 * 2 / 29, abs=15)


@pytest.mark.parametrize(("half", "channel"), [("left", 1), ("right", 2)])
def test_half_of_a_split_screen(tmp_path: Path, half: str, channel: int) -> None:
    video = write_video(tmp_path / "a.avi", halves=True)
    picture = np.asarray(decode_image(read_image(Media(video, crop=half))), np.float64)  # type: ignore[arg-type]
    assert picture.shape == (48, 32, 3)
    colours = picture[:, 4:-4].mean((0, 1))
    assert colours[channel] > 150 > 60 > colours[3 - channel]


def test_an_image_file_stays_as_it_is_and_a_box_of_it_is_cut_out(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    assert read_image(Media(path)) == path.read_bytes()
    cut = np.asarray(decode_image(read_image(Media(path, crop=(10, -5, 30, 20)))))
    np.testing.assert_array_equal(cut, pixels[:20, 10:30])
    with pytest.raises(DataError, match=r"a\.png.*outside its 60 x 40"):
        read_image(Media(path, crop=(60, 0, 80, 20)))


@pytest.mark.parametrize(("layout", "channels"), [("mono", 1), ("stereo", 2), ("5.1", 6)])
def test_channels_are_averaged(tmp_path: Path, layout: str, channels: int) -> None:
    sound, rate = samples(read_audio(Media(write_video(tmp_path / "a.mp4", layout=layout))))
    assert rate == RATE_HZ
    assert len(sound) / rate == pytest.approx(1.0, abs=0.05)
    assert sound[5000:-5000].std() == pytest.approx(0.5 / np.sqrt(2) / channels, rel=0.1)


@pytest.mark.parametrize(("start_s", "end_s"), [(None, None), (0.0, 1.0), (0.7, 1.9), (2.5, 2.9)])
def test_a_stretch_of_sound_is_exact(tmp_path: Path, start_s: float | None, end_s: float | None) -> None:
    ramp = np.arange(-24_000, 24_000).astype(np.int16)  # 3 s at 16 kHz; every sample tells its place
    soundfile.write(tmp_path / "a.wav", ramp, 16_000, subtype="PCM_16")
    sound, rate = samples(read_audio(Media(tmp_path / "a.wav", start_s, end_s)))
    assert rate == 16_000
    np.testing.assert_array_equal(
        sound * 32_768, ramp[slice(*(None if t is None else round(t * rate) for t in (start_s, end_s)))]
    )


def test_a_stretch_of_a_video_has_its_sound(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", seconds=3)
    sound, rate = samples(read_audio(Media(video, 1.0, 1.5)))
    assert len(sound) == rate // 2
    assert np.abs(sound).max() > 0.2


def test_sound_ends_after_sixteen_seconds(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.flac", np.zeros(20 * 8000, np.int16), 8000)
    data = read_audio(Media(tmp_path / "a.flac"))
    assert len(decode_audio(data)) == 16 * 16_000


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.jpg", "a.wav"])
@pytest.mark.parametrize("content", [b"", b"no media at all" * 50, None])
def test_damaged_media_are_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, read_audio):
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            read(Media(path))


def test_a_clip_that_was_cut_off_is_named(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mp4").read_bytes()
    path = tmp_path / "b.mp4"
    path.write_bytes(whole[: len(whole) // 2])  # its index comes last
    with pytest.raises(DataError, match=r"b\.mp4 can't be used"):
        read_image(Media(path))


def test_a_video_without_sound_has_a_picture_and_no_sound(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", layout=None)
    assert read_image(Media(video))
    with pytest.raises(DataError, match="no sound"):
        read_audio(Media(video))


def test_a_stretch_beyond_the_end_is_named(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4")
    with pytest.raises(DataError, match=r"a\.mp4.*no sound from 5 s"):
        read_audio(Media(video, 5.0, 6.0))
