"""Audio bytes -> `input_values`, `num_samples`.

16 kHz mono, normalised to zero mean and unit variance over the sound samples alone, as Hugging Face's
Wav2Vec2FeatureExtractor does; then padded with zeros up to a bucket.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

from cmt_pipeline.audio_headers import check_whole, with_flac_length, with_wav_length
from cmt_pipeline.buckets import AUDIO_SAMPLES, SAMPLE_RATE_HZ, bucket_for
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.ffmpeg_audio import MP3, check_channels, decode, reader_of
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from cmt_pipeline.tensors import Array

if TYPE_CHECKING:
    import soundfile

FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF")
ACCEPTED = "a WAV, MP3, FLAC, Ogg, M4A or MP4, WebM, AAC, AMR, CAF or AIFF file"
UNKNOWN_FORMAT = 1  # libsndfile's SF_ERR_UNRECOGNISED_FORMAT
BLOCK_FRAMES = 65_536  # decoded at a time: of all channels, only their mean is kept
VARIANCE_FLOOR = 1e-7  # Wav2Vec2FeatureExtractor's; silence stays zero


class AudioPreprocessor:
    """bytes -> {`input_values`: [samples] float32, `num_samples`: [1] int64}. Raises InvalidInput."""

    def __init__(self, normalize: bool = True, limits: Limits = DEFAULT_LIMITS) -> None:
        self._normalize = normalize
        self._limits = limits

    def __call__(self, data: bytes) -> dict[str, Array]:
        sound = decode_audio(data, self._limits)
        if self._normalize:
            # float64: the square of a legal float32 sample can overflow float32
            wide = sound.astype(np.float64)
            sound = ((wide - wide.mean()) / np.sqrt(wide.var() + VARIANCE_FLOOR)).astype(np.float32)
        padded = np.zeros(bucket_for(len(sound), AUDIO_SAMPLES), np.float32)
        padded[: len(sound)] = sound
        return {"input_values": padded, "num_samples": np.array([len(sound)], np.int64)}


def decode_audio(data: bytes, limits: Limits = DEFAULT_LIMITS) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """16 kHz mono samples [samples] float32; channels are averaged. Raises InvalidInput."""
    import soxr

    if not data:
        raise InvalidInput("audio", "empty", f"got 0 bytes; expected {ACCEPTED}")
    if len(data) > limits.max_audio_bytes:
        raise InvalidInput(
            "audio",
            "too_large",
            f"got {len(data)} bytes; at most {limits.max_audio_bytes} are accepted: cut it",
        )
    mono, rate = _decoded(data, limits)
    _check_rate(rate, limits)
    _check_duration(len(mono) / rate, limits)
    _check_finite(mono)  # the mean of channels that aren't all finite isn't either
    if rate != SAMPLE_RATE_HZ:
        mono = soxr.resample(mono, rate, SAMPLE_RATE_HZ)
        _check_finite(mono)  # its overshoot can overflow too
    return np.ascontiguousarray(mono, np.float32)


def _decoded(data: bytes, limits: Limits) -> tuple[Array, int]:
    """The mean of the channels [samples] float32, and the sample rate in Hz; one sample more than allowed shows that
    there are too many."""
    import soundfile

    reader = reader_of(data)
    if reader and (found := decode(data, reader, limits)):
        return found
    check_whole(data)
    whole = with_flac_length(with_wav_length(data), limits.max_audio_s)
    try:
        with soundfile.SoundFile(io.BytesIO(whole)) as file:
            if whole is not data:  # a stream: after its last block, shorter than it says, no seek to there succeeds
                file.seekable = lambda: False
            rate = _check_header(file, limits)
            return _read_mono(file, int(limits.max_audio_s * rate) + 1), rate
    except soundfile.LibsndfileError as error:
        # A stream that somebody joined in the middle starts with the rest of a frame.
        if error.code == UNKNOWN_FORMAT and reader in (None, MP3) and (found := decode(data, MP3, limits)):
            return found
        raise InvalidInput(
            "audio",
            "not_decodable",
            f"got {len(data)} bytes that don't decode ({error.error_string}); expected {ACCEPTED}",
        ) from None


def _read_mono(file: soundfile.SoundFile, most: int) -> Array:
    """At most so many frames [frames] float32, the mean of their channels."""
    parts = []
    while most > 0:
        block = file.read(min(most, BLOCK_FRAMES), dtype="float32", always_2d=True)
        with np.errstate(invalid="ignore"):  # inf - inf is refused as not finite
            # float64: a sum of channels can overflow float32
            parts.append(block.mean(axis=1, dtype=np.float64).astype(np.float32))
        most = most - len(block) if len(block) == BLOCK_FRAMES else 0
    return np.concatenate(parts)


def _check_header(file: soundfile.SoundFile, limits: Limits) -> int:
    """The sample rate in Hz, once what the file declares of itself is acceptable."""
    if file.format not in FORMATS:
        raise InvalidInput("audio", "wrong_format", f"got a {file.format} file; expected {ACCEPTED}")
    rate = int(file.samplerate)
    _check_rate(rate, limits)
    check_channels(file.channels, limits)
    if file.frames > limits.max_audio_s * rate + 1:  # what says one more may have fewer
        _check_duration(file.frames / rate, limits)
    return rate


def _check_rate(rate: int, limits: Limits) -> None:
    if not limits.min_sample_rate_hz <= rate <= limits.max_sample_rate_hz:
        raise InvalidInput(
            "audio",
            "sample_rate",
            f"got a sample rate of {rate} Hz; expected {limits.min_sample_rate_hz} to {limits.max_sample_rate_hz} Hz",
        )


def _check_finite(samples: Array) -> None:
    if not np.isfinite(samples).all():
        raise InvalidInput("audio", "not_finite", "got NaN or infinite samples; expected finite ones")


def _check_duration(seconds: float, limits: Limits) -> None:
    if seconds > limits.max_audio_s:
        raise InvalidInput(
            "audio",
            "too_long",
            f"got {seconds:.2f} s; at most {limits.max_audio_s:g} s are accepted: cut it into utterances",
        )
    if seconds < limits.min_audio_s:
        raise InvalidInput("audio", "too_short", f"got {seconds:.3f} s; at least {limits.min_audio_s:g} s are needed")
