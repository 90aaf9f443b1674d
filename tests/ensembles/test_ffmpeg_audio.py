"""MP3: every frame that there is, whatever the file says of itself. The truth is the sound that was encoded."""

from __future__ import annotations

import io
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from cmt_pipeline.audio import decode_audio
from cmt_pipeline.errors import InvalidInput
from cmt_pipeline.limits import Limits
from cmt_pipeline.tensors import Array
from media.sounds import tagged

RATE = 44_100
SECONDS = 8.8
DELAY = 2 * 1_152 / RATE  # of the encoder and the decoder; without its header nothing says how much


def speech_like() -> Array:
    """A tone whose loudness comes and goes, and silence: a variable bit rate varies. [samples] float32."""
    time_s = np.arange(round(SECONDS * RATE)) / RATE
    loud = np.clip(np.sin(2 * np.pi * 0.4 * time_s), 0, None)
    noise = np.random.default_rng(0).standard_normal(len(time_s))
    return (0.4 * loud * (np.sin(2 * np.pi * 300 * time_s) + 0.2 * noise)).astype(np.float32)


SOUND = speech_like()


def encoded(header: bool = True, **options: str) -> bytes:
    """By LAME, as ffmpeg's command line does. header: that of Xing, which says how many frames there are."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3", options={"write_xing": str(int(header))}) as file:
        stream: Any = file.add_stream("libmp3lame", rate=RATE, layout="mono", options=options)
        frame = av.AudioFrame.from_ndarray(SOUND[None], format="fltp", layout="mono")
        frame.sample_rate = RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            file.mux(packet)
    return buffer.getvalue()


VARIABLE, CONSTANT = encoded(header=False, global_quality="472", flags="+qscale"), encoded(b="64000")
WHOLE = {
    "variable bit rate, no header": VARIABLE,
    "constant bit rate": CONSTANT,
    "a picture of 264 kB in front": tagged(CONSTANT, 264_000),
    "a picture in front, no header": tagged(VARIABLE, 264_000),
    "starts in the middle of a frame": VARIABLE[97:],
    "something else in front": b"\0" * 300 + VARIABLE,
    "metadata at the end": CONSTANT + b"TAG".ljust(128, b" "),
}


@pytest.mark.parametrize("data", WHOLE.values(), ids=WHOLE)
def test_all_of_it_is_read(data: bytes) -> None:
    came = decode_audio(data)
    assert len(came) / 16_000 == pytest.approx(SECONDS, abs=2 * DELAY)
    loudness = [np.abs(part).mean() for part in np.array_split(came, 44)]
    expected = [np.abs(part).mean() for part in np.array_split(SOUND, 44)]
    np.testing.assert_allclose(loudness, expected, atol=0.02)


def test_libsndfile_alone_would_end_too_early() -> None:
    """Why there is another decoder."""
    sound, rate = soundfile.read(io.BytesIO(VARIABLE))
    assert abs(len(sound) / rate - SECONDS) > 1


@pytest.mark.parametrize("data", [VARIABLE[: len(VARIABLE) // 2], CONSTANT[: len(CONSTANT) // 2]])
def test_half_a_file_is_half_the_sound(data: bytes) -> None:
    """Nothing in an MP3 says for sure how long it is."""
    assert 0.2 * SECONDS < len(decode_audio(data)) / 16_000 < 0.8 * SECONDS


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xfb",
        b"\xff\xfb\x90\x64" + bytes(1_000),
        b"ID3" + b"\xff" * 2_000,
        tagged(b"", 2_000),
        b"\xff\xf1" * 2_000,
    ],
    ids=["two bytes", "one frame, empty", "a tag that lies", "a tag alone", "AAC"],
)
def test_what_only_begins_like_one_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        decode_audio(data)


def test_too_much_is_refused_before_it_is_all_decoded() -> None:
    with pytest.raises(InvalidInput) as refused:
        decode_audio(VARIABLE * 60)
    assert refused.value.code == "too_long"


def test_limits_of_the_sample_rate_hold_here_too() -> None:
    with pytest.raises(InvalidInput) as refused:
        decode_audio(CONSTANT, Limits(max_sample_rate_hz=32_000))
    assert refused.value.code == "sample_rate"
