"""Image bytes -> `pixel_values`.

Follows Hugging Face's ViTImageProcessor (bilinear, antialiased, to 224 x 224; then scaled to [0, 1] and normalised),
so that checkpoints trained with it see the same pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from cmt_pipeline.tensors import IMAGE_SIDE, Array

if TYPE_CHECKING:
    from PIL import Image

#: PPM carries arrays: lossless, and made without an image library.
FORMATS = ("JPEG", "PNG", "WEBP", "PPM")
ACCEPTED = "a JPEG, PNG or WebP file"
BACKGROUND = (255, 255, 255)  # what shows through a transparent pixel


class ImagePreprocessor:
    """bytes -> {`pixel_values`: [3, 224, 224] float32}. Raises InvalidInput."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], limits: Limits = DEFAULT_LIMITS) -> None:
        # (x / 255 - mean) / std as one multiplication and one addition per pixel
        self._scale = (1.0 / (255.0 * np.asarray(std, np.float64))).astype(np.float32).reshape(3, 1, 1)
        self._shift = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32).reshape(3, 1, 1)
        self._limits = limits

    def __call__(self, data: bytes) -> dict[str, Array]:
        from PIL import Image

        image = decode_image(data, self._limits).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")  # [3, height, width]
        pixels *= self._scale
        pixels += self._shift
        return {"pixel_values": pixels}


def decode_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """An upright RGB image. The declared size is checked before any pixel is decoded. Raises InvalidInput."""
    from PIL import Image, ImageOps

    if not data:
        raise InvalidInput("image", "empty", f"got 0 bytes; expected {ACCEPTED}")
    if len(data) > limits.max_image_bytes:
        raise InvalidInput(
            "image",
            "too_large",
            f"got {len(data)} bytes; at most {limits.max_image_bytes} are accepted: shrink it",
        )
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InvalidInput(
            "image", "too_large", f"{error}; at most {limits.max_image_pixels} pixels are accepted: shrink it"
        ) from None
    except Exception:  # Pillow's format plugins raise many kinds on hostile bytes
        raise InvalidInput(
            "image", "not_decodable", f"got {len(data)} bytes that are no image; expected {ACCEPTED}"
        ) from None
    _check_declared_size(opened.size, limits)
    try:
        opened.load()
        return to_rgb(ImageOps.exif_transpose(opened))
    except Exception as error:
        raise InvalidInput(
            "image", "not_decodable", f"got a damaged {opened.format} file ({error}); expected a whole one"
        ) from None


def _check_declared_size(size: tuple[int, int], limits: Limits) -> None:
    width, height = size
    if width * height > limits.max_image_pixels:
        raise InvalidInput(
            "image",
            "too_large",
            f"got {width} x {height} pixels; at most {limits.max_image_pixels} are accepted: shrink it",
        )
    if min(size) < limits.min_image_side_px:
        raise InvalidInput(
            "image",
            "too_small",
            f"got {width} x {height} pixels; each side needs at least {limits.min_image_side_px}",
        )


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, 16-bit grey, palette, alpha and CMYK images as RGB; what is transparent becomes white."""
    from PIL import Image

    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode.startswith("I"):  # 16-bit grey: keep the high byte
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    return image.convert("RGB")
