"""Recordings of any length, read a window at a time: samples, WAV files as they are, anything else by FFmpeg (PyAV).

FFmpeg reads such a file twice, first to count, as few containers know their length; so one window is held, however long
the recording is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from mmap import PROT_READ, mmap
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from cmt_client.arrays import frames_of, rate_hz, wav_chunk, wav_from_frames, wav_width
from cmt_client.encode import ACCEPTED_SOUNDS, sound_of
from cmt_client.errors import InvalidInput, own_input_error
from cmt_client.files import opened
from cmt_pipeline import errors as pipeline_errors
from cmt_pipeline import ffmpeg_audio
from cmt_pipeline.audio_headers import CHUNK, FLAC_SAMPLES, FLAC_SAMPLES_MASK, STREAMED_FROM, check_whole
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array

if TYPE_CHECKING:
    from av import AudioFrame

WAV_TAGS = {1, 3, 6, 7, 0xFFFE}  # PCM, float, A-law, mu-law, extensible: every frame stands alone
FMT = struct.Struct("<HHIIHH")  # tag, channels, rate, bytes a second, bytes a frame, bits
MOST_FMT_BYTES = 4_000
READERS = "mp3,aac,mov,mp4,m4a,matroska,webm,amr,caf,flac,ogg,aiff,wav,w64"  # of FFmpeg's hundreds
FLOAT_BYTES = 4

#: Frame numbers [0, …, frames] -> the sound between each two neighbours, as files.
Pieces = Callable[[Sequence[int]], Iterator[bytes]]


@dataclass(frozen=True)
class Recording:
    """frames: samples in each channel; frame_bytes: what one of them takes on its way to the server."""

    frames: int
    rate_hz: int
    frame_bytes: int
    pieces: Pieces


@contextmanager
def recording_of(audio: Any, limits: Limits) -> Iterator[Recording | None]:
    """An AudioInput's, readable inside the block; None for a file that needs PyAV where that isn't installed.

    Raises InvalidInput.
    """
    sound = sound_of(audio)
    if sound is not None:
        samples, rate = frames_of(sound, limits), rate_hz(sound.sample_rate_hz)
        yield _of_samples(samples, rate)
        return
    with opened(audio, "audio", ACCEPTED_SOUNDS) as file:
        yield _of_wav(file) or _of_container(file)


def _of_samples(samples: Array, rate: int) -> Recording:
    def pieces(edges: Sequence[int]) -> Iterator[bytes]:
        return (wav_from_frames(samples[begin:end], rate) for begin, end in pairwise(edges))

    return Recording(len(samples), rate, samples.shape[1] * wav_width(samples), pieces)


def _of_wav(file: BinaryIO) -> Recording | None:
    """Of a WAV file of which every frame has its bytes; its windows are those bytes. None for anything else."""
    file.seek(0)
    head = file.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return None
    fmt = b""
    while len(chunk := file.read(CHUNK.size)) == CHUNK.size:
        name, size = CHUNK.unpack(chunk)
        if name == b"data":
            return _of_wav_data(file, fmt, size)
        begin = file.tell()
        fmt = file.read(min(size, MOST_FMT_BYTES)) if name == b"fmt " else fmt
        file.seek(begin + size + size % 2)
    return None


def _of_wav_data(file: BinaryIO, fmt: bytes, size: int) -> Recording | None:
    if len(fmt) < FMT.size:
        return None
    tag, _, rate, _, width, _ = FMT.unpack_from(fmt)
    if tag not in WAV_TAGS or not rate or not width:
        return None
    begin = file.tell()
    there = file.seek(0, 2) - begin
    if not 0 < size < STREAMED_FROM:  # a stream's: to its end
        size = there
    if size > there + 1:  # the byte that pads to an even size is often left out
        raise InvalidInput("audio", "cut", f"got {there} of the {size} bytes of sound that the file's header says")

    def pieces(edges: Sequence[int]) -> Iterator[bytes]:
        for first, last in pairwise(edges):
            file.seek(begin + first * width)
            data = file.read((last - first) * width)
            yield wav_chunk(b"RIFF", b"WAVE" + wav_chunk(b"fmt ", fmt) + wav_chunk(b"data", data))

    return Recording(min(size, there) // width, rate, width, pieces)


def _of_container(file: BinaryIO) -> Recording | None:
    """Of whatever FFmpeg reads: the mean of its channels as floats, as the server makes it."""
    try:
        import av  # noqa: F401
    except ImportError:
        return None
    frames = rate = 0
    for frame in _decoded(file):
        frames, rate = frames + frame.samples, frame.sample_rate
    _check_whole(file, frames)

    def pieces(edges: Sequence[int]) -> Iterator[bytes]:
        held: list[Array] = []  # mono, since edges[done]
        samples, done = 0, 0
        for frame in _decoded(file):
            held.append(ffmpeg_audio.mono(frame))
            samples += frame.samples
            while done + 1 < len(edges) and samples >= edges[done + 1] - edges[done]:
                whole, size = np.concatenate(held), edges[done + 1] - edges[done]
                yield wav_from_frames(whole[:size, None], rate)
                held, samples, done = [whole[size:]], samples - size, done + 1

    return Recording(frames, rate, FLOAT_BYTES, pieces)


def _check_whole(file: BinaryIO, frames: int) -> None:
    """InvalidInput where a file's header says more than came, as the server has it."""
    with _viewed(file) as data:
        try:
            check_whole(data)
            reader = ffmpeg_audio.reader_of(data)
            if reader and reader.check:
                reader.check(data)
        except pipeline_errors.InvalidInput as error:
            raise own_input_error(error) from error
        said = int.from_bytes(data[FLAC_SAMPLES], "big") & FLAC_SAMPLES_MASK if data[:4] == b"fLaC" else 0
        if said > frames:
            told = f"got {frames} of the {said} samples that the file's header says; expected the whole file"
            raise InvalidInput("audio", "cut", told)


@contextmanager
def _viewed(file: BinaryIO) -> Iterator[Any]:
    """All its bytes; those of a file on a disk are read where they are looked at."""
    try:
        view = mmap(file.fileno(), 0, prot=PROT_READ)
    except (OSError, ValueError, AttributeError):  # what lies in memory has no number
        file.seek(0)
        yield file.read()
        return
    with view:
        yield view


def _decoded(file: BinaryIO) -> Iterator[AudioFrame]:
    """The frames of a file's first sound: those that decode, as the server reads it."""
    import av
    from av.error import FFmpegError

    file.seek(0)
    options = {"format_whitelist": READERS, "protocol_whitelist": ""}
    try:
        with av.open(file, options=options, metadata_errors="ignore") as container:
            if not container.streams.audio:
                told = f"got a file without sound; expected {ACCEPTED_SOUNDS}"
                raise pipeline_errors.InvalidInput("audio", "not_decodable", told)
            sound = container.streams.audio[0]
            if sound.codec_context is None:
                told = "got sound that FFmpeg has no decoder for; convert it"
                raise pipeline_errors.InvalidInput("audio", "wrong_format", told)
            yield from ffmpeg_audio.frames_of(container, sound)
    except pipeline_errors.InvalidInput as error:
        raise own_input_error(error) from error
    except FFmpegError as error:
        told = f"got a file that doesn't decode ({error.strerror}); expected a whole file of sound"
        raise InvalidInput("audio", "not_decodable", told) from error
