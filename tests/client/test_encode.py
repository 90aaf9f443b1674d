"""What the client wraps, the preprocessing stages unwrap to the very same pixels and samples."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from cmt_client import InvalidInput, Sound
from cmt_client.encode import audio_bytes, image_bytes, text_bytes
from cmt_pipeline.audio import decode_audio
from cmt_pipeline.image import Fit, ImagePreprocessor, decode_image
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits

RANDOM = np.random.default_rng(7)
ORIENTATION = 0x0112  # EXIF's tag


@given(arrays.arrays(np.uint8, st.tuples(st.integers(16, 40), st.integers(16, 40), st.just(3))))
@settings(deadline=None, max_examples=25)
def test_a_colour_array_arrives_unchanged(pixels: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(np.asarray(decode_image(image_bytes(pixels, DEFAULT_LIMITS))), pixels)


def test_a_grey_or_strided_array_arrives_unchanged() -> None:
    grey = RANDOM.integers(0, 256, (20, 30), np.uint8)
    arrived = np.asarray(decode_image(image_bytes(grey, DEFAULT_LIMITS)))
    assert np.array_equal(arrived, np.stack([grey] * 3, axis=2))
    assert np.array_equal(np.asarray(decode_image(image_bytes(grey[..., None], DEFAULT_LIMITS))), arrived)
    flipped = RANDOM.integers(0, 256, (20, 40, 3), np.uint8)[::-1, ::2, ::-1]
    assert np.array_equal(np.asarray(decode_image(image_bytes(flipped, DEFAULT_LIMITS))), flipped)


def sample_image(mode: str) -> Image.Image:
    image = Image.fromarray(RANDOM.integers(0, 256, (40, 60, 3), np.uint8))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(RANDOM.integers(0, 256, (40, 60), np.uint8)))
        return image
    return image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "I;16", "1"])
def test_a_pillow_image_arrives_as_its_file_would(mode: str) -> None:
    image = sample_image(mode)
    file = io.BytesIO()
    image.save(file, "PNG")
    arrived = decode_image(image_bytes(image, DEFAULT_LIMITS))
    assert np.array_equal(np.asarray(arrived), np.asarray(decode_image(file.getvalue())))


def test_a_pillow_image_is_turned_upright() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    sample_image("RGB").save(file, "PNG", exif=exif)
    arrived = decode_image(image_bytes(Image.open(io.BytesIO(file.getvalue())), DEFAULT_LIMITS))
    assert arrived.size == (40, 60)
    assert np.array_equal(np.asarray(arrived), np.asarray(decode_image(file.getvalue())))


@pytest.mark.long
@pytest.mark.parametrize("fit", [Fit(), Fit(resize=256, keeps_ratio=True)], ids=["square", "cropped"])
@pytest.mark.parametrize("size", [(1_300, 900), (1_500, 2_100), (5_000, 700)])
@pytest.mark.parametrize("held", [lambda image: image, np.asarray, lambda image: np.asarray(image) / 255])
def test_pixels_too_many_to_travel_give_nearly_the_same_pixel_values(
    size: tuple[int, int], held: Any, fit: Fit
) -> None:
    image = sample_image("RGB").resize(size)
    preprocess = ImagePreprocessor((0.5,) * 3, (0.5,) * 3, fit=fit)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    shrunk = image_bytes(held(image), Limits(max_image_bytes=3_000_000))
    assert len(shrunk) < 3_000_000
    difference = preprocess(shrunk)["pixel_values"] - preprocess(file.getvalue())["pixel_values"]
    assert np.abs(difference).mean() < 2 / 127.5  # two of 255 levels


def test_without_pillow_pixels_too_many_to_travel_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InvalidInput, match="at most 200000 are accepted") as raised:
        image_bytes(np.zeros((900, 700, 3), np.uint8), Limits(max_image_bytes=200_000))
    assert raised.value.code == "too_large"


def test_shrinking_hides_no_limit() -> None:
    limits = Limits(max_image_bytes=10_000, max_image_pixels=5_000)
    with pytest.raises(InvalidInput, match="pixels; at most"):
        image_bytes(Image.new("RGB", (100, 100)), limits)
    with pytest.raises(InvalidInput, match="each side needs at least 16"):
        image_bytes(Image.new("RGB", (10, 2_000)), Limits(max_image_bytes=10_000))


def test_a_damaged_pillow_image_is_invalid() -> None:
    file = io.BytesIO()
    sample_image("RGB").save(file, "PNG")
    opened = Image.open(io.BytesIO(file.getvalue()[:1000]))
    with pytest.raises(InvalidInput) as raised:
        image_bytes(opened, DEFAULT_LIMITS)
    assert (raised.value.field, raised.value.code) == ("image", "not_decodable")


@pytest.mark.parametrize("channels", [None, 1, 2])
@pytest.mark.parametrize("dtype", ["int16", "float32", "float64", ">i2"])
def test_samples_arrive_unchanged(dtype: str, channels: int | None) -> None:
    shape = (3_201,) if channels is None else (3_201, channels)
    samples = RANDOM.integers(-32768, 32768, shape).astype(np.int16)
    given = samples.astype(dtype) if "i" in dtype else (samples / 32768).astype(dtype)
    data = audio_bytes(Sound(given, 8_000), DEFAULT_LIMITS)
    arrived, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert rate == 8_000
    assert np.array_equal(arrived, (samples / 32768).astype(np.float32).reshape(arrived.shape))
    assert audio_bytes((given, 8_000), DEFAULT_LIMITS) == data


def test_a_sound_is_what_the_audio_stage_takes() -> None:
    samples = RANDOM.uniform(-1, 1, 16_000).astype(np.float32)
    arrived = decode_audio(audio_bytes(Sound(samples, 16_000), DEFAULT_LIMITS))
    assert np.array_equal(arrived, samples)


def test_loud_floats_are_not_clipped() -> None:
    samples = np.full(4_000, 3.5, np.float32)
    assert decode_audio(audio_bytes((samples, 16_000), DEFAULT_LIMITS)).max() == 3.5


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_travel_as_they_are(kind: Any) -> None:
    for encode in (image_bytes, audio_bytes):
        assert encode(kind(b"any bytes"), DEFAULT_LIMITS) == b"any bytes"


def test_files_travel_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"any bytes")
    for encode in (image_bytes, audio_bytes):
        assert encode(path, DEFAULT_LIMITS) == encode(str(path), DEFAULT_LIMITS) == b"any bytes"


@pytest.mark.parametrize("name", ["missing", ".", "nul\0byte"])
def test_a_path_that_cannot_be_read_is_invalid(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="can't be read") as raised:
        image_bytes(str(tmp_path / name), DEFAULT_LIMITS)
    assert (raised.value.field, raised.value.code) == ("image", "unreadable")


def test_sizes_are_checked_before_sending(tmp_path: Path) -> None:
    limits = Limits(max_image_bytes=10, max_audio_bytes=10, max_text_bytes=10)
    path = tmp_path / "file"
    path.write_bytes(bytes(11))
    cases: list[tuple[Any, Any]] = [
        (image_bytes, bytes(11)),
        (audio_bytes, path),
        (text_bytes, "1234567890é"),
    ]
    for encode, value in cases:
        with pytest.raises(InvalidInput, match="at most 10 are accepted") as raised:
            encode(value, limits)
        assert raised.value.code == "too_large"
    assert text_bytes("12345678é", limits) == "12345678é".encode()


@given(st.text())
@settings(deadline=None)
def test_text_arrives_unchanged(text: str) -> None:
    assert text_bytes(text, DEFAULT_LIMITS).decode() == text


def test_emoji_are_text_and_lone_surrogates_are_not() -> None:
    assert text_bytes("👩‍👧", DEFAULT_LIMITS).decode() == "👩‍👧"
    with pytest.raises(InvalidInput, match="character 2") as raised:
        text_bytes("ab\ud83d", DEFAULT_LIMITS)
    assert (raised.value.field, raised.value.code) == ("text", "not_unicode")
    with pytest.raises(InvalidInput) as raised:
        text_bytes(7, DEFAULT_LIMITS)
    assert (raised.value.field, raised.value.code) == ("text", "wrong_type")
