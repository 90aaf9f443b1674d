"""Image bytes -> `pixel_values`.

Follows Hugging Face's image processors (resampled with antialiasing, to 224 x 224 or to more and cropped; then scaled
to [0, 1] and normalised), so that checkpoints trained with them see the same pixels. What is more than twice as large
as the resampling needs is shrunk before: a JPEG by its decoder, which then works on fewer coefficients, anything else
by averaging whole blocks of pixels, a strip at a time, so that memory is bounded by the decoder's own.
"""

from __future__ import annotations

import contextlib
import functools
import io
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.face_note import FaceNote
from cmt_pipeline.faces import FACE_MODES, FaceFinder, FaceMode, cut_out
from cmt_pipeline.image_formats import format_of
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from cmt_pipeline.tensors import IMAGE_SIDE, Array

if TYPE_CHECKING:
    from PIL import Image, ImageFile

ACCEPTED = "a JPEG, PNG, WebP, HEIC, AVIF, GIF, BMP or TIFF file"
BACKGROUND = (255, 255, 255)  # what shows through a transparent pixel
#: An image is never shrunk below so many times the side that is asked for: beyond that the resampling hardly sees it.
SHRINK_GAP = 3
#: Of the shorter side, which a longer one may have before only its middle is resampled.
LONGEST = 4
LOOK_SIDE = 768  # of the shorter side: no picture is shrunk below it before its face is looked for
STRIP_PIXELS = 1_000_000  # converted at a time
ORIENTATION = 0x0112  # EXIF's tag
#: Orientations in which a file's rows begin, or its columns do, where the upright image's end.
MIRRORED_ACROSS, MIRRORED_DOWN = (2, 3, 7, 8), (3, 4, 6, 7)
#: Pillow's numbers.
FILTERS = {"lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
METADATA_BYTES = 1 << 24
FACE = "face"


@dataclass(frozen=True)
class Fit:
    """How a picture becomes a square of `side` pixels: both sides, or with keeps_ratio the shorter, are resampled to
    `resize` pixels, and the centre is cut out. resample: the name of one of Pillow's filters.

    ValueError for an unknown filter, and for less than is cut out.
    """

    side: int = IMAGE_SIDE
    resize: int = IMAGE_SIDE
    keeps_ratio: bool = False
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        if self.resample not in FILTERS:
            raise ValueError(f"got resampling {self.resample!r}; expected one of {', '.join(FILTERS)}")
        if self.resize < self.side:
            raise ValueError(f"got pictures resized to {self.resize} pixels; expected {self.side} at least")

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height before the centre is cut out."""
        if not self.keeps_ratio:
            return self.resize, self.resize
        long = self.resize * max(width, height) // min(width, height)
        return (long, self.resize) if width > height else (self.resize, long)


class ImagePreprocessor:
    """bytes -> {`pixel_values`: [3, 224, 224] float32}, and `face`, bytes [1] (a FaceNote), where one is looked for.

    Raises InvalidInput.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        limits: Limits = DEFAULT_LIMITS,
        room: DecodingRoom | None = None,
        fit: Fit | None = None,
        face: FaceMode = "never",
    ) -> None:
        # (x / 255 - mean) / std as one multiplication and one addition per pixel
        self._scale = (1.0 / (255.0 * np.asarray(std, np.float64))).astype(np.float32).reshape(3, 1, 1)
        self._shift = (-np.asarray(mean, np.float64) / np.asarray(std, np.float64)).astype(np.float32).reshape(3, 1, 1)
        self._limits = limits
        self._room = room
        self._fit = fit or Fit()
        if face not in FACE_MODES:
            raise ValueError(f"face: got {face!r}; expected one of {', '.join(FACE_MODES)}")
        self._face, self._finder = face, FaceFinder() if face != "never" else None

    def __call__(self, data: bytes) -> dict[str, Array]:
        image, note = None, None
        if self._finder:
            image, note = self._face_of(self._finder, data)
        ready = self._normalized(image or decode_square(data, self._fit, self._limits, self._room))
        return ready if note is None else {**ready, FACE: np.array([note.to_json().encode()], np.object_)}

    def _face_of(self, finder: FaceFinder, data: bytes) -> tuple[Image.Image | None, FaceNote]:
        """The face made to fit, if there is one, and what to say of it."""
        image, scale = decode_to_look(data, self._limits, self._room)
        found = finder.find(image)
        if not found:
            return None, FaceNote("absent" if self._face == "always" else "whole")
        face, square = found[0], cut_out(image, found[0])
        box, *others = (each.box_in(scale) for each in found)
        note = FaceNote("face", box, round(face.angle_deg, 1), round(face.score, 3), tuple(others))
        return _fitted(square, self._fit, self._fit.resized(*square.size), square.size), note

    def _normalized(self, image: Image.Image) -> dict[str, Array]:
        pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")  # [3, height, width]
        pixels *= self._scale
        pixels += self._shift
        return {"pixel_values": pixels}


class DecodingRoom:
    """What may be decoded at once, in pixels: whoever finds no room waits, and the next behind it. Any number of
    threads."""

    def __init__(self, pixels: int) -> None:
        self._pixels = pixels
        self._taken = 0
        self._turn = threading.Lock()  # of the next one: a large image isn't overtaken for ever
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Room for an image; one alone always finds it."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._pixels)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


def decode_image(data: bytes, limits: Limits = DEFAULT_LIMITS) -> Image.Image:
    """An upright RGB image. The declared size is checked before any pixel is decoded. Raises InvalidInput."""
    with _damage_refused(_opened(data, limits)) as opened:
        return upright(opened)


def decode_to_look(data: bytes, limits: Limits, room: DecodingRoom | None) -> tuple[Image.Image, float]:
    """`decode_image`, shrunk to where a face can still be found, and how many of the file's pixels are one of it."""
    opened = _opened(data, limits)
    longest = max(opened.size)
    with room.take(opened.width * opened.height) if room else contextlib.nullcontext(), _damage_refused(opened):
        opened.draft(opened.mode, (LOOK_SIDE, LOOK_SIDE))  # of JPEG alone
        opened.load()
        factor = max(1, min(opened.size) // LOOK_SIDE)
        image = upright(opened) if factor == 1 else _turned(_shrunk(opened, (factor, factor)), opened)
        return image, longest / max(image.size)


def decode_square(
    data: bytes, fit: Fit, limits: Limits = DEFAULT_LIMITS, room: DecodingRoom | None = None
) -> Image.Image:
    """`decode_image`, made to fit; a much larger one is shrunk before. Raises InvalidInput."""
    opened = _opened(data, limits)
    pixels = opened.width * opened.height
    with room.take(pixels) if room else contextlib.nullcontext(), _damage_refused(opened):
        resized = fit.resized(*opened.size)
        least = (SHRINK_GAP * resized[0], SHRINK_GAP * resized[1])
        drafted = opened.draft(opened.mode, least)  # of JPEG alone
        opened.load()
        factors = (max(1, opened.width // least[0]), max(1, opened.height // least[1]))
        whole = (0, 0, *opened.size)
        _, box = drafted or (None, whole)
        if (box, factors) == (whole, (1, 1)):
            image = upright(opened)
            return _fitted(image, fit, fit.resized(*image.size), image.size)
        orientation = _orientation(opened)
        mirrored = orientation in MIRRORED_ACROSS, orientation in MIRRORED_DOWN
        size = box[2] / factors[0], box[3] / factors[1]  # the last pixel may stand for less than a whole one
        return _turned(_fitted(_shrunk(opened, factors), fit, resized, size, mirrored), opened)


def _fitted(
    image: Image.Image,
    fit: Fit,
    resized: tuple[int, int],
    size: tuple[float, float],
    mirrored: tuple[bool, bool] = (False, False),
) -> Image.Image:
    """The square at the centre of an image of this size (it may have a little more) that is resampled to `resized`.
    mirrored: across and down, whether the upright image begins where this one ends."""
    resample = FILTERS[fit.resample]
    spare = [side - fit.side for side in resized]
    left, upper = (space - space // 2 if ends else space // 2 for space, ends in zip(spare, mirrored, strict=True))
    right, lower = left + fit.side, upper + fit.side
    if max(resized) <= LONGEST * fit.resize:
        return image.resize(resized, resample, (0, 0, *size)).crop((left, upper, right, lower))
    # A strip: nothing beside the square is computed, at the price of a grey level or two.
    across, down = (whole / side for whole, side in zip(size, resized, strict=True))
    box = (left * across, upper * down, min(size[0], right * across), min(size[1], lower * down))
    return image.resize((fit.side, fit.side), resample, box)


def _opened(data: bytes, limits: Limits) -> ImageFile.ImageFile:
    """An image of which the header alone was read."""
    from PIL import Image, PngImagePlugin

    PngImagePlugin.MAX_TEXT_CHUNK = METADATA_BYTES  # also of a colour profile; more is refused
    if not data:
        raise InvalidInput("image", "empty", f"got 0 bytes; expected {ACCEPTED}")
    if len(data) > limits.max_image_bytes:
        raise InvalidInput(
            "image",
            "too_large",
            f"got {len(data)} bytes; at most {limits.max_image_bytes} are accepted: shrink it",
        )
    form = format_of(data)
    if form is None:
        raise InvalidInput("image", "not_decodable", f"got {len(data)} bytes that are no image; expected {ACCEPTED}")
    if form.name == "HEIF":
        _register_heif()
    try:
        opened = Image.open(io.BytesIO(data), formats=(form.name,))
    except Image.DecompressionBombError as error:
        raise InvalidInput(
            "image", "too_large", f"{error}; at most {limits.max_image_pixels} pixels are accepted: shrink it"
        ) from None
    except Exception:  # Pillow's format plugins raise many kinds on hostile bytes
        raise InvalidInput(
            "image", "not_decodable", f"got a {form.name} file whose header can't be read; expected a whole one"
        ) from None
    _check_declared_size(opened.size, limits)
    return opened


@functools.cache
def _register_heif() -> None:
    """Lets Pillow read HEIC; what else such a file may carry is passed over. InvalidInput without pillow-heif."""
    try:
        import pillow_heif
    except ImportError:
        raise InvalidInput(
            "image", "not_decodable", "got a HEIC file, and no pillow-heif is installed; install it, or send a JPEG"
        ) from None
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=1)


@contextlib.contextmanager
def _damage_refused(opened: ImageFile.ImageFile) -> Iterator[ImageFile.ImageFile]:
    """Whatever a decoder raises, as InvalidInput."""
    try:
        yield opened
    except InvalidInput:
        raise
    except Exception as error:
        raise InvalidInput(
            "image", "not_decodable", f"got a damaged {opened.format} file ({error}); expected a whole one"
        ) from None


def upright(image: Image.Image) -> Image.Image:
    """In RGB, turned as its orientation says; what is transparent becomes white."""
    image.load()
    return _to_rgb(_turned(image, image), _grey_shift(image))


def _turned(image: Image.Image, opened: Image.Image) -> Image.Image:
    """As the orientation says that the opened file names: all that is read of its metadata."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    orientation = _orientation(opened)
    return image.transpose(turns[orientation]) if orientation in turns else image


def _orientation(opened: Image.Image) -> int | None:
    try:
        return opened.getexif().get(ORIENTATION)
    except Exception:  # metadata that nothing can read is no reason to refuse the pixels
        return None


def _shrunk(image: Image.Image, factors: tuple[int, int]) -> Image.Image:
    """The mean of each block of factors = (across, down) pixels, in RGB; those at the right and lower edge may be
    smaller. Converted a strip at a time, so that no second image of full size is needed."""
    from PIL import Image

    across, down = factors
    shrunk = Image.new("RGB", (-(-image.width // across), -(-image.height // down)))
    rows = down * max(1, STRIP_PIXELS // (image.width * down))
    shift = _grey_shift(image)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        shrunk.paste(_to_rgb(strip, shift).reduce(factors), (0, top // down))
    return shrunk


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


def _grey_shift(image: Image.Image) -> int:
    """Of grey values wider than a byte: how many bits are too many. None where a byte holds them all, as libraries that
    know integers alone write pictures of 8 bits."""
    return 8 if image.mode.startswith("I") and image.getextrema()[1] > 255 else 0  # type: ignore[operator]


def _to_rgb(image: Image.Image, grey_shift: int) -> Image.Image:
    """Grey, 16-bit grey, palette, alpha and CMYK images as RGB; what is transparent becomes white."""
    from PIL import Image

    if image.mode == "RGB" and not image.has_transparency_data:
        return image
    if image.mode == "F":
        image = _from_floats(np.asarray(image))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> grey_shift).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (*BACKGROUND, 255)), rgba).convert("RGB")
    return image.convert("RGB")


def _from_floats(values: Array) -> Image.Image:
    """Grey values [height, width] as bytes: from 0 to 1, or, where one is larger, from 0 to 255."""
    from PIL import Image

    if not np.isfinite(values).all():
        raise InvalidInput("image", "not_finite", "got NaN or infinite values; expected finite ones")
    wide = values.astype(np.float64)
    return Image.fromarray((wide * (255 if wide.max() <= 1 else 1)).clip(0, 255).round().astype(np.uint8))
