"""MP3 by FFmpeg (PyAV): every frame that there is, whatever the header says.

libsndfile reads as much as a header says, or as a constant bit rate would give: an MP3 of variable bit rate without
such a header ends too early, and large pictures in front count as sound. It also wants a stream to start with a frame.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array

if TYPE_CHECKING:
    from av import AudioFrame
    from av.container import InputContainer

#: FFmpeg has some hundred readers; nothing but this one meets what a stranger sent.
OPTIONS = {"format_whitelist": "mp3"}


def is_mp3(data: bytes) -> bool:
    """By its first bytes: metadata, or a frame."""
    return data[:3] == b"ID3" or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0)


def decode_mp3(data: bytes, limits: Limits) -> tuple[Array, int] | None:
    """The mean of its channels [samples] float32, at most one sample more than the limits allow, and its sample rate
    in Hz; None for what is no MP3. InvalidInput where the sample rate changes on the way."""
    import av
    from av.error import FFmpegError

    parts: list[Array] = []
    rate = samples = 0
    try:
        with av.open(io.BytesIO(data), options=OPTIONS, metadata_errors="ignore") as file:
            for frame in _frames(file):
                if rate and frame.sample_rate != rate:
                    told = f"got sample rates of {rate} and {frame.sample_rate} Hz in one file; expected one"
                    raise InvalidInput("audio", "sample_rate", told)
                rate = frame.sample_rate
                parts.append(frame.to_ndarray().mean(axis=0, dtype=np.float64).astype(np.float32))
                samples += frame.samples
                if samples > limits.max_audio_s * rate:
                    break
    except FFmpegError:
        return None
    return (np.concatenate(parts)[: int(limits.max_audio_s * rate) + 1], rate) if parts else None


def _frames(file: InputContainer) -> Iterator[AudioFrame]:
    """Those that decode: one that was cut, or began before the file did, is passed over."""
    from av.error import InvalidDataError

    for packet in file.demux(audio=0):
        try:
            yield from packet.decode()
        except InvalidDataError:
            continue
