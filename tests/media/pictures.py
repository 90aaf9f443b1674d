"""Pictures by name, each of them PICTURE, as bytes of some format."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image

from cmt_pipeline.tensors import Array

WIDTH, HEIGHT = 96, 80
ORIENTATION = 0x0112


def picture() -> Array:
    """Soft colours with an edge, another in each corner. [height, width, 3] uint8."""
    down, across = np.mgrid[:HEIGHT, :WIDTH] / [[[HEIGHT]], [[WIDTH]]]
    red, green = 40 + 180 * across, 60 + 120 * down
    blue = np.where((across - 0.3) ** 2 + (down - 0.4) ** 2 < 0.04, 200, 70)
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def grey() -> Array:
    return picture().mean(axis=-1).round().astype(np.uint8)


@dataclass(frozen=True)
class Made:
    """How a file is made. error: mean difference of a value from the truth, at most; grey: of the brightness alone."""

    by: str
    make: Callable[[], bytes]
    error: float = 0.0
    grey: bool = False


def saved(format_: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or Image.fromarray(picture())).save(buffer, format_, **options)
    return buffer.getvalue()


def heic(**options: Any) -> bytes:
    pillow_heif.register_heif_opener()
    return saved("HEIF", **options)


def turned(format_: str, **options: Any) -> bytes:
    """Lies on its side, and says so."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    if format_ == "HEIF":
        pillow_heif.register_heif_opener()
    return saved(format_, Image.fromarray(np.rot90(picture(), 1).copy()), exif=exif.tobytes(), **options)


def transparent() -> Image.Image:
    """All of it opaque but for a hidden part that is the picture itself over white: invisible where it shows."""
    return Image.fromarray(np.dstack([picture(), np.full((HEIGHT, WIDTH), 255, np.uint8)]))


def two_frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [Image.new("RGB", (WIDTH, HEIGHT), (255, 0, 0))]}


def palette() -> Image.Image:
    return Image.fromarray(picture()).quantize(256, dither=Image.Dither.NONE)


PICTURES: dict[str, Made] = {
    "JPEG": Made("libjpeg-turbo", lambda: saved("JPEG", quality=95), 2),
    "JPEG, progressive": Made("libjpeg-turbo", lambda: saved("JPEG", quality=95, progressive=True), 2),
    "JPEG, turned": Made("libjpeg-turbo", lambda: turned("JPEG", quality=95), 2),
    "JPEG, grey": Made("libjpeg-turbo", lambda: saved("JPEG", Image.fromarray(grey()), quality=95), 1, grey=True),
    "JPEG, CMYK": Made(
        "libjpeg-turbo", lambda: saved("JPEG", Image.fromarray(picture()).convert("CMYK"), quality=95), 3
    ),
    "PNG": Made("libpng", lambda: saved("PNG")),
    "PNG, with alpha": Made("libpng", lambda: saved("PNG", transparent())),
    "PNG, palette": Made("libpng", lambda: saved("PNG", palette()), 4),
    "PNG, grey": Made("libpng", lambda: saved("PNG", Image.fromarray(grey())), grey=True),
    "PNG, grey of 16 bits": Made(
        "libpng", lambda: saved("PNG", Image.fromarray(grey().astype(np.uint16) * 257)), grey=True
    ),
    "WebP": Made("libwebp", lambda: saved("WEBP", quality=95), 3),
    "WebP, lossless": Made("libwebp", lambda: saved("WEBP", lossless=True)),
    "WebP, animated": Made("libwebp", lambda: saved("WEBP", lossless=True, **two_frames())),
    "HEIC": Made("libheif, x265", lambda: heic(quality=95), 3),
    "HEIC, turned": Made("libheif, x265", lambda: turned("HEIF", quality=95), 3),
    "AVIF": Made("libavif", lambda: saved("AVIF", quality=95), 3),
    "AVIF, turned": Made("libavif", lambda: turned("AVIF", quality=95), 3),
    "GIF": Made("Pillow", lambda: saved("GIF", palette()), 4),
    "GIF, animated": Made("Pillow", lambda: saved("GIF", palette(), **two_frames()), 4),
    "BMP": Made("Pillow", lambda: saved("BMP")),
    "BMP, palette": Made("Pillow", lambda: saved("BMP", palette()), 4),
    "TIFF": Made("Pillow", lambda: saved("TIFF")),
    "TIFF, LZW": Made("libtiff", lambda: saved("TIFF", compression="tiff_lzw")),
    "TIFF, JPEG inside": Made("libtiff", lambda: saved("TIFF", compression="jpeg", quality=95), 3),
    "TIFF, turned": Made("Pillow", lambda: turned("TIFF")),
    "TIFF, pages": Made("Pillow", lambda: saved("TIFF", **two_frames())),
    "TIFF, floats": Made("Pillow", lambda: saved("TIFF", Image.fromarray(grey().astype(np.float32) / 255)), 0.01, True),
    "PPM": Made("Pillow", lambda: saved("PPM")),
}


def difference(came: Array, made: Made) -> float:
    """The mean difference of a value from the truth; infinite for another size."""
    truth = np.repeat(grey()[..., None], 3, axis=-1) if made.grey else picture()
    return float(np.abs(came.astype(float) - truth).mean()) if came.shape == truth.shape else float("inf")
