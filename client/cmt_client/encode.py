"""What a caller has -> the bytes that a raw entrance takes.

Files travel as they are. Arrays are wrapped losslessly, in headers written here: images as PPM (Netpbm's P6),
sound as WAV. A Pillow image travels as the pixels that the server would decode from its file.
"""

from __future__ import annotations

import operator
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from cmt_client.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import IMAGE_SIDE, Array

if TYPE_CHECKING:
    from PIL import Image

PPM_HEADER_BYTES = 32  # at most
PCM = 1  # wFormatTag values of RIFF WAVE
IEEE_FLOAT = 3
MAX_CHANNELS = 256  # more is an array the wrong way round, not sound

ACCEPTED_IMAGES = "file bytes, a path, a uint8 array [height, width] or [height, width, 3], or a Pillow image"
ACCEPTED_SOUNDS = "file bytes, a path, Sound(samples, sample_rate_hz) or (samples, sample_rate_hz)"


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples with their rate. samples: [samples] or [samples, channels]; floats in [-1, 1], or int16."""

    samples: Array
    sample_rate_hz: int


FileInput: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str]"
ImageInput: TypeAlias = "FileInput | Array | Image.Image"
AudioInput: TypeAlias = "FileInput | Sound | tuple[Array, int]"
TextInput: TypeAlias = "str | bytes"


def image_bytes(image: Any, limits: Limits) -> bytes:
    """An ImageInput as a file's bytes. Raises InvalidInput("image", …)."""
    if isinstance(image, np.ndarray):
        data = ppm_from_array(image)
    elif hasattr(image, "mode") and hasattr(image, "convert"):
        data = _ppm_from_pillow(image, limits)
    else:
        data = _file_bytes(image, "image", limits.max_image_bytes, ACCEPTED_IMAGES)
    return _sized(data, "image", limits.max_image_bytes)


def audio_bytes(audio: Any, limits: Limits) -> bytes:
    """An AudioInput as a file's bytes. Raises InvalidInput("audio", …)."""
    if isinstance(audio, np.ndarray):
        raise InvalidInput("audio", "no_rate", f"got an array without a sample rate; expected {ACCEPTED_SOUNDS}")
    if isinstance(audio, tuple) and len(audio) == 2:
        audio = Sound(np.asarray(audio[0]), audio[1])
    if isinstance(audio, Sound):
        _check_size(2 * np.asarray(audio.samples).size, "audio", limits.max_audio_bytes)
        data = wav_from_sound(audio)
    else:
        data = _file_bytes(audio, "audio", limits.max_audio_bytes, ACCEPTED_SOUNDS)
    return _sized(data, "audio", limits.max_audio_bytes)


def text_bytes(text: Any, limits: Limits) -> bytes:
    """A text as UTF-8. Raises InvalidInput("text", …)."""
    if isinstance(text, str):
        try:
            text = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidInput(
                "text",
                "not_unicode",
                f"got a lone surrogate (at character {error.start}); expected Unicode text",
            ) from None
    if not isinstance(text, bytes):
        raise InvalidInput("text", "wrong_type", f"got {type(text).__name__}; expected str")
    return _sized(text, "text", limits.max_text_bytes)


ENCODERS: dict[str, Callable[[Any, Limits], bytes]] = {
    "image": image_bytes,
    "audio": audio_bytes,
    "text": text_bytes,
}


def ppm_from_array(pixels: Array) -> bytes:
    """Binary PPM of uint8 [height, width] (grey) or [height, width, 3] (RGB). Raises InvalidInput."""
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.size == 0:
        raise InvalidInput(
            "image",
            "wrong_array",
            f"got {pixels.dtype} {list(pixels.shape)}; expected uint8 [height, width] or [height, width, 3]",
        )
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


def wav_from_sound(sound: Sound) -> bytes:
    """A WAV file: 16-bit for int16 samples, 32-bit float for floats. Raises InvalidInput."""
    samples = np.asarray(sound.samples)
    whole = samples.dtype.kind == "i" and samples.dtype.itemsize == 2
    channels = samples.shape[1] if samples.ndim == 2 else samples.ndim
    if not (whole or samples.dtype.kind == "f") or samples.ndim > 2 or not 0 < channels <= MAX_CHANNELS:
        raise InvalidInput(
            "audio",
            "wrong_array",
            f"got {samples.dtype} {list(samples.shape)}; expected float or int16, [samples] or [samples, channels]",
        )
    rate = _rate_hz(sound.sample_rate_hz)
    tag, dtype = (PCM, "<i2") if whole else (IEEE_FLOAT, "<f4")
    data = samples.astype(dtype).tobytes()
    width = np.dtype(dtype).itemsize
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * width & 0xFFFFFFFF, channels * width, 8 * width)
    # Only float needs the fact chunk (samples in each channel); readers of PCM skip it.
    chunks = _chunk(b"fmt ", fmt) + _chunk(b"fact", struct.pack("<I", len(samples))) + _chunk(b"data", data)
    return _chunk(b"RIFF", b"WAVE" + chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _rate_hz(rate: Any) -> int:
    try:
        value = operator.index(rate)
    except TypeError:
        value = 0
    if not 0 < value < 2**31:
        raise InvalidInput("audio", "sample_rate", f"got a sample rate of {rate!r}; expected a whole number of Hz")
    return value


def _ppm_from_pillow(image: Image.Image, limits: Limits) -> bytes:
    """The upright RGB image that the server would make of the file.

    One that is too big to travel is shrunk just as the server's preprocessing does, which then finds nothing
    to do.
    """
    from PIL import Image

    from cmt_pipeline.image import upright

    if image.width * image.height > limits.max_image_pixels:
        raise InvalidInput(
            "image",
            "too_large",
            f"got {image.width} x {image.height} pixels; at most {limits.max_image_pixels} are accepted",
        )
    try:
        rgb = upright(image)
    except Exception as error:  # Pillow's format plugins raise many kinds on a damaged file
        raise InvalidInput("image", "not_decodable", f"got a Pillow image that doesn't load ({error})") from error
    too_big = 3 * rgb.width * rgb.height + PPM_HEADER_BYTES > limits.max_image_bytes
    if too_big and min(rgb.size) >= limits.min_image_side_px:
        rgb = rgb.resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)
    return ppm_from_array(np.asarray(rgb, np.uint8))


def _file_bytes(source: Any, field: str, limit: int, accepted: str) -> bytes:
    if isinstance(source, bytes):
        return source
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if not isinstance(source, (str, os.PathLike)):
        raise InvalidInput(field, "wrong_type", f"got {type(source).__name__}; expected {accepted}")
    try:
        with open(source, "rb") as file:
            return file.read(limit + 1)  # one byte more shows a file that is too large
    except (OSError, ValueError) as error:
        raise InvalidInput(field, "unreadable", f"got a path that can't be read ({error})") from error


def _sized(data: bytes, field: str, limit: int) -> bytes:
    _check_size(len(data), field, limit)
    return data


def _check_size(size: int, field: str, limit: int) -> None:
    if size > limit:
        raise InvalidInput(field, "too_large", f"got more than {limit} bytes; at most {limit} are accepted")
