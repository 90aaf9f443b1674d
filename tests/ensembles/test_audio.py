"""Audio: 16 kHz mono as Hugging Face's extractor normalises it; anything else is refused, unharmed."""

from __future__ import annotations

import io
import resource
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_pipeline.audio import AudioPreprocessor, decode_audio
from cmt_pipeline.buckets import AUDIO_SAMPLES, SAMPLE_RATE_HZ
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array

preprocess = AudioPreprocessor()
RATES_HZ = (8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000)


def tone(seconds: float, rate: int = SAMPLE_RATE_HZ, hz: float = 440, channels: int = 1) -> Array:
    """A sine of amplitude 0.5 in every channel: [samples, channels] float64."""
    time_s = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.5 * np.sin(2 * np.pi * hz * time_s)[:, None], channels, axis=1)


def saved(sound: Array, rate: int = SAMPLE_RATE_HZ, format_: str = "WAV", subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    channels = sound.shape[1] if sound.ndim > 1 else 1
    with soundfile.SoundFile(buffer, "w", rate, channels, subtype, format=format_) as file:
        for start in range(0, len(sound), 16_000):  # libsndfile's Vorbis encoder keeps what it is given on the stack
            file.write(sound[start : start + 16_000])
    return buffer.getvalue()


def floats(sound: Any, rate: int = SAMPLE_RATE_HZ) -> bytes:
    """A WAV that holds the very float32 samples."""
    return saved(np.asarray(sound, np.float32), rate, subtype="FLOAT")


def flac_that_says(frames: int, sound: Array) -> bytes:
    """A FLAC whose header claims another number of samples: the last 36 of the bits before its MD5."""
    data = bytearray(saved(sound, format_="FLAC"))
    facts = int.from_bytes(data[18:26], "big")
    data[18:26] = (facts >> 36 << 36 | frames).to_bytes(8, "big")
    return bytes(data)


def wav_that_says(frames: int, sound: Array) -> bytes:
    data = bytearray(saved(sound, subtype="PCM_16"))
    at = data.index(b"data") + 4
    data[at : at + 4] = struct.pack("<I", 2 * frames)
    return bytes(data)


def refusal(data: bytes, limits: Limits | None = None) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        AudioPreprocessor(limits=limits or Limits())(data)
    assert raised.value.field == "audio"
    return raised.value


def loudest_hz(sound: Array) -> float:
    return float(np.abs(np.fft.rfft(sound)).argmax() * SAMPLE_RATE_HZ / len(sound))


@pytest.mark.parametrize(
    ("format_", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 2**-7),
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "PCM_24", 2**-23),
        ("WAV", "PCM_32", 2**-23),
        ("WAV", "FLOAT", 2**-24),
        ("WAV", "DOUBLE", 2**-24),
        ("WAVEX", "PCM_16", 2**-15),
        ("RF64", "PCM_16", 2**-15),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("OGG", "VORBIS", 0.05),
    ],
)
def test_every_format_keeps_the_sound(format_: str, subtype: str, tolerance: float) -> None:
    came = decode_audio(saved(tone(1), format_=format_, subtype=subtype))
    assert came.dtype == np.float32
    assert came.flags.c_contiguous
    np.testing.assert_allclose(came, tone(1)[:, 0], atol=tolerance)


@pytest.mark.parametrize(("format_", "subtype"), [("MP3", "MPEG_LAYER_III"), ("OGG", "OPUS")])
def test_codecs_for_streaming_keep_the_tone(format_: str, subtype: str) -> None:
    """Moved by a few milliseconds, which is in their nature."""
    came = decode_audio(saved(tone(1), format_=format_, subtype=subtype))
    assert len(came) == pytest.approx(SAMPLE_RATE_HZ, abs=2_400)
    assert loudest_hz(came) == pytest.approx(440, abs=2)
    assert np.sqrt(2) * came[4_000:-4_000].std() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("rate", RATES_HZ)
def test_a_tone_of_any_rate_keeps_its_pitch_length_and_loudness(rate: int) -> None:
    came = decode_audio(floats(tone(1, rate), rate))
    assert len(came) == SAMPLE_RATE_HZ
    assert loudest_hz(came) == pytest.approx(440, abs=1)
    middle = slice(1_000, -1_000)  # a resampler's filter rings at the ends
    np.testing.assert_allclose(came[middle], tone(1)[middle, 0], atol=2e-3)


@pytest.mark.parametrize("rate", [44_100, 48_000, 192_000])
def test_what_16_khz_cant_hold_is_filtered_out(rate: int) -> None:
    """Else 12 kHz would be heard as 4 kHz."""
    came = decode_audio(floats(tone(1, rate, hz=12_000), rate))
    assert np.abs(came[1_000:-1_000]).max() < 1e-3


@pytest.mark.parametrize("channels", range(1, 9))
def test_channels_are_averaged(channels: int) -> None:
    sound = np.random.default_rng(channels).uniform(-1, 1, (8_000, channels)).astype(np.float32)
    np.testing.assert_allclose(decode_audio(floats(sound)), sound.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize(
    "sound",
    [tone(0.7)[:, 0], 0.3 + tone(2)[:, 0], 1e-6 * tone(1)[:, 0], np.zeros(5_000)],
    ids=["tone", "dc", "faint", "silent"],
)
def test_it_is_normalised_as_by_transformers(sound: Array) -> None:
    from transformers import Wav2Vec2FeatureExtractor

    wanted = Wav2Vec2FeatureExtractor(do_normalize=True)(
        sound.astype(np.float32), sampling_rate=SAMPLE_RATE_HZ, return_tensors="np"
    )
    came = preprocess(floats(sound))
    assert came["num_samples"].tolist() == [len(sound)]
    np.testing.assert_allclose(came["input_values"][: len(sound)], wanted["input_values"][0], atol=2e-5)


def test_the_sound_alone_is_normalised_not_its_padding() -> None:
    came = preprocess(floats(0.25 + tone(1.2)[:, 0]))
    sound = came["input_values"][: round(1.2 * SAMPLE_RATE_HZ)].astype(np.float64)
    assert sound.mean() == pytest.approx(0, abs=1e-6)
    assert sound.std() == pytest.approx(1, abs=1e-4)
    assert not came["input_values"][len(sound) :].any()


def test_without_normalisation_samples_stay_as_they_are() -> None:
    came = AudioPreprocessor(normalize=False)(floats(tone(1)))
    np.testing.assert_allclose(came["input_values"][:SAMPLE_RATE_HZ], tone(1)[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "bucket"),
    [
        (1_600, 18_000),
        (18_000, 18_000),
        (18_001, 25_680),
        (40_000, 48_720),
        (64_000, 64_080),
        (64_081, 97_360),
        (256_000, 256_080),
    ],
)
def test_sound_is_padded_to_its_bucket(samples: int, bucket: int) -> None:
    came = preprocess(floats(np.random.default_rng(0).normal(size=samples)))
    assert {name: (array.dtype, array.shape) for name, array in came.items()} == {
        "input_values": (np.float32, (bucket,)),
        "num_samples": (np.int64, (1,)),
    }
    assert came["num_samples"][0] == samples
    assert came["input_values"][samples - 1] != 0
    assert not came["input_values"][samples:].any()


@pytest.mark.parametrize("rate", RATES_HZ)
def test_sixteen_seconds_are_accepted_at_every_rate(rate: int) -> None:
    """Resampling may round up by a sample."""
    longest = np.zeros(16 * rate, np.float32)
    assert preprocess(floats(longest, rate))["num_samples"][0] in (16 * SAMPLE_RATE_HZ, 16 * SAMPLE_RATE_HZ + 1)
    error = refusal(floats(np.zeros(16 * rate + 1, np.float32), rate))
    assert error.code == "too_long"


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
def test_a_tenth_of_a_second_is_enough(rate: int) -> None:
    shortest = round(0.1 * rate)
    assert preprocess(floats(tone(1, rate)[:shortest], rate))["num_samples"][0] == 1_600
    assert refusal(floats(tone(1, rate)[: shortest - 1], rate)).code == "too_short"


def test_too_short_is_told_with_what_is_needed() -> None:
    error = refusal(floats(tone(0.01)))
    assert (error.code, error.message) == ("too_short", "got 0.010 s; at least 0.1 s are needed")


@pytest.mark.parametrize("format_", ["WAV", "FLAC", "OGG"])
def test_ten_minutes_are_refused_by_the_header(format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(np.zeros(10 * 60 * 8_000, np.float32), 8_000, format_)

    def read(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the sound was decoded")

    monkeypatch.setattr(soundfile.SoundFile, "read", read)
    error = refusal(data)
    assert error.code == "too_long"
    assert error.message == "got 600.00 s; at most 16 s are accepted: cut it into utterances"


def test_limits_can_be_narrowed() -> None:
    limits = Limits(max_audio_s=0.5, min_audio_s=0.2, max_audio_channels=1, min_sample_rate_hz=16_000)
    for sound, rate, code in (
        (tone(0.6), 16_000, "too_long"),
        (tone(0.1), 16_000, "too_short"),
        (tone(0.3, channels=2), 16_000, "channels"),
        (tone(0.3, 8_000), 8_000, "sample_rate"),
    ):
        assert refusal(floats(sound, rate), limits).code == code
    assert len(decode_audio(floats(tone(0.3)), limits)) == 4_800


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("position", [0, -1])
def test_samples_that_are_no_numbers_are_refused(bad: float, rate: int, position: int) -> None:
    sound = tone(1, rate, channels=2)
    sound[position, 1] = bad
    error = refusal(floats(sound, rate))
    assert (error.code, error.message) == ("not_finite", "got NaN or infinite samples; expected finite ones")


def test_silence_is_zero() -> None:
    assert not preprocess(floats(np.zeros(16_000)))["input_values"].any()


@pytest.mark.parametrize("peak", [1e-38, 1e20, 1e38, 3.4e38])
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_samples_of_any_size_stay_finite(peak: float, channels: int) -> None:
    """Sums and squares of them overflow float32, which NaN would come of."""
    came = preprocess(floats(2 * peak * tone(1, channels=channels)))["input_values"][:SAMPLE_RATE_HZ]
    assert np.isfinite(came).all()
    if peak > 1:
        assert came.std() == pytest.approx(1, abs=1e-3)


def test_loudness_that_resampling_overflows_is_refused() -> None:
    """A square wave overshoots where it turns."""
    square = np.sign(tone(1, 44_100)) * 3.4e38
    assert refusal(floats(square, 44_100)).code == "not_finite"


@pytest.mark.parametrize(
    "data",
    [
        wav_that_says(2**30, tone(1)),
        flac_that_says(12_000, tone(1)),
        saved(tone(1), format_="MP3")[:2_000],
    ],
    ids=["wav says more", "flac says less", "mp3 cut off"],
)
def test_a_header_that_lies_yields_what_is_there(data: bytes) -> None:
    came = preprocess(data)
    assert 1_600 <= came["num_samples"][0] <= 16_000
    assert np.isfinite(came["input_values"]).all()


def wav_with_size(size: int, sound: Array, before: bytes = b"") -> bytes:
    """A WAV whose chunk of samples, behind another chunk, has the size that a pipe's writer left there."""
    data = saved(sound, subtype="PCM_16")
    at = data.index(b"data")
    return data[:at] + before + b"data" + struct.pack("<I", size) + data[at + 8 :]


def rf64_that_says(size: int, sound: Array) -> bytes:
    data = bytearray(saved(sound, subtype="PCM_16", format_="RF64"))
    at = data.index(b"ds64") + 8
    struct.pack_into("<Q", data, at + 8, size)
    return bytes(data)


NO_SOUNDS = {
    "flac-says-more": (flac_that_says(20_000, tone(1)), "not_decodable"),
    "flac-says-hours": (flac_that_says(2**36 - 1, tone(1)), "too_long"),
    "wav-cut": (saved(tone(1))[:-500], "cut"),
    "wav-says-more": (wav_that_says(16_001, tone(1)), "cut"),
    "rf64-cut": (saved(tone(1), format_="RF64")[:-500], "cut"),
    "flac-cut": (saved(tone(1), format_="FLAC")[:3_000], "not_decodable"),
    "flac-head": (saved(tone(1), format_="FLAC")[:30], "not_decodable"),
    "ogg-cut": (saved(tone(1), format_="OGG")[:-1], "cut"),
    "ogg-cut-in-a-header": (saved(tone(1), format_="OGG")[:20], "cut"),
    "wav-head": (saved(tone(1))[:40], "not_decodable"),
    "nul": (b"\0", "not_decodable"),
    "words": (b"not a sound", "not_decodable"),
    "riff": (b"RIFF\xff\xff\xff\xffWAVEfmt ", "not_decodable"),
    "ones": (b"\xff" * 5_000, "not_decodable"),
    "au": (saved(tone(1), format_="AU"), "wrong_format"),
    "channels": (saved(tone(1, channels=17)), "channels"),
    "slow": (saved(tone(4, 1_000), 1_000), "sample_rate"),
    "fast": (saved(tone(0.2, 400_000), 400_000), "sample_rate"),
    "no-samples": (saved(tone(0)), "too_short"),
    "no-bytes": (b"", "empty"),
}


STREAMED = {
    "flac": flac_that_says(0, tone(1)),
    **{f"wav-{size:x}": wav_with_size(size, tone(1)) for size in (0, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)},
    "rf64": rf64_that_says(0, tone(1)),
    "wav-in-a-list": wav_with_size(0, tone(1), before=b"LIST\x04\0\0\0abcd"),
}


@pytest.mark.parametrize("data", STREAMED.values(), ids=STREAMED)
def test_a_stream_that_doesnt_say_its_length_is_read_to_its_end(data: bytes) -> None:
    np.testing.assert_allclose(decode_audio(data), decode_audio(saved(tone(1), subtype="PCM_16")), atol=1 / 32_767)


def test_a_stream_that_doesnt_say_its_length_is_bounded() -> None:
    for data in (flac_that_says(0, tone(17)), wav_with_size(0, tone(17))):
        assert refusal(data).code == "too_long"


@pytest.mark.parametrize(("data", "code"), NO_SOUNDS.values(), ids=NO_SOUNDS)
def test_what_is_no_sound_is_refused(data: bytes, code: str) -> None:
    error = refusal(data)
    assert error.code == code
    assert "object at 0x" not in error.message


def test_too_many_bytes_are_refused_unread() -> None:
    data = floats(tone(1))
    error = refusal(data, Limits(max_audio_bytes=len(data) - 1))
    assert error.code == "too_large"
    assert error.message == f"got {len(data)} bytes; at most {len(data) - 1} are accepted: cut it"


def test_a_small_file_cant_take_much_memory() -> None:
    """16 channels of 192 kHz for 16 s are 190 MB decoded: the most that the limits allow of half that rate."""
    data = saved(np.zeros((16 * 48_000, 16), np.float32)[:, :8], 48_000, "FLAC")
    assert len(data) < 100_000
    memory_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    preprocess(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory_kib < 150_000


FILES = [
    saved(tone(0.2), subtype="PCM_16"),
    saved(tone(0.2, 44_100, channels=2), 44_100, subtype="PCM_24"),
    floats(tone(0.2)),
    saved(tone(0.2), subtype="DOUBLE"),
    saved(tone(0.2, 8_000), 8_000, "FLAC"),
    saved(tone(0.3), format_="OGG"),
    saved(tone(0.3), format_="OGG", subtype="OPUS"),
    saved(tone(0.3), format_="MP3"),
]
CODES = {"not_decodable", "wrong_format", "sample_rate", "channels", "too_long", "too_short", "not_finite", "cut"}


def mutated(data: bytes, changes: Sequence[tuple[int, bytes]], cut: int) -> bytes:
    """Some bytes overwritten, most of them near the beginning, and perhaps the end cut off."""
    changed = bytearray(data)
    for position, new in changes:
        at = position % min(len(changed), 64 + position % len(changed))
        changed[at : at + len(new)] = new
    return bytes(changed[: len(changed) - cut % len(changed)])


def outcome(data: bytes) -> dict[str, Array] | InvalidInput:
    try:
        return preprocess(data)
    except InvalidInput as error:
        return error


edits = st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=4)), max_size=8)
hostile = st.binary(max_size=300) | st.builds(mutated, st.sampled_from(FILES), edits, st.just(0) | st.integers(0, 999))


@settings(max_examples=150, deadline=None)
@given(hostile)
def test_whatever_comes_is_prepared_or_refused(data: bytes) -> None:
    came = outcome(data)
    if isinstance(came, InvalidInput):
        assert came.field == "audio"
        assert came.code in CODES | {"empty"}
    else:
        sound, samples = came["input_values"], int(came["num_samples"][0])
        assert len(sound) in AUDIO_SAMPLES
        assert 1_600 <= samples <= len(sound)
        assert np.isfinite(sound).all()
        assert not sound[samples:].any()
