"""Media -> the bytes that preprocessing takes: an image file, or the WAV file of a sound. Decodes through PyAV."""

from __future__ import annotations

import contextlib
import io
import math
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from cmt_pipeline.buckets import AUDIO_SECONDS
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.image import decode_image
from cmt_pipeline.limits import DEFAULT_LIMITS
from cmt_training.examples import DataError, Media

if TYPE_CHECKING:
    import av.container
    from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".ppm", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".flv")
MAX_AUDIO_S = float(AUDIO_SECONDS[-1])
PCM_PEAK = 32_768  # 16-bit


def read_image(media: Media) -> bytes:
    """An image file's own bytes; of a video, or of a crop, a PNG. DataError if it can't be decoded.

    Of a video it is the frame in the middle of the stretch, or of the whole.
    """
    if media.offset is not None:
        return _png(_pixels_of_row(media.path, media.offset))
    if media.path.suffix.lower() not in IMAGE_SUFFIXES:
        return _png(_crop(_middle_frame(media), media))
    try:
        data = media.path.read_bytes()
        image = decode_image(data)
    except (OSError, InvalidInput) as error:
        raise _unreadable(media.path, str(error)) from None
    return data if media.crop is None else _png(_crop(image, media))


def read_audio(media: Media) -> bytes:
    """The stretch, or the whole, as a mono 16-bit WAV file of the source's rate, at most 16 s long.

    Channels are averaged. DataError if nothing can be decoded.
    """
    start_s = media.start_s or 0.0
    end_s = min(media.end_s or float("inf"), start_s + MAX_AUDIO_S)
    with _opened(media.path) as container:
        if not container.streams.audio:
            raise _unreadable(media.path, "it has no sound")
        rate = container.streams.audio[0].rate
        sound = _samples(container, rate, start_s, end_s)
    if not len(sound):
        raise _unreadable(media.path, f"there is no sound from {start_s:g} s on")
    pcm = np.clip(np.round(sound * PCM_PEAK), -PCM_PEAK, PCM_PEAK - 1).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return buffer.getvalue()


def _samples(
    container: av.container.InputContainer, rate: int, start_s: float, end_s: float
) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Mono samples [samples] between two times, in seconds from the file's beginning."""
    import av

    stream = container.streams.audio[0]
    # Rate and channels stay; packed, as PyAV misreads planes of eight channels and more.
    packed = av.AudioResampler(format="flt")
    origin_s = _origin_s(container)
    _seek(container, start_s, origin_s)
    pieces = []
    position = 0
    for index, frame in enumerate(container.decode(stream)):
        # Times of frames place the first piece; those after it follow it without gaps.
        if index == 0 and frame.time is not None:
            position = round((frame.time - origin_s) * rate)
        for part in packed.resample(frame):
            mono = part.to_ndarray().reshape(-1, part.layout.nb_channels).mean(axis=1, dtype=np.float64)
            pieces.append(mono[max(0, round(start_s * rate) - position) :])
            position += len(mono)
        if position >= end_s * rate:
            break
    sound = np.concatenate(pieces) if pieces else np.zeros(0)
    return sound[: round((end_s - start_s) * rate)]


def _pixels_of_row(table: Path, offset: int) -> Image.Image:
    """The square of grey values, 0 to 255, that are a field of a table's row."""
    from PIL import Image

    with table.open("rb") as file:
        file.seek(offset)
        row = file.readline()
    try:
        values = np.array(max(row.split(b","), key=lambda field: field.count(b" ")).strip(b'" \r\n').split(), np.int64)
    except ValueError as error:
        raise _unreadable(table, f"the row at byte {offset} has no pixels ({error})") from None
    side = math.isqrt(len(values))
    if side < 1 or side * side != len(values) or values.min() < 0 or values.max() > 255:
        raise _unreadable(table, f"the row at byte {offset} has {len(values)} values, not a square of 0 to 255")
    return Image.fromarray(values.astype(np.uint8).reshape(side, side))


def _middle_frame(media: Media) -> Image.Image:
    from PIL import Image

    with _opened(media.path) as container:
        if not container.streams.video:
            raise _unreadable(media.path, "it has no pictures")
        stream = container.streams.video[0]
        if stream.width * stream.height > DEFAULT_LIMITS.max_image_pixels:
            raise _unreadable(media.path, f"its pictures have {stream.width} x {stream.height} pixels")
        origin_s = _origin_s(container)
        end_s = media.end_s if media.end_s is not None else (container.duration or 0) / 1e6
        middle_s = ((media.start_s or 0.0) + end_s) / 2
        _seek(container, middle_s, origin_s)
        last = None
        for frame in container.decode(stream):
            last = frame
            if frame.time is not None and frame.time - origin_s >= middle_s:
                break
        if last is None:
            raise _unreadable(media.path, f"it has no picture at {middle_s:.2f} s")
        return Image.fromarray(last.to_ndarray(format="rgb24"))


def _seek(container: av.container.InputContainer, time_s: float, origin_s: float) -> None:
    """To the key frame at or before a time, in seconds from the file's beginning."""
    if time_s > 0:
        container.seek(round((time_s + origin_s) * 1e6), backward=True)


def _origin_s(container: av.container.InputContainer) -> float:
    """The time that the file's clock shows at its beginning."""
    return (container.start_time or 0) / 1e6


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """A container of sound or pictures; whatever its decoding raises is a DataError that names it."""
    import av

    try:
        with av.open(str(path), mode="r") as container:
            yield container
    except (OSError, av.FFmpegError) as error:
        raise _unreadable(path, str(error)) from None


def _crop(image: Image.Image, media: Media) -> Image.Image:
    width, height = image.size
    if media.crop is None:
        return image
    if media.crop == "left":
        box = (0, 0, width // 2, height)
    elif media.crop == "right":
        box = (width - width // 2, 0, width, height)
    else:
        left, top, right, bottom = media.crop
        box = (max(left, 0), max(top, 0), min(right, width), min(bottom, height))
    if box[0] >= box[2] or box[1] >= box[3]:
        raise _unreadable(media.path, f"the box {media.crop} lies outside its {width} x {height} pixels")
    return image.crop(box)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{path} can't be used: {why}; replace the file, or leave the example out")
