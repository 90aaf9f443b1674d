"""Arrays of every library and layout: the right pixels and samples, or an error that says what is in doubt."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from cmt_client import InvalidInput, Sound
from cmt_client.encode import audio_bytes, image_bytes
from cmt_pipeline.image import decode_image
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits

RANDOM = np.random.default_rng(7)
RGB = RANDOM.integers(0, 256, (20, 40, 3), np.uint8)
RGBA = RANDOM.integers(0, 256, (20, 40, 4), np.uint8)
GREY = RGB[..., 0]
PCM16 = RANDOM.integers(-(2**15), 2**15, 3_201).astype(np.int16)
FLOATS = (PCM16 / 2**15).astype(np.float32)  # exact
STEREO = np.stack([FLOATS, FLOATS[::-1]], axis=1)

Array = np.ndarray[Any, Any]


def pixels(image: Any) -> Array:
    return np.asarray(decode_image(image_bytes(image, DEFAULT_LIMITS)))


def samples(audio: Any) -> Array:
    return soundfile.read(io.BytesIO(audio_bytes(audio, DEFAULT_LIMITS)), dtype="float32")[0]


def refused(encode: Callable[[Any, Limits], bytes], value: Any, told: str | None = None) -> str:
    """The code of its error."""
    with pytest.raises(InvalidInput, match=told) as raised:
        encode(value, DEFAULT_LIMITS)
    assert raised.value.field == ("image" if encode is image_bytes else "audio")
    return raised.value.code


@pytest.mark.parametrize(
    "image",
    [
        RGB.transpose(2, 0, 1),
        RGB.astype(np.float32) / 255,
        RGB.astype(np.float16) / np.float16(255),
        (RGB / 255).transpose(2, 0, 1) * (1 + 1e-6),
        RGB.astype(np.float64),
        RGB.astype(np.int64),
        RGB.astype(np.uint16),
        torch.from_numpy(RGB),
        torch.from_numpy(RGB / 255).permute(2, 0, 1).requires_grad_(),
    ],
    ids=lambda image: f"{type(image).__name__}-{image.dtype}-{tuple(image.shape)}",
)
def test_any_layout_and_scale_gives_the_same_pixels(image: Any) -> None:
    assert np.array_equal(pixels(image), RGB)


def test_16_bit_pixels_lose_their_low_byte() -> None:
    assert np.array_equal(pixels(RGB.astype(np.uint16) * 257), RGB)


def test_grey_arrays_of_any_kind_are_the_same_picture() -> None:
    for grey in (GREY[..., None], GREY[None], GREY / 255, torch.from_numpy(GREY)[None]):
        assert np.array_equal(pixels(grey), pixels(GREY))
    assert np.array_equal(pixels(GREY > 127), pixels(np.where(GREY > 127, 255, 0)))


@pytest.mark.parametrize("layout", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("scale", [1, 255])
def test_transparency_is_blended_as_that_of_a_file(layout: tuple[int, ...], scale: int) -> None:
    file = io.BytesIO()
    every_pair = np.stack([*np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 2)] * 2, axis=2)
    Image.fromarray(every_pair).save(file, "PNG")
    given = every_pair if scale == 1 else every_pair / 255
    assert np.array_equal(pixels(given.transpose(layout)), np.asarray(decode_image(file.getvalue())))


@pytest.mark.parametrize(
    ("array", "code", "told"),
    [
        (RGB / 255 * 254.7, "ambiguous", "divide by 255, or round"),
        (RGB / 128.0 - 1.0, "wrong_array", "undo the normalisation"),
        (RGB.astype(np.int32) * 257, "wrong_array", "from 0 to 65535"),
        (np.full((20, 20, 3), np.nan), "not_finite", "NaN"),
        (RGB[None], "wrong_array", "one image at a time"),
        (RGB.ravel(), "wrong_array", r"array.tobytes\(\)"),
        (RGB[..., :2], "wrong_array", r"expected \[height, width\]"),
        (np.zeros((0, 20, 3), np.uint8), "wrong_array", r"got uint8 \[0, 20, 3\]"),
        (np.array(b"a file"), "wrong_array", "lose zeros at their end"),
        (np.full((20, 20), "x"), "wrong_array", "expected uint8, or floats"),
        (torch.zeros(3, 20, 20, dtype=torch.bfloat16), "wrong_array", "got Tensor of which numpy makes no array"),
    ],
)
def test_pixels_that_leave_a_doubt_are_refused(array: Any, code: str, told: str) -> None:
    assert refused(image_bytes, array, told) == code


def test_an_array_too_large_is_refused_before_it_is_converted() -> None:
    assert refused(image_bytes, np.broadcast_to(np.float64(0), (10**6, 10**6, 3))) == "too_large"


@dataclass
class Decoded:
    """torchcodec's AudioSamples, as far as they matter."""

    data: torch.Tensor
    sample_rate: int


class Decoder:
    """torchcodec's AudioDecoder, which `datasets` gives for a sound: its wheel needs FFmpeg's libraries installed."""

    def get_all_samples(self) -> Decoded:
        return Decoded(torch.from_numpy(STEREO.T), 16_000)


@pytest.mark.parametrize(
    "audio",
    [
        Sound(STEREO, 16_000),
        (STEREO.T, 16_000.0),
        (np.float32(16_000), STEREO),
        (torch.from_numpy(STEREO.T).requires_grad_(), 16_000),
        {"array": STEREO.astype(np.float64), "sampling_rate": 16_000, "path": None},
        ((STEREO * 2**15).astype(np.int16).T, np.int64(16_000)),
        ((STEREO.astype(np.float64) * 2**31).astype(np.int32), torch.tensor(16_000)),
        Decoder(),
    ],
    ids=lambda audio: type(audio).__name__,
)
def test_any_form_gives_the_same_stereo(audio: Any) -> None:
    assert np.array_equal(samples(audio), STEREO)
    assert soundfile.info(io.BytesIO(audio_bytes(audio, DEFAULT_LIMITS))).samplerate == 16_000


def test_every_pcm_type_has_its_own_scale() -> None:
    for audio in (
        PCM16,
        FLOATS,
        FLOATS.astype(np.float64),
        PCM16.astype(np.int32) * 2**16,
        FLOATS[None],
        FLOATS[:, None],
    ):
        assert np.array_equal(samples((audio, 16_000)).ravel(), FLOATS)
    eight = RANDOM.integers(0, 256, 3_201, np.uint8)
    assert np.array_equal(samples((eight, 16_000)), (eight - 128.0) / 128)
    assert not samples((np.full(3_201, 128, np.uint8), 16_000)).any()
    assert not samples((np.zeros(3_201, np.int32), 16_000)).any()


def test_float64_beyond_float32_arrives_as_infinity() -> None:
    assert np.isinf(samples((np.full(3_201, 1e300), 16_000))).all()


@pytest.mark.parametrize(
    ("audio", "code", "told"),
    [
        (FLOATS, "no_rate", "without a sample rate"),
        (torch.from_numpy(FLOATS), "no_rate", "without a sample rate"),
        ((PCM16.astype(np.int32), 16_000), "ambiguous", r"astype\('int16'\)"),
        ((PCM16.astype(np.int64), 16_000), "wrong_array", r"astype\('int16'\)"),
        ((FLOATS.astype(complex), 16_000), "wrong_array", "got complex128"),
        ((np.zeros((2, 16)), 16_000), "ambiguous", "either side may be the channels"),
        ((np.zeros((17, 17)), 16_000), "wrong_array", "at most 16 channels"),
        ((np.zeros((1, 2, 3_201)), 16_000), "wrong_array", r"expected \[samples\]"),
        ((np.zeros((10, 0)), 16_000), "wrong_array", r"got float64 \[10, 0\]"),
        (([[1.0], [1.0, 2.0]], 16_000), "wrong_array", "numpy makes no array"),
        ((FLOATS, 0), "sample_rate", "whole number of Hz"),
        ((FLOATS, 44.1), "sample_rate", "got a sample rate of 44.1"),
        ((FLOATS, float("nan")), "sample_rate", "got a sample rate of nan"),
        ((FLOATS, float("inf")), "sample_rate", "got a sample rate of inf"),
        ((FLOATS, Fraction(1, 3)), "sample_rate", "whole number of Hz"),
        ((FLOATS, "16000"), "sample_rate", "got a sample rate of '16000'"),
        ((FLOATS, None), "sample_rate", "got a sample rate of None"),
        (["samples"], "wrong_type", "got list"),
        ({"array": FLOATS}, "wrong_type", "got a mapping with 'array'"),
    ],
)
def test_samples_that_leave_a_doubt_are_refused(audio: Any, code: str, told: str) -> None:
    assert refused(audio_bytes, audio, told) == code


def test_a_decoder_that_fails_is_refused() -> None:
    class Broken:
        def get_all_samples(self) -> Decoded:
            raise RuntimeError("no frames")

    assert refused(audio_bytes, Broken()) == "not_decodable"
