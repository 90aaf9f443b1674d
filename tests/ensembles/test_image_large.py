"""Large images: shrunk before they are resampled, within the memory that is stated."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmt_pipeline.image import FILTERS, DecodingRoom, Fit, decode_image, decode_square
from cmt_pipeline.tensors import Array
from small_images import (
    ORIENTATION,
    STORED,
    large,
    noise,
    saved,
)

CROPPED = Fit(resize=256, keeps_ratio=True, resample="bicubic")  # DINOv2's


def shrunk_and_whole(data: bytes, fit: Fit = Fit()) -> Array:  # noqa: B008
    """By how much the pixels of an image that may be shrunk before it is resampled differ from those of the whole."""
    whole = decode_image(data)
    left, upper = ((side - 224) // 2 for side in fit.resized(*whole.size))
    resized = whole.resize(fit.resized(*whole.size), FILTERS[fit.resample])
    pixels = np.asarray(resized.crop((left, upper, left + 224, upper + 224)), int)
    return np.abs(np.asarray(decode_square(data, fit), int) - pixels)


@pytest.mark.long
@pytest.mark.parametrize(
    ("format_", "mode", "side", "options"),
    [
        ("JPEG", "RGB", 1_501, {"quality": 90}),
        ("JPEG", "L", 3_000, {"quality": 90}),
        ("JPEG", "CMYK", 1_401, {"quality": 95}),
        ("PNG", "RGB", 1_500, {"compress_level": 1}),
        ("PNG", "RGBA", 1_353, {"compress_level": 1}),
        ("PNG", "P", 1_353, {"compress_level": 1}),
        ("WEBP", "RGB", 1_353, {"method": 0}),
        ("PPM", "RGB", 2_100, {}),
    ],
)
def test_shrinking_before_resampling_changes_a_photo_by_a_level_or_two(
    format_: str, mode: str, side: int, options: dict[str, Any]
) -> None:
    differences = shrunk_and_whole(large(format_, side, mode=mode, **options))
    assert differences.any()
    assert differences.max() <= (5 if mode == "P" else 2)  # a palette makes noise of colours that it lacks
    assert differences.mean() <= 0.5


def test_shrinking_before_resampling_changes_noise_by_little() -> None:
    """The worst there is: every pixel is independent of its neighbours."""
    differences = shrunk_and_whole(saved(noise(2_001, 1_501), "PPM"))
    assert differences.mean() <= 1.5


@pytest.mark.long
@pytest.mark.parametrize("fit", [Fit(), CROPPED], ids=["square", "cropped"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_shrunk_image_is_upright(orientation: int, fit: Fit) -> None:
    image = Image.open(io.BytesIO(large("PPM", 1_640))).crop((0, 0, 1_640, 821 if fit == Fit() else 1_621))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    differences = shrunk_and_whole(saved(image, "JPEG", exif=exif, quality=95), fit)
    assert differences.any()
    assert differences.max() <= 3


def test_nothing_beside_the_centre_is_computed() -> None:
    """A strip whose shorter side alone would make a gigapixel of it."""
    strip = Image.linear_gradient("L").rotate(90).resize((300_000, 16)).convert("RGB")
    assert np.asarray(decode_square(saved(strip, "PPM"), CROPPED)).std() < 1


def test_a_small_image_is_not_shrunk() -> None:
    assert not shrunk_and_whole(large("JPEG", 1_343, quality=90)).any()


#: Bytes for each declared pixel that preparing an image may take beyond what its decoder does for one of 90,000.
PEAK_BYTES_A_PIXEL = {"PNG": 4, "WEBP": 18}


PEAK = """
import resource, sys
from cmt_pipeline.image import ImagePreprocessor
prepare = ImagePreprocessor((0.5,) * 3, (0.5,) * 3)
small, large = (open(path, "rb").read() for path in sys.argv[1:])
prepare(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare(large)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(("format_", "mode"), [("PNG", "I;16"), ("WEBP", "RGB")])
def test_15_megapixels_take_the_memory_that_is_stated(tmp_path: Path, format_: str, mode: str) -> None:
    files = []
    for side in ((300, 300), (5_000, 3_000)):
        path = tmp_path / f"{side[0]}"
        options = {"method": 0} if format_ == "WEBP" else {"compress_level": 1}
        path.write_bytes(saved(Image.new(mode, side, 500 if mode == "I;16" else (1, 2, 3)), format_, **options))
        files.append(str(path))
    told = subprocess.run([sys.executable, "-c", PEAK, *files], check=True, capture_output=True, text=True)
    assert int(told.stdout) < PEAK_BYTES_A_PIXEL[format_] * 15_000_000


def test_no_more_is_decoded_at_once_than_there_is_room_for() -> None:
    room = DecodingRoom(100)
    inside: list[int] = []
    seen: list[list[int]] = []

    def decode(pixels: int) -> None:
        with room.take(pixels):
            inside.append(pixels)
            seen.append(list(inside))
            inside.remove(pixels)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(decode, [40, 70, 100, 1, 1000, 30, 60, 90] * 50))
    assert len(seen) == 400
    assert all(sum(at_once) <= 100 or at_once == [1000] for at_once in seen)


def test_a_large_image_is_not_overtaken_for_ever() -> None:
    room = DecodingRoom(100)
    order: list[str] = []

    def decode(name: str, pixels: int) -> None:
        with room.take(pixels):
            order.append(name)

    with ThreadPoolExecutor(2) as pool:
        with room.take(50):
            large = pool.submit(decode, "large", 100)
            while not room._turn.locked():  # until it waits for its turn
                time.sleep(0.001)
            small = pool.submit(decode, "small", 1)
            assert not order
        large.result(30)
        small.result(30)
    assert order == ["large", "small"]
