"""Seeded inputs for calibration and parity, in the contract's shapes, through the real preprocessing.

Pictures are blurred noise with a face-like oval, sounds are voiced chirps with pauses, sentences come from a short
list: enough variety to set quantisers and to compare engines. Whoever has data calibrates with a folder of their own.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cmt_pipeline.buckets import AUDIO_SECONDS, SAMPLE_RATE_HZ, TEXT_TOKENS
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.preprocess import Preprocessor, collate
from cmt_pipeline.tensors import Array

SENTENCES = (
    "I can't believe you did that!",
    "Well.",
    "This is the best day I have had in a very long time, thank you so much for coming.",
    "No, leave me alone, I really don't want to talk about it any more tonight.",
    "What was that noise? Did you hear that? Somebody is in the house and I don't know what to do, "
    "please stay on the line with me until they come, I can hear them on the stairs right now.",
    "It's fine.",
    "You left the door open again and the dog ran out into the street, how many times do I have to say it?",
    "She moved away last spring. I still set the table for two sometimes.",
)

MAX_WORDS = 80  # of a generated text: within the 128 tokens that are accepted
WORDS_A_TOKEN = 0.6  # of a text that fills more than half of its bucket and not more than the whole

EXTENSIONS: dict[Modality, tuple[str, ...]] = {
    "image": (".jpg", ".jpeg", ".png", ".webp"),
    "audio": (".wav", ".flac", ".ogg", ".mp3"),
    "text": (".txt",),
}


@dataclass(frozen=True)
class Batch:
    """Ready tensors of all three modalities, [batch, ...] each."""

    tensors: dict[str, Array]

    @property
    def size(self) -> int:
        return len(next(iter(self.tensors.values())))


def generated_bytes(modality: Modality, rng: np.random.Generator, seconds: float, words: int | None = None) -> bytes:
    """One generated file of a modality. seconds: of a sound; words: of a text, drawn at random without it."""
    if modality == "image":
        return _picture(rng)
    if modality == "audio":
        return _voice(rng, seconds)
    sentences = int(rng.integers(1, 5)) if words is None else words
    return " ".join(" ".join(rng.choice(SENTENCES, sentences)).split()[: words or MAX_WORDS]).encode()


def batches(preprocessors: dict[Modality, Preprocessor], sizes: Sequence[int], seed: int = 0) -> list[Batch]:
    """One batch for each size, its lengths mixed, the longest in a bucket of its own: of every other audio bucket from
    the shortest to the longest, then of those between, and of every text bucket in turn. As many sizes as there are
    audio buckets meet every bucket of either kind: a runtime may be wrong at one length alone."""
    rng = np.random.default_rng(seed)
    buckets = AUDIO_SECONDS[::2] + AUDIO_SECONDS[1::2]
    made = []
    for index, size in enumerate(sizes):
        seconds, words = buckets[index % len(buckets)], int(WORDS_A_TOKEN * TEXT_TOKENS[index % len(TEXT_TOKENS)])
        shares = [1.0, *(float(rng.uniform(0.3, 1.0)) for _ in range(size - 1))]
        tensors: dict[str, Array] = {}
        for m in MODALITIES:
            files = [generated_bytes(m, rng, seconds * share, max(1, int(words * share))) for share in shares]
            tensors |= collate(m, [preprocessors[m](data) for data in files])
        made.append(Batch(tensors))
    return made


def batches_from_folder(preprocessors: dict[Modality, Preprocessor], folder: Path, limit: int) -> list[Batch]:
    """Batches of one from the user's files: image, audio and text files under `folder`, joined in name order.

    ValueError when a modality has no file there.
    """
    files = {m: sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS[m])[:limit] for m in MODALITIES}
    missing = [m for m in MODALITIES if not files[m]]
    if missing:
        raise ValueError(f"{folder} has no {' and no '.join(missing)} files; expected some of each modality")
    made = []
    for index in range(max(map(len, files.values()))):
        tensors: dict[str, Array] = {}
        for m in MODALITIES:
            data = files[m][index % len(files[m])].read_bytes()
            tensors |= collate(m, [preprocessors[m](data)])
        made.append(Batch(tensors))
    return made


def _picture(rng: np.random.Generator) -> bytes:
    from PIL import Image, ImageDraw, ImageFilter

    noise = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((256, 256), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    left, top, width, height = (int(v) for v in rng.integers((30, 20, 120, 150), (70, 50, 160, 190)))
    draw.ellipse((left, top, left + width, top + height), fill=tuple(int(v) for v in rng.integers(60, 240, 3)))
    for eye in (0.3, 0.7):
        x, y = left + width * eye, top + height * 0.4
        draw.ellipse((x - 9, y - 5, x + 9, y + 5), fill=(20, 20, 30))
    mouth = top + height * 0.72
    draw.arc(
        (left + 35, mouth - 15, left + width - 35, mouth + 15),
        0,
        int(rng.integers(120, 200)),
        (120, 20, 30),
        5,
    )
    buffer = io.BytesIO()
    image.filter(ImageFilter.GaussianBlur(1)).save(buffer, "PNG")
    return buffer.getvalue()


def _voice(rng: np.random.Generator, seconds: float) -> bytes:
    import soundfile

    time = np.arange(int(seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    pitch = rng.uniform(90, 260) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * time))
    phase = 2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE_HZ
    voice = np.sum([np.sin(k * phase) / k for k in range(1, 12)], axis=0)
    syllables = np.clip(np.sin(2 * np.pi * rng.uniform(1.5, 5) * time + rng.uniform(0, 6)) + 0.4, 0, None)
    sound = 0.2 * voice * syllables + 0.01 * rng.standard_normal(len(time))
    buffer = io.BytesIO()
    soundfile.write(buffer, sound.astype(np.float32), SAMPLE_RATE_HZ, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
