"""Arrays of pixels and samples -> the plainest files: PPM (Netpbm's P6) and WAV.

An array is taken for what its type, shape and values leave no doubt of; what could be read in two ways is refused.
"""

from __future__ import annotations

import operator
import struct
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol

import numpy as np

from cmt_client.errors import InvalidInput
from cmt_client.files import check_size
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array

COLOURS = (3, 4, 1)  # channels: RGB, RGBA, grey
ROUNDING = 1e-4  # by which floats may leave the interval that they are meant to lie in
PCM, IEEE_FLOAT = 1, 3  # wFormatTag values of RIFF WAVE
#: numpy's names of what a WAV file can hold -> its tag and its own type.
SAMPLE_TYPES = {
    "uint8": (PCM, "u1"),
    "int16": (PCM, "<i2"),
    "int32": (PCM, "<i4"),
    "float16": (IEEE_FLOAT, "<f4"),
    "float32": (IEEE_FLOAT, "<f4"),
    "float64": (IEEE_FLOAT, "<f4"),
}

IMAGE_ARRAYS = (
    "[height, width], [height, width, channels] or [channels, height, width], of 1, 3 (RGB) or 4 (RGBA) channels"
)
SAMPLE_ARRAYS = "[samples], [samples, channels] or [channels, samples]"


class SupportsArray(Protocol):
    """What numpy takes for an array: its own, and the tensors of torch, jax and tensorflow."""

    def __array__(self) -> Array: ...


@dataclass(frozen=True, eq=False)
class Sound:
    """Samples with their rate. samples: [samples], [samples, channels] or [channels, samples]; floats in [-1, 1], or
    PCM of its type's full scale: int16, int32, or uint8 with silence at 128."""

    samples: SupportsArray
    sample_rate_hz: float


def as_array(value: Any, field: str) -> Array:
    """As numpy's; a tensor is first taken off its graph and its device. Raises InvalidInput."""
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        told = f"got {type(value).__name__} of which numpy makes no array ({error}); expected one of its types"
        raise InvalidInput(field, "wrong_array", told) from error


def ppm_from_array(pixels: Any, limits: Limits) -> bytes:
    """Binary PPM of RGB, RGBA or grey pixels; what is transparent becomes white. Raises InvalidInput.

    uint8 is taken as it is, other integers from 0 to 255 too, uint16 beyond as 16 bits; floats are from 0 to 1, or
    whole numbers from 0 to 255.
    """
    array = _channels_last(as_array(pixels, "image"))
    height, width, _ = array.shape
    check_pixels(width, height, limits)
    rgb = np.broadcast_to(_on_white(_eight_bits(array)), (height, width, 3))
    return b"P6\n%d %d\n255\n" % (width, height) + rgb.tobytes()


def check_pixels(width: int, height: int, limits: Limits) -> None:
    """Raises InvalidInput for more than may be sent."""
    if width * height > limits.max_image_pixels:
        told = f"got {width} x {height} pixels; at most {limits.max_image_pixels} are accepted: shrink it"
        raise InvalidInput("image", "too_large", told)


def _channels_last(array: Array) -> Array:
    """[height, width, channels]"""
    if array.ndim == 2 and array.size:
        return array[:, :, None]
    if array.ndim == 3 and array.size and array.shape[2] in COLOURS:
        return array
    if array.ndim == 3 and array.size and array.shape[0] in COLOURS:
        return array.transpose(1, 2, 0)
    remedy = ""
    if array.ndim == 4:
        remedy = ": give one image at a time"
    elif array.ndim == 1 and array.dtype == np.uint8:
        remedy = ", or a file's bytes: array.tobytes()"
    elif array.dtype.kind == "S":
        remedy = ", or a file's bytes as Python's: numpy's lose zeros at their end"
    raise InvalidInput("image", "wrong_array", f"{_got(array)}; expected {IMAGE_ARRAYS}{remedy}")


def _eight_bits(pixels: Array) -> Array:
    """The same as uint8."""
    kind = pixels.dtype
    if kind == np.uint8:
        return pixels
    if kind.kind not in "biuf":
        raise InvalidInput("image", "wrong_array", f"{_got(pixels)}; expected uint8, or floats from 0 to 1")
    low, high = pixels.min(), pixels.max()
    if not np.isfinite([low, high]).all():
        raise InvalidInput("image", "not_finite", f"got {kind} pixels with NaN or infinity; expected finite ones")
    if kind.kind in "bf" and low >= -ROUNDING and high <= 1 + ROUNDING:
        shares: Array = np.rint(255 * pixels.astype(np.float32).clip(0, 1))
        return shares.astype(np.uint8)
    if kind == np.uint16 and high > 255:
        return np.right_shift(pixels, 8).astype(np.uint8)
    got = f"got {kind} pixels from {low:g} to {high:g}"
    if low < 0 or high > 255:
        told = "expected uint8, or floats from 0 to 1: undo the normalisation, or send it with predict_tensors"
        raise InvalidInput("image", "wrong_array", f"{got}; {told}")
    if kind.kind == "f" and not np.array_equal(pixels, np.rint(pixels)):
        told = "expected floats from 0 to 1, or whole numbers: divide by 255, or round, whichever is meant"
        raise InvalidInput("image", "ambiguous", f"{got}; {told}")
    return pixels.astype(np.uint8)


def _on_white(pixels: Array) -> Array:
    """uint8 [height, width, 1 or 3]; RGBA as the server blends a PNG file's."""
    if pixels.shape[2] != 4:
        return pixels
    colours, alpha = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    return ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


def wav_from_sound(sound: Sound, limits: Limits) -> bytes:
    """A WAV file: PCM for integers, 32-bit float for floats. Raises InvalidInput."""
    samples = frames_of(sound, limits)
    check_size(samples.size * wav_width(samples), "audio", limits.max_audio_bytes)
    return wav_from_frames(samples, rate_hz(sound.sample_rate_hz))


def wav_from_frames(samples: Array, rate: int) -> bytes:
    """A WAV file of [samples, channels], of a type that it holds."""
    tag, kind = SAMPLE_TYPES[samples.dtype.name]
    frames, channels = samples.shape
    width = wav_width(samples)
    with np.errstate(over="ignore", invalid="ignore"):  # infinity and NaN are refused as such
        data = samples.astype(kind).tobytes()
    fmt = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * width & 0xFFFFFFFF, channels * width, 8 * width)
    # Only float needs the fact chunk (samples in each channel); readers of PCM skip it.
    chunks = wav_chunk(b"fmt ", fmt) + wav_chunk(b"fact", struct.pack("<I", frames)) + wav_chunk(b"data", data)
    return wav_chunk(b"RIFF", b"WAVE" + chunks)


def wav_width(samples: Array) -> int:
    """Bytes that one sample takes in a WAV file."""
    return np.dtype(SAMPLE_TYPES[samples.dtype.name][1]).itemsize


def wav_chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def frames_of(sound: Sound, limits: Limits) -> Array:
    """[samples, channels], of a type that WAV holds. Raises InvalidInput."""
    samples = as_array(sound.samples, "audio")
    if samples.dtype.name not in SAMPLE_TYPES:
        told = "expected floats in [-1, 1], int16, int32 or uint8: convert what is 16 bits wide by astype('int16')"
        raise InvalidInput("audio", "wrong_array", f"{_got(samples)}; {told}")
    frames = _samples_first(samples, limits.max_audio_channels)
    if samples.dtype.name == "int32" and 0 < _peak(samples) < 2**15:
        told = "expected int32 of full scale: convert what is 16 bits wide by astype('int16')"
        raise InvalidInput("audio", "ambiguous", f"got int32 samples up to {_peak(samples)}; {told}")
    return frames


def _samples_first(samples: Array, most_channels: int) -> Array:
    if samples.ndim == 1:
        return samples[:, None]
    channels = [size <= most_channels for size in samples.shape] if samples.ndim == 2 and samples.size else []
    if channels == [True, True]:
        told = f"either side may be the channels; expected one side of more than {most_channels}, or [samples]"
        raise InvalidInput("audio", "ambiguous", f"{_got(samples)}: {told}")
    if True not in channels:
        told = f"{_got(samples)}; expected {SAMPLE_ARRAYS}, of at most {most_channels} channels"
        raise InvalidInput("audio", "wrong_array", told)
    return samples if channels[1] else samples.T


def _peak(samples: Array) -> int:
    return max(-int(samples.min()), int(samples.max())) if samples.size else 0


def rate_hz(rate: Any) -> int:
    """A sample rate as a whole number; 16000.0 is one too. Raises InvalidInput."""
    try:
        value = operator.index(int(rate) if _is_whole(rate) else rate)
    except TypeError:
        value = 0
    if not 0 < value < 2**31:
        raise InvalidInput("audio", "sample_rate", f"got a sample rate of {rate!r}; expected a whole number of Hz")
    return value


def _is_whole(number: Any) -> bool:
    return isinstance(number, Real) and float(number).is_integer()


def _got(array: Array) -> str:
    return f"got {array.dtype} {list(array.shape)}"
