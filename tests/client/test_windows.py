"""Long sound: cut into equal windows that lose and change no sample, and answered as one."""

from __future__ import annotations

import asyncio
import io
import math
import struct
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from cmt_client import (
    AsyncEmotionClient,
    AsyncFakeTransport,
    EmotionClient,
    FakeTransport,
    InferenceFailed,
    InvalidInput,
    LongEmotion,
    Sound,
    WindowEmotion,
)
from cmt_client.arrays import wav_from_sound
from cmt_client.operations import Infer
from cmt_client.windows import Window, cut, long_emotion
from cmt_pipeline.audio import decode_audio
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from media.sounds import SOUNDS, encoded, sound

RATE_HZ = 4_000
RANDOM = np.random.default_rng(7)
SHORT, LONG = (RANDOM.integers(-9_000, 9_000, (seconds * RATE_HZ + 1, 2)).astype(np.int16) for seconds in (2, 5))
#: A window holds 2 s.
LIMITS = replace(DEFAULT_LIMITS, max_audio_s=2.0)

Array = np.ndarray[Any, Any]


def written(samples: Array, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE_HZ, format=kind, subtype=subtype)
    return file.getvalue()


def joined(windows: Iterator[Window]) -> Array:
    return np.concatenate([soundfile.read(io.BytesIO(w.audio), dtype="float32", always_2d=True)[0] for w in windows])


@given(st.integers(0, 10**6), st.integers(4_000, 48_000), st.floats(0.2, 16))
def test_windows_are_equal_and_of_legal_length(frames: int, rate: int, window_s: float) -> None:
    windows = [*cut(Sound(np.broadcast_to(np.int16(0), frames), rate), DEFAULT_LIMITS, window_s)]
    assert bool(windows) == (frames > int(window_s * rate))
    sizes = [round((w.end_s - w.start_s) * rate) for w in windows]
    assert sum(sizes) == (frames if windows else 0)
    assert all(first.end_s == second.start_s for first, second in pairwise(windows))
    if windows:
        assert windows[0].start_s == 0
        assert max(sizes) <= window_s * rate
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= int(DEFAULT_LIMITS.min_audio_s * rate)


@pytest.mark.parametrize("samples", [LONG, LONG.T, LONG[:, 0], LONG / np.float32(2**15), LONG.astype(np.int32) * 2**16])
def test_windows_of_samples_hold_them_all(samples: Array) -> None:
    windows = [*cut((samples, RATE_HZ), LIMITS)]
    assert len(windows) == 3
    whole = soundfile.read(io.BytesIO(wav_from_sound(Sound(samples, RATE_HZ), LIMITS)), dtype="float32", always_2d=True)
    assert np.array_equal(joined(iter(windows)), whole[0])


def test_a_quiet_window_of_32_bits_is_not_taken_for_16() -> None:
    samples = LONG.astype(np.int32) * 2**16
    samples[: len(samples) // 3] = 1
    assert len([*cut((samples, RATE_HZ), LIMITS)]) == 3


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_windows_of_a_wav_file_are_its_bytes(subtype: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # not needed
    data = written(LONG, kind, subtype)
    windows = [*cut(data, LIMITS)]
    assert len(windows) == 3
    assert np.array_equal(joined(iter(windows)), soundfile.read(io.BytesIO(data), dtype="float32")[0])
    assert {soundfile.info(io.BytesIO(w.audio)).subtype for w in windows} == {subtype}


@pytest.mark.parametrize("size", [0, 0x7FFFF000, 0xFFFFFFFF])
def test_a_streamed_wav_file_is_cut_to_its_end(size: int) -> None:
    data = bytearray(written(LONG))
    struct.pack_into("<I", data, data.index(b"data") + 4, size)
    assert np.array_equal(joined(cut(bytes(data), LIMITS)), LONG / np.float32(2**15))


def test_a_cut_wav_file_is_refused() -> None:
    with pytest.raises(InvalidInput) as raised:
        next(cut(written(LONG)[:-100], LIMITS))
    assert (raised.value.field, raised.value.code) == ("audio", "cut")


def test_windows_of_a_stream_whose_channels_change_are_its_mean() -> None:
    """As the server answers it."""
    stream = encoded("adts", "aac") + encoded("adts", "aac", channels=2)
    limits = replace(LIMITS, max_audio_s=0.5)
    assert np.array_equal(joined(cut(stream, limits))[:, 0], decode_audio(stream))


def test_windows_of_eight_planes_are_their_mean() -> None:
    """Of which PyAV takes what lies behind them for more."""
    found = joined(cut(SOUNDS["M4A, ALAC in 7.1"].make(), replace(LIMITS, max_audio_s=0.5)))
    assert np.abs(found[:, 0] - sound()).max() <= 1 / 32_000


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", "PCM_16"), ("AIFF", "PCM_16"), ("WAV", "IMA_ADPCM")])
def test_windows_of_a_lossless_file_are_its_mean(kind: str, subtype: str) -> None:
    data = written(LONG[:, 0], kind, subtype)
    truth = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    found = joined(cut(data, LIMITS))[:, 0]
    assert np.abs(found[: len(truth)] - truth).max() <= 2**-15
    assert np.array_equal(
        joined(cut(written(LONG, "FLAC"), LIMITS))[:, 0], LONG.mean(axis=1).astype(np.float32) / 2**15
    )


def compressed(codec: str, suffix: str, rate: int) -> bytes:
    """5 s of a tone of half the full scale."""
    file = io.BytesIO()
    with av.open(file, "w", format={"m4a": "mp4"}.get(suffix, suffix)) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.layout = "mono"
        tone = np.sin(np.arange(5 * rate, dtype=np.float32) / 30)[None] / 2
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = rate
        encoder = av.AudioResampler(stream.format.name, "mono", rate, stream.codec_context.frame_size or 1024)
        for part in (*encoder.resample(frame), *encoder.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return file.getvalue()


@pytest.mark.parametrize(("codec", "suffix"), [("mp3", "mp3"), ("aac", "m4a"), ("libopus", "webm")])
def test_windows_of_a_compressed_file_are_what_it_decodes_to(codec: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"long.{suffix}"
    path.write_bytes(compressed(codec, suffix, 48_000))
    windows = [*cut(path, LIMITS)]
    assert len(windows) == 3
    assert windows[-1].end_s == pytest.approx(5, abs=0.1)
    found = joined(iter(windows))[:, 0]
    with av.open(str(path)) as container:
        truth = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert np.array_equal(found, truth)
    assert np.sqrt(np.mean(found**2)) == pytest.approx(0.5 / math.sqrt(2), rel=0.1)


@pytest.mark.parametrize("kind", ["FLAC", "AIFF", "m4a", "webm"])
@pytest.mark.parametrize("on_disk", [True, False])
def test_a_cut_file_is_refused(kind: str, on_disk: bool, tmp_path: Path) -> None:
    codecs = {"m4a": "aac", "webm": "libopus"}
    data = compressed(codecs[kind], kind, 48_000) if kind in codecs else written(LONG, kind)
    path = tmp_path / "cut"
    path.write_bytes(data[: len(data) * 3 // 4])
    with pytest.raises(InvalidInput) as raised:
        next(cut(path if on_disk else path.read_bytes(), LIMITS))
    assert raised.value.field == "audio"
    assert raised.value.code in ("cut", "not_decodable")
    assert raised.value.code == "cut" or kind == "m4a"  # whose index is at its end


def test_a_sample_rate_that_changes_is_refused() -> None:
    with pytest.raises(InvalidInput, match="got sample rates of 16000 and 44100 Hz") as raised:
        next(cut(compressed("mp3", "mp3", 16_000) + compressed("mp3", "mp3", 44_100), LIMITS))
    assert raised.value.code == "sample_rate"


def test_without_pyav_a_compressed_file_is_not_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert not [*cut(written(LONG, "FLAC"), LIMITS)]
    fake = FakeTransport()
    fake.fail(InvalidInput("audio", "too_long", "got 5 s; at most 2 s are accepted"))
    with (
        EmotionClient("fake:1", transport=fake, limits=LIMITS) as client,
        pytest.raises(InvalidInput, match=r"pip install 'cmt-triton\[preprocess\]'") as raised,
    ):
        client.predict_long(audio=written(LONG, "FLAC"))
    assert raised.value.code == "too_long"


@pytest.mark.parametrize("data", [b"", b"no sound" * 99, b"RIFF\0\0\0\0WAVEfmt ", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_sound_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput) as raised:
        next(cut(data, LIMITS))
    assert (raised.value.field, raised.value.code) == ("audio", "not_decodable")


def test_what_is_too_large_for_a_request_is_cut_too() -> None:
    limits = Limits(max_audio_bytes=20_000)
    windows = [*cut((SHORT, RATE_HZ), limits)]
    assert len(windows) == 3
    assert max(len(w.audio) for w in windows) <= 20_000


@pytest.mark.parametrize("window_s", [0.0, 0.1, 16.1, math.nan])
def test_a_window_that_the_limits_forbid_is_refused(window_s: float) -> None:
    with pytest.raises(ValueError, match=r"expected 0\.2 to 16"):
        next(cut((LONG, RATE_HZ), DEFAULT_LIMITS, window_s))


def asked(fake: FakeTransport) -> list[Infer]:
    return [call for call in fake.calls if isinstance(call, Infer)]


def test_every_window_is_asked_with_what_stands_beside() -> None:
    fake = FakeTransport()
    with EmotionClient("fake:1", transport=fake, limits=LIMITS) as client:
        answer = client.predict_long(audio=(LONG, RATE_HZ), image=io.BytesIO(b"image"), text="text", concurrency=2)
    windows = [*cut((LONG, RATE_HZ), LIMITS)]
    assert [(w.start_s, w.end_s) for w in answer.windows] == [(w.start_s, w.end_s) for w in windows]
    assert {call.inputs["audio"][0, 0] for call in asked(fake)} == {w.audio for w in windows}
    assert {call.inputs["image"][0, 0] for call in asked(fake)} == {b"image"}
    assert {call.inputs["text"][0, 0] for call in asked(fake)} == {b"text"}


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


def test_a_short_sound_is_sent_as_it_is() -> None:
    data = written(SHORT[:RATE_HZ])
    for source in (data, io.BytesIO(data), Pipe(data)):
        fake = FakeTransport()
        with EmotionClient("fake:1", transport=fake, limits=LIMITS) as client:
            answer = client.predict_long(audio=source)
        assert not answer.windows
        assert [call.inputs["audio"][0, 0] for call in asked(fake)] == [data]


def test_asyncio_answers_the_same() -> None:
    async def answers(fake: FakeTransport) -> list[LongEmotion]:
        async with AsyncEmotionClient("fake:1", transport=AsyncFakeTransport(fake), limits=LIMITS) as client:
            return [
                await client.predict_long(audio=audio, text="text")
                for audio in (Pipe(written(LONG)), written(SHORT[:RATE_HZ]))
            ]

    fake = FakeTransport()
    long, short = asyncio.run(answers(fake))
    with EmotionClient("fake:1", transport=FakeTransport(), limits=LIMITS) as client:
        blocking = client.predict_long(audio=Pipe(written(LONG)), text="text")
    assert replace(long.whole, request_id="") == replace(blocking.whole, request_id="")
    assert [w.start_s for w in long.windows] == [w.start_s for w in blocking.windows]
    assert not short.windows
    assert len(asked(fake)) == 4


def test_the_whole_is_the_mean_weighted_by_length() -> None:
    with EmotionClient("fake:1", transport=FakeTransport()) as client:
        joy = client.predict(text="text")
    fear = replace(joy, label="fear", probabilities={**joy.probabilities, "joy": 0.0, "fear": 1.0}, valence=-1.0)
    answer = long_emotion([WindowEmotion(0, 1, joy), WindowEmotion(1, 4, fear)])
    assert answer.whole.label == "fear"
    for name, probability in answer.whole.probabilities.items():
        assert probability == pytest.approx((joy.probabilities[name] + 3 * fear.probabilities[name]) / 4)
        assert math.exp(answer.whole.logits[name]) == pytest.approx(probability)
    assert answer.whole.probability == answer.whole.probabilities["fear"]
    assert answer.whole.valence == pytest.approx((joy.valence - 3) / 4)
    assert answer.to_json()["windows"][1]["label"] == "fear"
    with pytest.raises(InferenceFailed, match="releases 1 and 2"):
        long_emotion([WindowEmotion(0, 1, joy), WindowEmotion(1, 4, replace(fear, release=2))])


class Slow(io.BytesIO):
    """Is read when it is told so."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked, self.go = threading.Event(), threading.Event()

    def read(self, size: int | None = -1) -> bytes:
        self.asked.set()
        self.go.wait()
        return super().read(size)


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_cancelled_question_is_cancelled_while_its_file_is_read(kind: str) -> None:
    async def cancelled(file: Slow) -> None:
        async with AsyncEmotionClient("fake:1", transport=AsyncFakeTransport(), limits=LIMITS) as client:
            asking = client.predict_long(audio=file) if kind == "audio" else client.predict_video(file)
            task = asyncio.create_task(asking)
            await asyncio.to_thread(file.asked.wait)
            task.cancel()
            try:
                with pytest.raises(asyncio.CancelledError):
                    await task
            finally:
                file.go.set()

    asyncio.run(cancelled(Slow(written(LONG))))
