"""Sound by FFmpeg (PyAV): every frame that there is, whatever the header says, out of what phones and browsers record.

MP3: libsndfile reads as much as a header says, or as a constant bit rate would give: a file of variable bit rate
without such a header ends too early, and large pictures in front count as sound. It also wants a stream to start with a
frame. The others libsndfile doesn't read at all.

FFmpeg has some hundred readers and decoders; what a stranger sent meets one reader, and one of the decoders named here.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cmt_pipeline.audio_headers import check_boxes, check_caf, check_segment
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array

if TYPE_CHECKING:
    from av import AudioFrame, AudioStream
    from av.container import InputContainer

SPEECH_AND_MUSIC = ("aac", "alac", "amrnb", "amrwb", "flac", "libopus", "opus", "vorbis")
MPEG_LAYERS = ("mp1", "mp1float", "mp2", "mp2float", "mp3", "mp3float")
CODECS = frozenset((*SPEECH_AND_MUSIC, *MPEG_LAYERS))
PCM = "pcm_"
#: FFmpeg's names of a sample -> numpy's.
SAMPLES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
HEAD_BYTES = 16  # enough to tell what a file is


@dataclass(frozen=True)
class Reader:
    """One of FFmpeg's, by its names there. begins: whether a file looks like its own; check: InvalidInput for one whose
    header says more than came."""

    whitelist: str
    begins: Callable[[bytes], bool]
    check: Callable[[bytes], None] | None = None


def _is_mpeg_frame(data: bytes) -> bool:
    """A frame of MPEG audio; with a layer of 0 it would be AAC's."""
    return len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0 and bool(data[1] & 0x06)


READERS = (
    Reader("mp3", _is_mpeg_frame),
    Reader("aac", lambda data: data[:2] in (b"\xff\xf0", b"\xff\xf1", b"\xff\xf8", b"\xff\xf9")),
    Reader(
        "mov,mp4,m4a,3gp,3g2,mj2",
        lambda data: data[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip"),
        check_boxes,
    ),
    Reader("matroska,webm", lambda data: data[:4] == b"\x1aE\xdf\xa3", check_segment),
    Reader("amr", lambda data: data[:5] == b"#!AMR"),
    Reader("caf", lambda data: data[:4] == b"caff", check_caf),
)
MP3 = READERS[0]


def reader_of(data: bytes) -> Reader | None:
    """That of a file's first bytes, or of those behind an ID3 tag; None where libsndfile may know better."""
    place = _tag_bytes(data)
    begin = data[place : place + HEAD_BYTES]
    return next((reader for reader in READERS if reader.begins(begin)), MP3 if place else None)


def decode(data: bytes, reader: Reader, limits: Limits) -> tuple[Array, int] | None:
    """The mean of the channels [samples] float32, at most one sample more than the limits allow, and the sample rate in
    Hz, of the first sound in the file; None where nothing decodes.

    InvalidInput where the file was cut, its sound isn't one of CODECS, or changes its rate on the way.
    """
    import av
    from av.error import FFmpegError

    if reader.check:
        reader.check(data)
    parts: list[Array] = []
    rate = samples = 0
    options = {"format_whitelist": reader.whitelist, "protocol_whitelist": ""}
    try:
        with av.open(io.BytesIO(data), options=options, metadata_errors="ignore") as file:
            for frame in frames_of(file, _sound(file, limits)):
                rate = frame.sample_rate
                check_channels(frame.layout.nb_channels, limits)
                parts.append(mono(frame))
                samples += frame.samples
                if samples > limits.max_audio_s * rate:
                    break
    except FFmpegError:
        return None
    return (np.concatenate(parts)[: int(limits.max_audio_s * rate) + 1], rate) if parts else None


def _sound(file: InputContainer, limits: Limits) -> AudioStream:
    """The first sound; everything else in the file is passed over unread."""
    from av.stream import Discard

    if not file.streams.audio:
        raise InvalidInput("audio", "no_sound", "got a file without sound; expected one with")
    sound = file.streams.audio[0]
    for stream in file.streams:
        if stream is not sound:
            stream.discard = Discard.all
    name = sound.codec_context.name if sound.codec_context else "none"
    if name not in CODECS and not name.startswith(PCM):
        known = ", ".join(sorted({codec.removeprefix("lib").removesuffix("float") for codec in CODECS}))
        raise InvalidInput("audio", "wrong_format", f"got sound by {name}; expected one of {known}, PCM: convert it")
    sound.codec_context.thread_count = 1
    check_channels(sound.codec_context.channels, limits)
    return sound


def frames_of(file: InputContainer, sound: AudioStream) -> Iterator[AudioFrame]:
    """Those that decode: one that was cut, or began before the file did, is passed over. InvalidInput where the rate
    changes on the way."""
    from av.error import InvalidDataError

    rate = 0
    for packet in file.demux(sound):
        with suppress(InvalidDataError):
            for frame in packet.decode():
                if rate and frame.sample_rate != rate:
                    told = f"got sample rates of {rate} and {frame.sample_rate} Hz in one file; expected one"
                    raise InvalidInput("audio", "sample_rate", told)
                rate = frame.sample_rate
                yield frame


def mono(frame: AudioFrame) -> Array:
    """The mean of a frame's channels [samples] float32; integers scaled to [-1, 1)."""
    samples = _samples(frame)
    if len(samples) == 1 and samples.dtype == np.float32:
        return np.array(samples[0])
    mean = samples.mean(axis=0, dtype=np.float64)
    if samples.dtype == np.uint8:
        mean = (mean - 128) / 128
    elif samples.dtype.kind == "i":
        mean /= 1 << (8 * samples.dtype.itemsize - 1)
    return np.asarray(mean, np.float32)


def _samples(frame: AudioFrame) -> Array:
    """[channels, samples] as the decoder gave them. PyAV's own `planes` and `to_ndarray` read on to the next null
    pointer, which of eight channels and more isn't theirs."""
    from av.audio.plane import AudioPlane

    dtype, channels = SAMPLES[frame.format.packed.name], frame.layout.nb_channels

    def plane(index: int, count: int) -> Array:
        return np.frombuffer(memoryview(AudioPlane(frame, index)), dtype, count)

    if frame.format.is_planar:
        return np.stack([plane(index, frame.samples) for index in range(channels)])
    return plane(0, frame.samples * channels).reshape(-1, channels).T


def check_channels(channels: int, limits: Limits) -> None:
    """InvalidInput for more than the limits allow."""
    if channels > limits.max_audio_channels:
        told = f"got {channels} channels; at most {limits.max_audio_channels} are accepted"
        raise InvalidInput("audio", "channels", told)


def _tag_bytes(data: bytes) -> int:
    """The length of the ID3 tag in front; 0 without one. ID3v2.4.0, section 3.1: seven bits of each byte count."""
    if data[:3] != b"ID3":
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size
