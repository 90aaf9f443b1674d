"""Small images as bytes: noise, plain ones, animations, and files that say more than they hold."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

HALF = (0.5, 0.5, 0.5)
ORIENTATION = 0x0112  # EXIF tag
#: orientation -> what a camera that was held so did to the upright picture
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def noise(width: int = 60, height: int = 40) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def saved(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def plain(mode: str, colour: Any, **options: Any) -> bytes:
    return saved(Image.new(mode, (32, 32), colour), **options)


def palette(**options: Any) -> bytes:
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    return saved(image, **options)


def animation(format_: str) -> bytes:
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime")]
    return saved(frames[0], format_, save_all=True, append_images=frames[1:], lossless=True)


def png_that_says(width: int, height: int) -> bytes:
    """A PNG of an 8-bit RGB image whose pixels fill no more than a few bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def webp_that_says(width: int, height: int) -> bytes:
    """An animated WebP whose canvas is said to be larger than its frames."""
    data = bytearray(animation("WEBP"))
    at = data.index(b"VP8X") + 12  # behind the chunk's name, size and flags
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return bytes(data)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_with(more: bytes) -> bytes:
    """A PNG with chunks behind its header."""
    data = saved(noise())
    return data[:33] + more + data[33:]


def large(format_: str, side: int = 1_500, seed: int = 0, mode: str = "RGB", **options: Any) -> bytes:
    """A file of an image with detail on every scale, as photographs have, that is shrunk while it is decoded."""
    rng = np.random.default_rng(seed)
    total = np.zeros((side, side, 3), np.float32)
    for cells in (4, 16, 64):
        noise_ = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        total += np.asarray(noise_.resize((side, side), Image.Resampling.BICUBIC), np.float32) / cells**0.5
    total -= total.min()
    return saved(Image.fromarray((total * (255 / total.max())).astype(np.uint8)).convert(mode), format_, **options)
