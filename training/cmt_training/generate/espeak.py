"""espeak-ng as a library: text -> speech. That of the package espeakng-loader, else the system's."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cmt_training.examples import DataError

#: Of speak_lib.h.
_SYNCHRONOUS, _DONT_EXIT, _UTF8, _CHARACTERS = 2, 0x8000, 1, 1
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
FULL_VOLUME = 100
SEMITONES_PER_PITCH = 0.24  # its pitch and range go from 0 to 100, 50 is the voice's own

_SynthCallback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Utterance:
    """voice: language, or language+variant; rate_wpm: words a minute; pitch, pitch_range: 0 to 100."""

    text: str
    voice: str
    rate_wpm: int
    pitch: int
    pitch_range: int


@dataclass(frozen=True)
class _Engine:
    library: ctypes.CDLL
    rate_hz: int
    version: str


def version() -> str:
    """`espeak-ng 1.52.0`. Raises DataError if there is none."""
    return f"espeak-ng {_engine().version}"


def sample_rate_hz() -> int:
    """Raises DataError if there is no espeak-ng."""
    return _engine().rate_hz


def speak(utterance: Utterance) -> NDArray[np.int16]:
    """Samples [samples] of `sample_rate_hz()`; the same for the same utterance and version. Raises DataError.

    The library carries noise and phases over from one utterance to the next, so each is spoken by a fork of the
    process, in which nothing was spoken before. Call it in a process that runs no other threads.
    """
    engine = _engine()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(_spoken(engine.library, utterance))
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        sound = pipe.read()
    _, status = os.waitpid(child, 0)
    if status or not sound:
        raise DataError(f"espeak-ng {engine.version} can't say {utterance}: install its English voices")
    return np.frombuffer(sound, "<i2")


def _spoken(library: ctypes.CDLL, utterance: Utterance) -> bytes:
    pieces: list[bytes] = []

    def on_samples(samples: ctypes._Pointer[ctypes.c_short], count: int, _: int) -> int:
        if samples and count:
            pieces.append(ctypes.string_at(samples, 2 * count))
        return 0

    callback = _SynthCallback(on_samples)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(utterance.voice.encode()):
        return b""
    settings = {
        _RATE: utterance.rate_wpm,
        _VOLUME: FULL_VOLUME,
        _PITCH: utterance.pitch,
        _RANGE: utterance.pitch_range,
    }
    for setting, value in settings.items():
        library.espeak_SetParameter(setting, value, 0)
    text = utterance.text.encode() + b"\0"
    library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, _CHARACTERS, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return b"".join(pieces)


@functools.cache
def _engine() -> _Engine:
    """Loaded, and ready to speak."""
    path, data = _installed()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise DataError(f"{path} can't be loaded ({error}): {_MEND}") from None
    rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _DONT_EXIT)
    if rate_hz <= 0:
        raise DataError(f"{path} finds no voices: {_MEND}")
    library.espeak_Info.restype = ctypes.c_char_p
    return _Engine(library, rate_hz, library.espeak_Info(None).decode().split()[0])


_MEND = 'pip install "cmt-triton[train]", or install espeak-ng'


def _installed() -> tuple[str, bytes | None]:
    """The library and its voices; None for the system's."""
    if importlib.util.find_spec("espeakng_loader") is not None:
        import espeakng_loader

        return espeakng_loader.get_library_path(), os.fsencode(espeakng_loader.get_data_path())
    path = ctypes.util.find_library("espeak-ng")
    if path is None:
        raise DataError(f"no espeak-ng is installed: {_MEND}")
    return path, None
