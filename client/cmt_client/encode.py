"""What a caller has -> the bytes that a raw entrance takes.

Files travel as they are. Arrays are wrapped in headers written here: images as PPM, sound as WAV. A Pillow image
travels as the pixels that the server would decode from its file. Pixels too many to travel are shrunk where Pillow is
installed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from numbers import Real
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

import numpy as np

from cmt_client.arrays import Sound, SupportsArray, as_array, check_pixels, ppm_from_array, wav_from_sound
from cmt_client.errors import InvalidInput, own_input_error
from cmt_client.files import check_size, file_bytes
from cmt_pipeline import errors as pipeline_errors
from cmt_pipeline.limits import Limits

if TYPE_CHECKING:
    from PIL import Image

ACCEPTED_FILES = "file bytes, a path, a file opened in binary mode, a row {'bytes', 'path'}"
ACCEPTED_IMAGES = f"{ACCEPTED_FILES}, an array of pixels, or a Pillow image"
ACCEPTED_SOUNDS = f"{ACCEPTED_FILES}, or samples: Sound(samples, rate), (samples, rate), {{'array', 'sampling_rate'}}"

PPM_HEADER_BYTES = 32  # at most

FileInput: TypeAlias = "bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO | Mapping[str, Any]"
ImageInput: TypeAlias = "FileInput | SupportsArray | Image.Image"
AudioInput: TypeAlias = "FileInput | Sound | tuple[SupportsArray, float] | tuple[float, SupportsArray]"
TextInput: TypeAlias = "str | bytes"


def image_bytes(image: Any, limits: Limits) -> bytes:
    """An ImageInput as a file's bytes. Raises InvalidInput("image", …)."""
    if hasattr(image, "mode") and hasattr(image, "convert"):
        data = _travelling(_ppm_from_pillow(image, limits), limits)
    elif _is_array(image):
        data = _travelling(ppm_from_array(image, limits), limits)
    else:
        data = file_bytes(image, "image", limits.max_image_bytes, ACCEPTED_IMAGES)
    return _sized(data, "image", limits.max_image_bytes)


def audio_bytes(audio: Any, limits: Limits) -> bytes:
    """An AudioInput as a file's bytes. Raises InvalidInput("audio", …)."""
    sound = sound_of(audio)
    if sound is not None:
        data = wav_from_sound(sound, limits)
    else:
        data = file_bytes(audio, "audio", limits.max_audio_bytes, ACCEPTED_SOUNDS)
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
        remedy = ": read it, path.read_text()" if isinstance(text, os.PathLike) else ""
        raise InvalidInput("text", "wrong_type", f"got {type(text).__name__}; expected str{remedy}")
    return _sized(text, "text", limits.max_text_bytes)


ENCODERS: dict[str, Callable[[Any, Limits], bytes]] = {
    "image": image_bytes,
    "audio": audio_bytes,
    "text": text_bytes,
}


def sound_of(audio: Any) -> Sound | None:
    """Samples with their rate, in any form that libraries give both; None for what isn't samples."""
    if isinstance(audio, Sound):
        return audio
    if isinstance(audio, tuple) and len(audio) == 2:
        first, second = audio
        return Sound(second, float(first)) if isinstance(first, Real) else Sound(first, second)
    if isinstance(audio, Mapping) and {"array", "sampling_rate"} <= audio.keys():
        return Sound(audio["array"], audio["sampling_rate"])
    if hasattr(audio, "get_all_samples"):
        return _decoded_by_torchcodec(audio)
    if _is_array(audio):
        raise InvalidInput("audio", "no_rate", f"got an array without a sample rate; expected {ACCEPTED_SOUNDS}")
    return None


def _is_array(value: Any) -> bool:
    """numpy's own strings are arrays too, and mean a path or bytes."""
    return hasattr(value, "__array__") and not isinstance(value, (bytes, str))


def _decoded_by_torchcodec(decoder: Any) -> Sound:
    """All that its AudioDecoder reads, which `datasets` gives since 4.0. Its data: [channels, samples]."""
    try:
        decoded = decoder.get_all_samples()
    except (OSError, RuntimeError, ValueError) as error:
        raise InvalidInput("audio", "not_decodable", f"got an AudioDecoder that doesn't decode ({error})") from error
    return Sound(as_array(decoded.data, "audio").T, decoded.sample_rate)


def _ppm_from_pillow(image: Image.Image, limits: Limits) -> bytes:
    """The upright RGB image that the server would make of the file."""
    from cmt_pipeline.image import upright

    check_pixels(image.width, image.height, limits)
    try:
        rgb = upright(image)
    except Exception as error:  # Pillow's format plugins raise many kinds on a damaged file
        raise InvalidInput("image", "not_decodable", f"got a Pillow image that doesn't load ({error})") from error
    return ppm_from_array(np.asarray(rgb, np.uint8), limits)


def _travelling(ppm: bytes, limits: Limits) -> bytes:
    """One that is too big to travel is shrunk by averaging whole blocks of pixels, as the server does with what is much
    larger than it needs; as it is without Pillow. Raises InvalidInput."""
    if len(ppm) <= limits.max_image_bytes:
        return ppm
    try:
        import PIL  # noqa: F401
    except ImportError:
        return ppm
    from cmt_pipeline.image import decode_image

    try:
        image = decode_image(ppm, replace(limits, max_image_bytes=len(ppm)))
    except pipeline_errors.InvalidInput as error:
        raise own_input_error(error) from error
    room = (limits.max_image_bytes - PPM_HEADER_BYTES) // 3
    block = next(side for side in itertools.count(2) if -(-image.width // side) * -(-image.height // side) <= room)
    return ppm_from_array(np.asarray(image.reduce(block)), limits)


def _sized(data: bytes, field: str, limit: int) -> bytes:
    check_size(len(data), field, limit)
    return data
