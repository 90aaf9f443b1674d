"""A corpus of a few dozen items whose image, sound and words each tell the label, for tests of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from cmt_pipeline.buckets import SAMPLE_RATE_HZ
from cmt_training.examples import SPLITS, DataSet, Example, Media

LABELS = ("neutral", "joy", "anger")
WORDS = {
    "neutral": ("the meeting is at noon", "it is on the table"),
    "joy": ("what a wonderful happy day", "i love this so much"),
    "anger": ("i hate this stupid thing", "get out of here now"),
}


def small_corpus(folder: Path, counts: tuple[int, int, int] = (24, 9, 9), seed: int = 0) -> DataSet:
    """counts: items of training, validation and test. Every fifth item lacks one modality."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    examples = []
    for split, count in zip(SPLITS, counts, strict=True):
        for number in range(count):
            label = LABELS[number % len(LABELS)]
            name = f"{split}-{number}"
            image, audio = folder / f"{name}.png", folder / f"{name}.wav"
            _image(label, rng).save(image)
            soundfile.write(audio, _sound(label, rng), SAMPLE_RATE_HZ)
            absent = ("image", "audio", "text")[number // 5 % 3] if number % 5 == 4 else ""
            examples.append(
                Example(
                    id=name,
                    split=split,
                    label=label,
                    image=None if absent == "image" else Media(image),
                    audio=None if absent == "audio" else Media(audio),
                    text=None if absent == "text" else str(rng.choice(WORDS[label])),
                    valence=float(LABELS.index(label) - 1) if number % 2 else None,
                    arousal=0.5 if number % 2 else None,
                    cues={"image": (float(LABELS.index(label)), 1.0)} if absent != "image" else {},
                )
            )
    return DataSet("small", "meld", tuple(examples))


def table_of(data: DataSet, path: Path, names: Mapping[str, str] | None = None) -> Path:
    """A table of examples whose media lie in one folder. names: other ones for the labels."""
    rows = [["image", "audio", "text", "label", "split"]]
    for e in data.examples:
        files = [media.path.name if media else "" for media in (e.image, e.audio)]
        rows.append([*files, e.text or "", names[e.label] if names else e.label, e.split])
    path.write_text("".join(",".join(row) + "\n" for row in rows))
    return path


def _image(label: str, rng: np.random.Generator) -> Image.Image:
    """A bright disc, whose colour tells the label."""
    pixels = rng.integers(0, 60, (40, 40, 3))
    pixels[8:32, 8:32, LABELS.index(label)] += 150
    return Image.fromarray(pixels.astype(np.uint8))


def _sound(label: str, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """A tone, whose pitch tells the label, of 0.3 to 0.6 s."""
    time = np.arange(int(rng.uniform(0.3, 0.6) * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tone = np.sin(2 * np.pi * (200, 500, 1200)[LABELS.index(label)] * time)
    sound = 0.3 * tone + 0.02 * rng.standard_normal(len(time))
    return sound.astype(np.float32)
