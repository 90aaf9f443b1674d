"""Real containers of a second or two, made with PyAV: pictures whose colour tells the moment, sound of known tones."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

RATE_HZ = 48_000
FPS = 10


def write_video(
    path: Path,
    seconds: float = 1.0,
    size: tuple[int, int] = (64, 48),
    codec: str = "mpeg4",
    layout: str | None = "stereo",
    halves: bool = False,
) -> Path:
    """Red goes from 0 to 250 over its length; with halves, the left half is green and the right one blue.

    layout: of channels, the first of which has a tone and the others silence; None for a video without sound.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream(codec, rate=FPS)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        audio = None
        if layout is not None:
            audio = container.add_stream("aac" if path.suffix == ".mp4" else "mp2", rate=RATE_HZ)
            audio.layout = layout
        frames = round(seconds * FPS)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(_picture(number / max(frames - 1, 1), size, halves), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None:
            sound = av.AudioFrame.from_ndarray(_tone(seconds, audio.layout.nb_channels), format="fltp", layout=layout)
            sound.sample_rate, sound.pts, sound.time_base = RATE_HZ, 0, Fraction(1, RATE_HZ)
            container.mux(audio.encode(_converted(sound, audio)))
            container.mux(audio.encode(None))
    return path


def _picture(share: float, size: tuple[int, int], halves: bool) -> np.ndarray:
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = round(250 * share)
    if halves:
        pixels[:, : width // 2, 1] = 200
        pixels[:, width // 2 :, 2] = 200
    return pixels


def _tone(seconds: float, channels: int) -> np.ndarray:
    sound = np.zeros((channels, round(seconds * RATE_HZ)), np.float32)
    sound[0] = 0.5 * np.sin(2 * np.pi * 440 * np.arange(sound.shape[1]) / RATE_HZ)
    return sound


def _converted(frame: av.AudioFrame, stream: av.AudioStream) -> av.AudioFrame:
    """In the format that the stream's encoder takes."""
    resampler = av.AudioResampler(format=stream.codec_context.format.name, layout=stream.layout, rate=RATE_HZ)
    return resampler.resample(frame)[0]
