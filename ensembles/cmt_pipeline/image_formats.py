"""Which decoder an image's first bytes ask for: no other meets what a stranger sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

#: Brands of ISO/IEC 23000-22 and of AV1 Image File Format; a file names one, or several that it is fit for.
AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})


@dataclass(frozen=True)
class ImageFormat:
    """A format by its name in Pillow. begins: whether a file looks like its own; everyday: decoded by libraries that
    meet so many hostile files every day that they need no process of their own."""

    name: str
    begins: Callable[[bytes], bool]
    everyday: bool = False


FORMATS = (
    ImageFormat("JPEG", lambda data: data[:3] == b"\xff\xd8\xff", everyday=True),
    ImageFormat("PNG", lambda data: data[:8] == b"\x89PNG\r\n\x1a\n", everyday=True),
    ImageFormat("WEBP", lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP", everyday=True),
    # Arrays: lossless, and made without an image library.
    ImageFormat("PPM", lambda data: data[:2] in (b"P5", b"P6"), everyday=True),
    ImageFormat("GIF", lambda data: data[:6] in (b"GIF87a", b"GIF89a")),
    ImageFormat("BMP", lambda data: data[:2] == b"BM"),
    ImageFormat("TIFF", lambda data: data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    ImageFormat("AVIF", lambda data: bool(_brands(data) & AVIF_BRANDS)),
    ImageFormat("HEIF", lambda data: bool(_brands(data) & HEIF_BRANDS)),
)


def format_of(data: bytes) -> ImageFormat | None:
    """By a file's first bytes; None for what is none of them."""
    return next((known for known in FORMATS if known.begins(data)), None)


def _brands(data: bytes) -> frozenset[bytes]:
    """Those that an ISO base media file says it is fit for."""
    if data[4:8] != b"ftyp":
        return frozenset()
    end = min(int.from_bytes(data[:4], "big"), 256)
    return frozenset(data[place : place + 4] for place in (8, *range(16, end, 4)))
