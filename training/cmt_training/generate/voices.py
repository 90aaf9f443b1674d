"""Speech with an emotion's prosody, in a person's voice.

How pitch, its range, rate, energy, voice quality and tremor go with emotions follows the findings of Banse & Scherer
(1996) and Juslin & Laukka (2003) in direction; irony is slower, lower and flatter (Rockwell 2000; Cheang & Pell 2008),
stress louder, higher and longer (Fry 1955, 1958). The sizes are our own choice.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from scipy.signal import lfilter

from cmt_pipeline.buckets import SAMPLE_RATE_HZ
from cmt_training.generate.espeak import SEMITONES_PER_PITCH, Utterance, sample_rate_hz, speak

Sound = NDArray[np.float64]  # [samples]

MIN_S, MAX_S = 1.0, 2.5  # of a clause
PAUSE_S = 0.08  # between two
FADE_S = 0.02
LEVEL = 0.1  # RMS of neutral speech
ROOM_DB = (-46.0, -38.0)  # the room's noise, against neutral speech
BASE_RATE_WPM = 185

#: Voices that sound the same each time; those with breath of their own (f2, f3, f5, …) don't.
HIGH_VARIANTS = ("+f1", "+f4", "+Annie", "+linda", "+steph", "+anika", "+Andrea", "+belinda")
LOW_VARIANTS = ("", "+m1", "+m2", "+m3", "+m4", "+m6", "+m7", "+adam")
LANGUAGES = ("en-us", "en", "en-gb-scotland")


@dataclass(frozen=True)
class Voice:
    """One person's. pitch: semitones from the variant's own; size: of the vocal tract, 1 is the variant's own."""

    name: str
    pitch: float
    pitch_range: float
    rate: float
    size: float
    breath: float


def voice_of(rng: np.random.Generator) -> Voice:
    """Somebody's voice."""
    return Voice(
        name=str(rng.choice(LANGUAGES)) + str(rng.choice(HIGH_VARIANTS + LOW_VARIANTS)),
        pitch=float(rng.uniform(-3, 3)),
        pitch_range=float(rng.uniform(0.8, 1.2)),
        rate=float(rng.uniform(0.9, 1.12)),
        size=float(rng.uniform(0.92, 1.1)),
        breath=float(rng.uniform(0, 0.25)),
    )


@dataclass(frozen=True)
class Prosody:
    """What an emotion changes at full strength. Ratios are given as their logarithms to the base 2."""

    pitch: float = 0.0  # semitones
    pitch_range: float = 0.0  # log2
    rate: float = 0.0  # log2
    energy_db: float = 0.0
    brightness_db: float = 0.0  # high frequencies against low ones
    tremor: float = 0.0  # of pitch, semitones
    roughness: float = 0.0  # of loudness, share
    breath: float = 0.0  # share
    rise: float = 0.0  # semitones from the beginning to the end
    pulse: float = 0.0  # how much words are hammered


PROSODY = {
    "neutral": Prosody(),
    "surprise": Prosody(pitch=4.5, pitch_range=1.0, rate=-0.05, energy_db=3, brightness_db=2, rise=5),
    "fear": Prosody(pitch=4.5, pitch_range=-0.6, rate=0.35, energy_db=-1, tremor=0.9, breath=0.35, rise=1),
    "sadness": Prosody(pitch=-2.5, pitch_range=-1.1, rate=-0.4, energy_db=-7, brightness_db=-6, breath=0.2, rise=-2.5),
    "joy": Prosody(pitch=3.5, pitch_range=0.9, rate=0.15, energy_db=4, brightness_db=3, rise=1.5, pulse=0.2),
    "disgust": Prosody(pitch=-3, pitch_range=-0.2, rate=-0.35, energy_db=-1, brightness_db=-1, roughness=0.6, rise=-3),
    "anger": Prosody(
        pitch=1.0, pitch_range=0.4, rate=0.2, energy_db=8, brightness_db=7, roughness=0.25, rise=-1, pulse=0.7
    ),
    "irony": Prosody(pitch=-2, pitch_range=-0.9, rate=-0.5, energy_db=2, rise=-1.5),
}
#: Added to that of the clause that is stressed, at full strength.
STRESS = Prosody(pitch=3, pitch_range=0.5, rate=-0.25, energy_db=7, brightness_db=3)
#: Standard deviations of what people do, whatever the emotion.
SPREAD = Prosody(1.2, 0.2, 0.08, 1.0, 0.8, 0.08, 0.04, 0.04, 0.9, 0.05)


def speech(said: Sequence[tuple[str, Prosody]], voice: Voice, noise: float, rng: np.random.Generator) -> bytes:
    """A 16 kHz mono FLAC file of clauses. noise: how spoilt the recording is, 0 to 1."""
    coloured = rng.spawn(2)
    clauses = [_voiced(_spoken(text, voice, prosody), voice, prosody, coloured[0]) for text, prosody in said]
    sound = _in_a_room(_joined(clauses, [prosody.energy_db for _, prosody in said]), len(said) * MAX_S, rng)
    if noise:
        sound = _spoilt(sound, noise, coloured[1])
    file = io.BytesIO()
    soundfile.write(file, np.clip(sound, -1, 1), SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def prosody_of(emotion: str, strength: float, rng: np.random.Generator) -> Prosody:
    """What an emotion makes of somebody's voice this time. strength: 0 to 1."""
    target = np.array(astuple(PROSODY[emotion]))
    spread = np.array(astuple(SPREAD))
    return Prosody(*(float(value) for value in strength * target + rng.normal(0, 1, len(spread)) * spread))


def stressed(prosody: Prosody, strength: float) -> Prosody:
    """strength: 0 to 1."""
    return Prosody(*(own + strength * more for own, more in zip(astuple(prosody), astuple(STRESS), strict=True)))


def _spoken(text: str, voice: Voice, prosody: Prosody) -> Sound:
    """espeak-ng's part: words, pitch, range and rate; silence around them is cut off."""
    pitch = 50 + (voice.pitch + prosody.pitch) / SEMITONES_PER_PITCH
    utterance = Utterance(
        text=text,
        voice=voice.name,
        rate_wpm=round(float(np.clip(BASE_RATE_WPM * voice.rate * 2**prosody.rate, 90, 350))),
        pitch=round(float(np.clip(pitch, 0, 99))),
        pitch_range=round(float(np.clip(50 * voice.pitch_range * 2**prosody.pitch_range, 0, 99))),
    )
    sound = speak(utterance).astype(np.float64) / 32_768
    loud = np.flatnonzero(np.abs(sound) > 0.01)
    return sound[loud[0] : loud[-1] + 1] if len(loud) else sound


def _voiced(sound: Sound, voice: Voice, prosody: Prosody, rng: np.random.Generator) -> Sound:
    """What espeak-ng can't do: the contour, tremor, the vocal tract's size, voice quality. At 16 kHz, RMS 1."""
    rate_hz = sample_rate_hz()
    time_s = np.arange(int(len(sound) * 1.3)) / rate_hz
    share = np.minimum(time_s * rate_hz / len(sound), 1)
    tremor = prosody.tremor * np.sin(2 * np.pi * rng.uniform(5.5, 8.5) * time_s + rng.uniform(0, 2 * np.pi))
    semitones = prosody.rise * (share - 0.5) + np.maximum(prosody.tremor, 0) * tremor
    place = np.cumsum(2 ** (semitones / 12) / voice.size)
    sound = np.interp(place[place < len(sound) - 1], np.arange(len(sound)), sound)
    sound = soxr.resample(sound, rate_hz, SAMPLE_RATE_HZ)[: int(MAX_S * SAMPLE_RATE_HZ)]
    time_s = np.arange(len(sound)) / SAMPLE_RATE_HZ
    loudness = 1 - np.clip(prosody.roughness, 0, 0.9) * (0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(28, 45) * time_s))
    loudness *= 1 + np.clip(prosody.pulse, 0, 1) * np.sin(2 * np.pi * rng.uniform(2.5, 4) * time_s)
    breath = np.clip(voice.breath + prosody.breath, 0, 0.8) * _envelope(sound) * rng.normal(0, 1, len(sound))
    sound = _brightened(sound * loudness + 0.6 * breath, prosody.brightness_db)
    return np.asarray(sound / (np.sqrt(np.mean(sound**2)) + 1e-9))


def _envelope(sound: Sound) -> Sound:
    """How loud it is from moment to moment."""
    return np.asarray(lfilter([0.01], [1, -0.99], np.abs(sound)))


def _brightened(sound: Sound, brightness_db: float) -> Sound:
    """High frequencies raised against low ones, or lowered, about 1.5 kHz."""
    low = np.asarray(lfilter([0.45], [1, -0.55], sound))
    return np.asarray(low * 10 ** (-brightness_db / 40) + (sound - low) * 10 ** (brightness_db / 40))


def _joined(clauses: Sequence[Sound], energies_db: Sequence[float]) -> Sound:
    """One after another, each as loud as it is meant."""
    pause = np.zeros(int(PAUSE_S * SAMPLE_RATE_HZ))
    loud = [sound * LEVEL * 10 ** (energy_db / 20) for sound, energy_db in zip(clauses, energies_db, strict=True)]
    return np.concatenate([loud[0], *(part for sound in loud[1:] for part in (pause, sound))])


def _in_a_room(sound: Sound, max_s: float, rng: np.random.Generator) -> Sound:
    """Over a room's noise, with a little quiet around; at least MIN_S long."""
    fade = int(FADE_S * SAMPLE_RATE_HZ)
    sound[-fade:] *= np.linspace(1, 0, len(sound[-fade:]))
    before = int(rng.uniform(0.02, 0.12) * SAMPLE_RATE_HZ)
    length = int(np.clip(before + len(sound) + 0.05 * SAMPLE_RATE_HZ, MIN_S * SAMPLE_RATE_HZ, max_s * SAMPLE_RATE_HZ))
    room = LEVEL * 10 ** (rng.uniform(*ROOM_DB) / 20) * rng.normal(0, 1, length)
    sound = sound[: length - before]
    room[before : before + len(sound)] += sound
    return room


def _spoilt(sound: Sound, noise: float, rng: np.random.Generator) -> Sound:
    """Under hiss, hum, or other people's murmur; stronger noise leaves less of the voice."""
    kind = int(rng.integers(3))
    time_s = np.arange(len(sound)) / SAMPLE_RATE_HZ
    other = rng.normal(0, 1, len(sound))
    if kind == 1:
        other = np.sin(2 * np.pi * rng.uniform(90, 300) * time_s) + 0.4 * other
    elif kind == 2:
        murmur = lfilter([0.2], [1, -0.8], other)
        other = murmur * (1 + 0.8 * np.sin(2 * np.pi * rng.uniform(2, 5) * time_s + rng.uniform(0, 6)))
    level_db = 14 - 28 * noise  # of the voice over the noise
    loud = np.sqrt(np.mean(sound**2)) * 10 ** (-level_db / 20)
    mixed = sound + other * loud / np.sqrt(np.mean(other**2))
    return np.asarray(mixed * min(1.0, 0.9 / float(np.abs(mixed).max())))
