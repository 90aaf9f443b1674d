"""Files that are no image, too large or damaged are refused, unharmed, and named."""

from __future__ import annotations

import resource
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.image import ACCEPTED, ImagePreprocessor, decode_image
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array
from small_images import (
    HALF,
    animation,
    chunk,
    noise,
    palette,
    plain,
    png_that_says,
    saved,
    webp_that_says,
)


def refusal(data: bytes, limits: Limits | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        decode_image(data, limits or Limits())
    assert raised.value.field == "image"
    return raised.value


@pytest.mark.parametrize("format_", ["ICO", "TGA", "JPEG2000", "DDS", "PCX", "SGI"])
def test_other_formats_are_refused(format_: str) -> None:
    """Each decoder that is open to strangers is one more that can be attacked."""
    error = refusal(saved(noise(32, 32), format_))
    assert (error.code, error.message.split("; ")[1]) == ("not_decodable", f"expected {ACCEPTED}")


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "PPM"])
@pytest.mark.parametrize("part", [0.01, 0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(format_: str, part: float) -> None:
    data = saved(noise(300, 200), format_)
    error = refusal(data[: int(part * len(data))])
    assert error.code == "not_decodable"


@pytest.mark.parametrize(
    "data", [b"\0", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"P6\n", b"RIFF"], ids=repr
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    assert refusal(data).code == "not_decodable"


def test_no_bytes_at_all_are_told_apart() -> None:
    error = refusal(b"")
    assert (error.code, error.message) == ("empty", f"got 0 bytes; expected {ACCEPTED}")


@pytest.mark.parametrize("size", [(1, 1), (15, 400), (400, 15)])
def test_tiny_images_are_refused(size: tuple[int, int]) -> None:
    error = refusal(saved(Image.new("RGB", size)))
    assert error.code == "too_small"
    assert error.message == f"got {size[0]} x {size[1]} pixels; each side needs at least 16"
    assert decode_image(saved(Image.new("RGB", (16, 16)))).size == (16, 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        png_that_says(12_000, 12_000),
        png_that_says(60_000, 60_000),
        png_that_says(2**31 - 1, 2**31 - 1),
        png_that_says(50_000_001, 16),
        webp_that_says(12_000, 12_000),
        b"P6\n12000 12000\n255\n",
    ],
    ids=["12k", "60k", "2G", "long", "webp", "ppm"],
)
def test_a_bomb_is_refused_by_its_declared_size(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a pixel is decoded: decoding 12,000 x 12,000 takes seconds and 430 MB."""

    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("the image was decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = refusal(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib < 20_000
    assert error.code == "too_large"
    assert "16000000" in error.message


def test_the_limit_on_pixels_is_exact() -> None:
    limits = Limits(max_image_pixels=60 * 40)
    assert decode_image(saved(noise(60, 40)), limits).size == (60, 40)
    assert refusal(saved(noise(61, 40)), limits).message == ("got 61 x 40 pixels; at most 2400 are accepted: shrink it")


def test_a_bomb_in_the_metadata_is_refused() -> None:
    """A comment that unpacks to far more than it takes."""
    comment = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 20_000_000))
    data = saved(noise())
    assert refusal(data[:33] + comment + data[33:]).code == "not_decodable"


def test_too_many_bytes_are_refused_unread() -> None:
    data = saved(noise())
    error = refusal(data, Limits(max_image_bytes=len(data) - 1))
    assert error.code == "too_large"
    assert error.message == f"got {len(data)} bytes; at most {len(data) - 1} are accepted: shrink it"
    assert decode_image(data, Limits(max_image_bytes=len(data))).size == (60, 40)


def test_a_tiny_file_of_50_megapixels_is_refused_by_what_it_declares(monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(Image.new("I;16", (10_000, 5_000)))
    assert len(data) < 200_000
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    assert refusal(data).code == "too_large"


preprocess = ImagePreprocessor(HALF, HALF)


FILES = [
    saved(noise()),
    saved(noise(), "JPEG"),
    saved(noise(), "JPEG", progressive=True),
    saved(noise(), "WEBP"),
    saved(noise(20, 17), "PPM"),
    palette(transparency=1),
    animation("WEBP"),
    animation("PNG"),
    plain("I;16", 500),
]


def outcome(data: bytes) -> Array | InvalidInput:
    try:
        return preprocess(data)["pixel_values"]
    except InvalidInput as error:
        return error


edits = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=4)), max_size=8)


def mutated(data: bytes, changes: list[tuple[int, bytes]], cut: int) -> bytes:
    """Some bytes overwritten, most of them near the beginning, and perhaps the end cut off."""
    changed = bytearray(data)
    for position, new in changes:
        at = position % min(len(changed), 64 + position % len(changed))
        changed[at : at + len(new)] = new
    return bytes(changed[: len(changed) - cut % len(changed)])


hostile = st.binary(max_size=300) | st.builds(mutated, st.sampled_from(FILES), edits, st.just(0) | st.integers(0, 999))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(hostile)
def test_whatever_comes_is_prepared_or_refused(data: bytes) -> None:
    came = outcome(data)
    if isinstance(came, InvalidInput):
        assert came.field == "image"
        assert came.code in {"empty", "not_decodable", "too_large", "too_small"}
    else:
        assert (came.dtype, came.shape) == (np.float32, (3, 224, 224))
        assert np.isfinite(came).all()
