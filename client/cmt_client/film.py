"""Films: what is heard, window by window, and pictures of each window. Decoded by FFmpeg (PyAV).

A picture is the whole frame, turned as the film says and shrunk: no face is looked for, so crop before, where a face is
a small part of it. PICTURES_PER_WINDOW of them lie in the middles of as many equal parts of a window; each is asked for
with the window's sound, and their mean answers for the window.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cmt_client.arrays import ppm_from_array
from cmt_client.errors import InvalidInput
from cmt_client.files import opened
from cmt_client.recording import recording_of
from cmt_client.windows import edges_of
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import IMAGE_SIDE, Array

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer

PICTURES_PER_WINDOW = 3
MOST_PIXELS_A_SIDE = 3 * IMAGE_SIDE  # of what is sent; the server shrinks it further
SEEK_FROM_S = 5.0  # a nearer picture is decoded up to
CLOCK = 1_000  # windows of a silent film, a second
ACCEPTED_FILMS = "a film: an MP4, MOV, WebM or MKV file's bytes, path, or itself opened in binary mode"
READERS = "mov,mp4,m4a,matroska,webm"  # of FFmpeg's hundreds


@dataclass(frozen=True)
class Scene:
    """A window of a film. pictures: files; audio: a file, None where the film is silent."""

    start_s: float
    end_s: float
    pictures: tuple[bytes, ...]
    audio: bytes | None


def scenes(film: Any, limits: Limits, window_s: float | None = None) -> Generator[Scene, None, None]:
    """The windows of a film, of equal length and at most window_s seconds (None: the limit).

    film: a file's bytes, its path, or itself opened in binary mode. Raises InvalidInput.
    """
    with opened(film, "video", ACCEPTED_FILMS) as file:
        duration_s, has_sound = _measured(file, limits)
        if not has_sound:
            spans = [time / CLOCK for time in edges_of(round(duration_s * CLOCK), CLOCK, 1, limits, window_s)]
            yield from _joined(spans, _pictures(file, spans, limits), None)
            return
        with recording_of(file, limits) as recording:
            assert recording is not None  # PyAV is there
            if not recording.frames:
                told = "got a film of whose sound nothing decodes; expected a whole one, or one without sound"
                raise InvalidInput("video", "not_decodable", told)
            edges = edges_of(recording.frames, recording.rate_hz, recording.frame_bytes, limits, window_s)
            spans = [edge / recording.rate_hz for edge in edges]
            pictures = list(_pictures(file, spans, limits))  # both read the one file
            yield from _joined(spans, pictures, recording.pieces(edges))


def _joined(
    spans: Sequence[float], pictures: Iterator[bytes] | Sequence[bytes], sounds: Iterator[bytes] | None
) -> Iterator[Scene]:
    remaining = iter(pictures)
    for begin, end in pairwise(spans):
        shown = tuple(next(remaining) for _ in range(PICTURES_PER_WINDOW))
        yield Scene(begin, end, shown, next(sounds) if sounds is not None else None)


def _measured(file: BinaryIO, limits: Limits) -> tuple[float, bool]:
    """A film's length in seconds, by its pictures where it doesn't say; whether it has sound."""
    with _container(file) as container:
        if not container.streams.video:
            raise InvalidInput("video", "not_decodable", f"got a file without pictures; expected {ACCEPTED_FILMS}")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise InvalidInput("video", "wrong_format", "got pictures that FFmpeg has no decoder for; convert them")
        if stream.width * stream.height > limits.max_image_pixels:
            size = f"{stream.width} x {stream.height}"
            told = f"got pictures of {size} pixels; at most {limits.max_image_pixels} are accepted"
            raise InvalidInput("video", "too_large", told)
        has_sound = bool(container.streams.audio)
        if container.duration:
            return container.duration / 1e6, has_sound
        last_s = max((frame.time or 0.0 for frame in container.decode(stream)), default=0.0)
        return last_s, has_sound


def _pictures(file: BinaryIO, spans: Sequence[float], limits: Limits) -> Iterator[bytes]:
    """PPM files: PICTURES_PER_WINDOW of each window, the last frame for what lies behind it."""
    parts = np.arange(PICTURES_PER_WINDOW) / PICTURES_PER_WINDOW + 0.5 / PICTURES_PER_WINDOW
    wanted = [begin + float(part) * (end - begin) for begin, end in pairwise(spans) for part in parts]
    with _container(file) as container:
        origin_s = (container.start_time or 0) / 1e6
        shown: VideoFrame | None = None
        frames = container.decode(container.streams.video[0])
        for time_s in wanted:
            at_s = time_s + origin_s
            if at_s - (shown.time or 0.0 if shown else origin_s) > SEEK_FROM_S and _seek(container, at_s):
                frames = container.decode(container.streams.video[0])
            while shown is None or (shown.time or 0.0) < at_s:
                following = next(frames, None)
                if following is None:
                    break
                shown = following
            if shown is None:
                raise InvalidInput(
                    "video", "not_decodable", f"got a film without a whole picture; expected {ACCEPTED_FILMS}"
                )
            yield ppm_from_array(_upright(shown), limits)


def _seek(container: InputContainer, time_s: float) -> bool:
    """To the key frame before a time; False where the file has no index."""
    from av.error import FFmpegError

    try:
        container.seek(round(time_s * 1e6), backward=True)
    except FFmpegError:
        return False
    return True


def _upright(frame: VideoFrame) -> Array:
    """[height, width, 3] uint8: turned as the film says, no side longer than MOST_PIXELS_A_SIDE."""
    scale = min(1.0, MOST_PIXELS_A_SIDE / max(frame.width, frame.height))
    width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
    pixels = frame.reformat(width, height, "rgb24", interpolation="AREA").to_ndarray()
    return np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))


@contextmanager
def _container(file: BinaryIO) -> Iterator[InputContainer]:
    """A film that is read from its start; whatever its decoding raises is an InvalidInput."""
    try:
        import av
    except ImportError:
        told = "got a film, and PyAV isn't installed: pip install 'cmt-triton[preprocess]'"
        raise InvalidInput("video", "not_decodable", told) from None
    file.seek(0)
    options = {"format_whitelist": READERS, "protocol_whitelist": ""}
    try:
        with av.open(file, options=options, metadata_errors="ignore") as container:
            yield container
    except av.FFmpegError as error:
        told = f"got a file that doesn't decode ({error.strerror}); expected {ACCEPTED_FILMS}"
        raise InvalidInput("video", "not_decodable", told) from error
