"""Sound longer than a request may be: windows of equal length, and one answer for all of them.

The windows follow each other without overlap. What stands for the whole is the mean of their probabilities, valence,
arousal and attention, weighted by their lengths.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from cmt_client.errors import InferenceFailed, InvalidInput
from cmt_client.recording import recording_of
from cmt_client.result import Emotion
from cmt_pipeline.limits import Limits

WAV_HEADER_BYTES = 4_096  # at most, of a window
#: What is kept of a window's answer; the rest is the same for all.
SHOWN = ("label", "probability", "probabilities", "valence", "arousal")


@dataclass(frozen=True)
class Window:
    """A piece of sound, as a file, and where it lies."""

    start_s: float
    end_s: float
    audio: bytes


@dataclass(frozen=True)
class WindowEmotion:
    """What one window expresses."""

    start_s: float
    end_s: float
    emotion: Emotion


@dataclass(frozen=True)
class LongEmotion:
    """What a sound of any length expresses: as a whole, and window by window; no windows where it wasn't cut."""

    whole: Emotion
    windows: tuple[WindowEmotion, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The whole's, and `windows`: their start, end, label, probabilities, valence and arousal."""
        windows = [
            {"start_s": w.start_s, "end_s": w.end_s, **{name: getattr(w.emotion, name) for name in SHOWN}}
            for w in self.windows
        ]
        return {**self.whole.to_json(), "windows": windows}


def cut(audio: Any, limits: Limits, window_s: float | None = None) -> Generator[Window, None, None]:
    """The windows of an AudioInput, of at most window_s seconds each (None: the limit); none where one holds it all.

    Equal lengths: none is shorter than half a window. A file that only FFmpeg reads isn't cut where PyAV isn't
    installed. Raises InvalidInput; ValueError for a window that the limits don't allow.
    """
    _longest_s(limits, window_s)
    with recording_of(audio, limits) as recording:
        if recording is None:
            return
        edges = edges_of(recording.frames, recording.rate_hz, recording.frame_bytes, limits, window_s)
        if len(edges) <= 2:
            return
        pieces = recording.pieces(edges)
        for (begin, end), piece in zip(pairwise(edges), pieces, strict=True):
            yield Window(begin / recording.rate_hz, end / recording.rate_hz, piece)


@contextmanager
def uncut_explained() -> Iterator[None]:
    """A refusal of its block as too long says why the sound wasn't cut."""
    try:
        yield
    except InvalidInput as error:
        if (error.field, error.code) != ("audio", "too_long"):
            raise
        told = (
            "what isn't WAV is cut where PyAV is installed (pip install 'cmt-triton[preprocess]'), "
            "and all at the client's own limits or window_s"
        )
        raise InvalidInput(error.field, error.code, f"{error.message}; {told}") from error


def edges_of(
    frames: int, rate_hz: int, frame_bytes: int, limits: Limits, window_s: float | None = None
) -> Sequence[int]:
    """Frame numbers where the windows begin, and the last one ends. ValueError for a window out of the limits."""
    fit = (limits.max_audio_bytes - WAV_HEADER_BYTES) // frame_bytes
    most = max(1, min(int(_longest_s(limits, window_s) * rate_hz), fit))
    windows = math.ceil(frames / most)
    return [number * frames // windows for number in range(windows + 1)] if windows else (0,)


def _longest_s(limits: Limits, window_s: float | None) -> float:
    longest_s = limits.max_audio_s if window_s is None else window_s
    if not 2 * limits.min_audio_s <= longest_s <= limits.max_audio_s:
        raise ValueError(f"window_s: got {longest_s:g}; expected {2 * limits.min_audio_s:g} to {limits.max_audio_s:g}")
    return longest_s


def long_emotion(windows: Sequence[WindowEmotion]) -> LongEmotion:
    """One answer of those of all windows. Raises InferenceFailed where two releases gave them."""
    whole = mean_emotion([w.emotion for w in windows], [w.end_s - w.start_s for w in windows])
    return LongEmotion(whole, tuple(windows))


def mean_emotion(emotions: Sequence[Emotion], weights: Sequence[float] | None = None) -> Emotion:
    """The mean of the answers for parts of one thing. Raises InferenceFailed where two releases gave them."""
    first = emotions[0]
    releases = sorted({(emotion.release, emotion.digest) for emotion in emotions})
    if len(releases) > 1:
        numbers = " and ".join(str(number) for number, _ in releases)
        raise InferenceFailed(f"the parts of one recording were answered by releases {numbers}: ask again")

    def mean(values: Sequence[float]) -> float:
        return float(np.average(values, weights=weights))

    def mean_if_read(values: Sequence[float | None]) -> float | None:
        read = [value for value in values if value is not None]
        return mean(read) if len(read) == len(values) else None

    probabilities: dict[str, float] = {
        name: mean([e.probabilities[name] for e in emotions]) for name in first.probabilities
    }
    label = max(probabilities, key=lambda name: probabilities[name])
    tiny = float(np.finfo(np.float64).tiny)  # a probability may be 0
    return replace(
        first,
        label=label,
        probability=probabilities[label],
        probabilities=probabilities,
        valence=mean_if_read([e.valence for e in emotions]),
        arousal=mean_if_read([e.arousal for e in emotions]),
        attention={name: mean([e.attention[name] for e in emotions]) for name in first.attention},
        logits={name: math.log(max(p, tiny)) for name, p in probabilities.items()},
    )
