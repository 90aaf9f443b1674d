"""Images become the pixels of Hugging Face's processor, upright and RGB."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cmt_pipeline.image import Fit, ImagePreprocessor, decode_image, decode_square
from cmt_pipeline.tensors import Array
from small_images import (
    HALF,
    ORIENTATION,
    STORED,
    animation,
    chunk,
    noise,
    palette,
    plain,
    png_with,
    saved,
)

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def by_hand(image: Image.Image, mean: Any, std: Any) -> Array:
    pixels = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR), np.float64) / 255
    return ((pixels - mean) / std).transpose(2, 0, 1)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("mean", "std"), [(HALF, HALF), IMAGENET], ids=["half", "imagenet"])
@pytest.mark.parametrize("size", [(60, 40), (224, 224), (500, 16)])
def test_pixels_are_scaled_and_normalised(mean: Any, std: Any, size: tuple[int, int]) -> None:
    came = ImagePreprocessor(mean, std)(saved(noise(*size)))
    assert list(came) == ["pixel_values"]
    assert (came["pixel_values"].dtype, came["pixel_values"].shape) == (np.float32, (3, 224, 224))
    np.testing.assert_allclose(came["pixel_values"], by_hand(noise(*size), mean, std), atol=2e-6)


@pytest.mark.parametrize("size", [(300, 200), (40, 90)])
def test_pixels_are_those_of_transformers(size: tuple[int, int]) -> None:
    from transformers import ViTImageProcessorPil

    wanted = ViTImageProcessorPil()(noise(*size), return_tensors="np")["pixel_values"][0]
    came = ImagePreprocessor(HALF, HALF)(saved(noise(*size)))["pixel_values"]
    np.testing.assert_allclose(came, wanted, atol=2e-6)


@pytest.mark.parametrize(
    ("format_", "options"), [("PNG", {}), ("PPM", {}), ("WEBP", {"lossless": True})], ids=["PNG", "PPM", "WebP"]
)
def test_lossless_files_keep_every_pixel(format_: str, options: dict[str, Any]) -> None:
    np.testing.assert_array_equal(decode_image(saved(noise(), format_, **options)), noise())


@pytest.mark.parametrize(
    ("format_", "options"),
    [("JPEG", {"quality": 95}), ("JPEG", {"quality": 95, "progressive": True}), ("WEBP", {"quality": 95})],
)
def test_lossy_files_stay_close(format_: str, options: dict[str, Any]) -> None:
    came = np.asarray(decode_image(saved(noise(), format_, **options)), int)
    assert np.abs(came - np.asarray(noise(), int)).mean() < 3


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_picture_is_turned_upright(orientation: int, format_: str) -> None:
    upright = noise()
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    turn = STORED[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    came = decode_image(saved(stored, format_, exif=exif, quality=95, lossless=True))
    assert came.size == upright.size
    difference = np.abs(np.asarray(came, int) - np.asarray(upright, int))
    assert difference.mean() < (4 if format_ == "JPEG" else 1e-9)


def test_an_orientation_that_is_none_changes_nothing() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 77
    np.testing.assert_array_equal(decode_image(saved(noise(), exif=exif)), noise())


PIXELS = {
    "grey": (plain("L", 100), (100, 100, 100)),
    "white": (plain("1", 1), (255, 255, 255)),
    "black": (plain("1", 0), (0, 0, 0)),
    "grey16": (plain("I;16", 0x64FF), (100, 100, 100)),
    "white16": (plain("I;16", 0xFFFF), (255, 255, 255)),
    "ppm16": (b"P5 32 32 65535\n" + b"\x64\xff" * 1024, (100, 100, 100)),
    "palette": (palette(), (10, 200, 30)),
    "palette-other-clear": (palette(transparency=0), (10, 200, 30)),
    "palette-clear": (palette(transparency=1), (255, 255, 255)),
    "palette-half": (palette(transparency=bytes([255, 128])), (132, 227, 142)),
    "rgb": (plain("RGB", (10, 20, 30)), (10, 20, 30)),
    "rgb-clear": (plain("RGB", (10, 20, 30), transparency=(10, 20, 30)), (255, 255, 255)),
    "rgb-other-clear": (plain("RGB", (10, 20, 30), transparency=(11, 20, 30)), (10, 20, 30)),
    "grey-clear": (plain("L", 100, transparency=100), (255, 255, 255)),
    "rgba": (plain("RGBA", (255, 0, 0, 255)), (255, 0, 0)),
    "rgba-clear": (plain("RGBA", (255, 0, 0, 0)), (255, 255, 255)),
    "rgba-half": (plain("RGBA", (255, 0, 0, 128)), (255, 127, 127)),
    "webp-clear": (plain("RGBA", (255, 0, 0, 0), format_="WEBP", lossless=True), (255, 255, 255)),
    "la": (plain("LA", (100, 255)), (100, 100, 100)),
    "la-clear": (plain("LA", (100, 0)), (255, 255, 255)),
    "cmyk": (plain("CMYK", (0, 255, 255, 0), format_="JPEG", quality=100), (254, 0, 0)),
    "grey-jpeg": (plain("L", 100, format_="JPEG", quality=100), (100, 100, 100)),
}


def webp_with_exif(image: Image.Image, exif: bytes) -> bytes:
    return saved(image, "WEBP", exif=exif, lossless=True)


ODD_METADATA = {
    "png-exif-quoted": saved(noise(), exif=b"b'Exif\\x00\\x00II*\\x00'"),
    "png-exif-cut": saved(noise(), exif=b"Exif\0\0II*\0\xff\xff"),
    "webp-exif-garbage": webp_with_exif(noise(), b"garbage!"),
    "png-profile-2MB": saved(noise(), icc_profile=np.random.default_rng(0).bytes(1000) * 2000),
    "png-text-2MB": png_with(chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000)),
}


@pytest.mark.parametrize("data", ODD_METADATA.values(), ids=ODD_METADATA)
def test_metadata_doesnt_decide_over_pixels(data: bytes) -> None:
    np.testing.assert_array_equal(decode_image(data), noise())
    decode_square(data, Fit())


def test_an_oddly_typed_tag_beside_the_orientation_is_ignored() -> None:
    """ResolutionUnit as text, which Pillow can read and not write."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    tagged = bytearray(exif.tobytes())
    stored = noise().transpose(Image.Transpose.ROTATE_90)
    entry = struct.pack("<HHI4s", 0x0128, 2, 4, b"inch")
    at = tagged.index(b"II*\0") + 8 if b"II*\0" in tagged else tagged.index(b"MM\0*") + 8
    if b"MM\0*" in tagged:
        entry = struct.pack(">HHI4s", 0x0128, 2, 4, b"inch")
        tagged[at : at + 2] = struct.pack(">H", 2)
    else:
        tagged[at : at + 2] = struct.pack("<H", 2)
    tagged[at + 14 : at + 14] = entry
    assert (
        abs(np.asarray(decode_image(saved(stored, "JPEG", exif=bytes(tagged), quality=95)), int) - noise()).mean() < 4
    )


@pytest.mark.parametrize("mode", ["I", "I;16"])
@pytest.mark.parametrize(("highest", "shift"), [(255, 0), (256, 8), (65_535, 8)])
def test_integer_greys_are_scaled_by_what_is_there(mode: str, highest: int, shift: int) -> None:
    values = np.linspace(0, highest, 40 * 60).round().reshape(40, 60)
    wide = Image.fromarray(values.astype(np.int32 if mode == "I" else np.uint16))
    assert wide.mode == mode
    rgb = np.asarray(decode_image(saved(wide, "PPM" if mode == "I" else "PNG")))
    np.testing.assert_array_equal(rgb[..., 0], values.astype(int) >> shift)


@pytest.mark.parametrize(("data", "rgb"), PIXELS.values(), ids=PIXELS)
def test_every_kind_of_pixel_becomes_rgb_on_white(data: bytes, rgb: tuple[int, int, int]) -> None:
    image = decode_image(data)
    assert (image.mode, image.size) == ("RGB", (32, 32))
    np.testing.assert_allclose(np.asarray(image, int), np.broadcast_to(rgb, (32, 32, 3)), atol=1)


@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_counts(format_: str) -> None:
    np.testing.assert_array_equal(np.asarray(decode_image(animation(format_)))[0, 0], (255, 0, 0))
