"""Sounds by name, each of them the same second of SOUND, as bytes of some container and codec."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile

from cmt_pipeline.tensors import Array

RATE_HZ = 16_000
SECONDS = 1.0
LAYOUTS = {1: "mono", 2: "stereo", 8: "7.1(wide)"}


def sound(rate_hz: int = RATE_HZ) -> Array:
    """A voice as a formula: a glide with three overtones whose loudness comes and goes. [samples] float32."""
    time_s = np.arange(round(SECONDS * rate_hz)) / rate_hz
    phase = 2 * np.pi * (150 * time_s + 60 * time_s**2)
    loud = np.sin(np.pi * time_s / SECONDS) ** 2 * (1 + 0.5 * np.sin(2 * np.pi * 4 * time_s))
    return np.asarray(0.25 * loud * (np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.25 * np.sin(3 * phase)), np.float32)


@dataclass(frozen=True)
class Made:
    """How a file is made. error: the largest difference of a sample from the truth, None for a lossy codec; of which
    alike: how like the truth its sound is at least (normalised correlation), later_s: what its encoder puts in front
    where no header says how much, longer_s: what it adds at either end."""

    by: str
    make: Callable[[], bytes]
    error: float | None = None
    alike: float = 0.999
    later_s: float = 0.0
    longer_s: float = 0.0


def encoded(container: str, codec: str, rate_hz: int = RATE_HZ, channels: int = 1, **options: Any) -> bytes:
    """By FFmpeg. container: its writer; options: of the writer, and `bit_rate` and `encoder` of the encoder."""
    bit_rate, settings = options.pop("bit_rate", None), options.pop("encoder", {})
    settings_of_writer = {key: str(value) for key, value in options.items()}
    with (
        tempfile.NamedTemporaryFile() as place,  # some writers go back to what they wrote
        av.open(place.name, "w", format=container, options=settings_of_writer) as file,
    ):
        stream: Any = file.add_stream(codec, rate=rate_hz, layout=LAYOUTS[channels], options=settings)
        if bit_rate:
            stream.bit_rate = bit_rate
        packed = np.repeat(sound(rate_hz), channels)[None]
        frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[channels])
        frame.sample_rate, frame.pts = rate_hz, 0
        resampler = av.AudioResampler(
            stream.codec_context.format.name, stream.layout, rate_hz, frame_size=stream.codec_context.frame_size or None
        )
        frames = [*resampler.resample(frame), *resampler.resample(None)]
        for each in (*frames, None):
            for packet in stream.encode(each):
                file.mux(packet)
        file.close()
        return Path(place.name).read_bytes()


def saved(format_: str, subtype: str, rate_hz: int = RATE_HZ, channels: int = 1) -> bytes:
    """By libsndfile."""
    buffer = io.BytesIO()
    samples = np.repeat(sound(rate_hz)[:, None], channels, 1)
    soundfile.write(buffer, samples, rate_hz, format=format_, subtype=subtype)
    return buffer.getvalue()


def with_unknown_sizes(webm: bytes) -> bytes:
    """As MediaRecorder streams it: neither the segment nor its clusters say how long they are."""
    out = bytearray(webm)
    for name in (b"\x18\x53\x80\x67", b"\x1f\x43\xb6\x75"):
        place = -1
        while (place := out.find(name, place + 1)) >= 0:
            length = 9 - out[place + 4].bit_length()
            out[place + 4 : place + 4 + length] = bytes([(1 << (9 - length)) - 1 | 0]) + b"\xff" * (length - 1)
    return bytes(out)


def tagged(data: bytes, picture_bytes: int = 3_000) -> bytes:
    """Behind an ID3v2 tag with a picture."""
    body = b"APIC" + picture_bytes.to_bytes(4, "big") + b"\0\0" + b"\xff\xfb\x90\x64" * (picture_bytes // 4)
    return b"ID3\3\0\0" + bytes(len(body) >> shift & 0x7F for shift in (21, 14, 7, 0)) + body + data


def as_streamed_wav(wav: bytes) -> bytes:
    """As a program writes it into a pipe."""
    place = wav.index(b"data")
    return wav[: place + 4] + struct.pack("<I", 0xFFFFFFFF) + wav[place + 8 :]


PCM_16, PCM_8 = 1 / 32_000, 1 / 120
SOUNDS: dict[str, Made] = {
    "WAV, PCM of 16 bits": Made("libsndfile", lambda: saved("WAV", "PCM_16"), PCM_16),
    "WAV, PCM of 8 bits": Made("libsndfile", lambda: saved("WAV", "PCM_U8"), PCM_8),
    "WAV, PCM of 24 bits": Made("libsndfile", lambda: saved("WAV", "PCM_24"), 1e-6),
    "WAV, float": Made("libsndfile", lambda: saved("WAV", "FLOAT"), 1e-7),
    "WAV, stereo": Made("libsndfile", lambda: saved("WAV", "PCM_16", channels=2), PCM_16),
    "WAV, mu-law": Made("libsndfile", lambda: saved("WAV", "ULAW"), 0.02),
    "WAV, streamed": Made("a pipe", lambda: as_streamed_wav(saved("WAV", "PCM_16")), PCM_16),
    "FLAC": Made("libsndfile", lambda: saved("FLAC", "PCM_16"), PCM_16),
    "FLAC, streamed": Made("FFmpeg into a pipe", lambda: encoded("flac", "flac"), PCM_16),
    "AIFF": Made("libsndfile", lambda: saved("AIFF", "PCM_16"), PCM_16),
    "Ogg, Vorbis": Made("libsndfile", lambda: saved("OGG", "VORBIS"), alike=0.998),
    "Ogg, Opus": Made("libsndfile", lambda: saved("OGG", "OPUS"), alike=0.998),
    "MP3": Made("libmp3lame", lambda: encoded("mp3", "libmp3lame", bit_rate=64_000)),
    "MP3, variable, no header": Made(
        "libmp3lame",
        lambda: encoded("mp3", "libmp3lame", write_xing=0, encoder={"global_quality": "472", "flags": "+qscale"}),
        later_s=0.07,
        longer_s=0.08,
    ),
    "M4A, AAC": Made("FFmpeg", lambda: encoded("ipod", "aac", bit_rate=64_000), longer_s=0.064),
    "M4A, AAC at 44.1 kHz in stereo": Made("FFmpeg", lambda: encoded("ipod", "aac", 44_100, 2), longer_s=0.064),
    "M4A, index first": Made("FFmpeg", lambda: encoded("ipod", "aac", movflags="faststart"), longer_s=0.064),
    "M4A, ALAC": Made("FFmpeg", lambda: encoded("ipod", "alac"), PCM_16),
    "M4A, ALAC in 7.1": Made("FFmpeg", lambda: encoded("ipod", "alac", channels=8), PCM_16),
    "MP4, AAC in fragments": Made(
        "as MediaRecorder",
        lambda: encoded("mp4", "aac", movflags="frag_keyframe+empty_moov+default_base_moof"),
        later_s=0.064,
        longer_s=0.128,
    ),
    "MP4, Opus": Made("FFmpeg", lambda: encoded("mp4", "libopus", 48_000), alike=0.998, longer_s=0.02),
    "3GP, AMR": Made(
        "opencore-amr", lambda: encoded("3gp", "libopencore_amrnb", 8_000, bit_rate=12_200), alike=0.8, longer_s=0.04
    ),
    "AMR": Made(
        "opencore-amr", lambda: encoded("amr", "libopencore_amrnb", 8_000, bit_rate=12_200), alike=0.8, longer_s=0.04
    ),
    "AAC, a bare stream": Made(
        "FFmpeg", lambda: encoded("adts", "aac", bit_rate=64_000), later_s=0.064, longer_s=0.128
    ),
    "AAC, a bare stream, tagged": Made(
        "FFmpeg", lambda: tagged(encoded("adts", "aac", bit_rate=64_000)), later_s=0.064, longer_s=0.128
    ),
    "MP3, tagged": Made("libmp3lame", lambda: tagged(encoded("mp3", "libmp3lame", bit_rate=64_000))),
    "FLAC, tagged": Made("libsndfile", lambda: tagged(saved("FLAC", "PCM_16")), PCM_16),
    "WebM, Opus": Made("FFmpeg", lambda: encoded("webm", "libopus", 48_000), alike=0.998),
    "WebM, Opus, streamed": Made(
        "as MediaRecorder", lambda: with_unknown_sizes(encoded("webm", "libopus", 48_000, live=1)), alike=0.998
    ),
    "Matroska, FLAC": Made("FFmpeg", lambda: encoded("matroska", "flac"), PCM_16),
    "Matroska, PCM": Made("FFmpeg", lambda: encoded("matroska", "pcm_s16le"), PCM_16),
    "CAF, PCM": Made("FFmpeg", lambda: encoded("caf", "pcm_s16le"), PCM_16),
    "QuickTime, PCM": Made("FFmpeg", lambda: encoded("mov", "pcm_s16le"), PCM_16),
}


def difference(came: Array) -> float:
    """The largest difference of a sample from the truth; infinite for another length."""
    truth = sound()
    return float(np.abs(came - truth).max()) if len(came) == len(truth) else float("inf")


def likeness(came: Array, truth: Array) -> tuple[float, float]:
    """How like the truth a sound is (1: the same but for its loudness), and by how many seconds it comes later."""
    size = len(came) + len(truth)
    products = np.fft.irfft(np.fft.rfft(came, size) * np.conj(np.fft.rfft(truth, size)), size)
    later = int(np.argmax(products))
    alike = products[later] / (np.linalg.norm(came) * np.linalg.norm(truth))
    return float(alike), (later if later < len(came) else later - size) / RATE_HZ
