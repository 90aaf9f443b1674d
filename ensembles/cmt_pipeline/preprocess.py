"""Preprocessing of every modality, as the `preprocess` stage or a client that preprocesses itself runs it.

A version of the `preprocess` stage holds `preprocess.json` (a PreprocessConfig) and `tokenizer.json`; one of `check`
holds `preprocess.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cmt_pipeline.audio import AudioPreprocessor
from cmt_pipeline.face_note import FaceNote
from cmt_pipeline.faces import FaceMode
from cmt_pipeline.ffmpeg_audio import MP3, reader_of
from cmt_pipeline.image import DecodingRoom, Fit, ImagePreprocessor
from cmt_pipeline.image_formats import format_of
from cmt_pipeline.installed import installed_versions
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits
from cmt_pipeline.modality import Modality
from cmt_pipeline.stages import FACE, READY
from cmt_pipeline.tensors import DEFAULT_SIZES, Array
from cmt_pipeline.text import TextPreprocessor

#: bytes of one item -> its ready tensors, without batch axis.
Preprocessor = Callable[[bytes], dict[str, Array]]

CONFIG_FILE = "preprocess.json"
TOKENIZER_FILE = "tokenizer.json"

#: The distributions that prepare; another version of one may give other tensors for the same bytes.
LIBRARIES = ("av", "pillow", "pillow-heif", "soundfile", "soxr", "tokenizers")

#: Raised whenever this code makes something else of the same bytes.
REVISION = 3


@dataclass(frozen=True)
class PreprocessConfig:
    """What a checkpoint's encoders were trained to see."""

    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    normalize_audio: bool = True
    pad_token: str = "[PAD]"  # noqa: S105
    vocabulary: int = 30_522  # token ids end below it; BERT's uncased vocabulary has as many
    image_fit: Fit = field(default_factory=Fit)
    face: FaceMode = "never"
    image_tokens: int = DEFAULT_SIZES.image[0]  # that the encoder makes of a picture

    def to_json(self) -> str:
        """Without what older versions of this project don't know of, where it is what they do."""
        values = asdict(self)
        for name in ("image_fit", "face", "image_tokens"):
            if getattr(self, name) == getattr(PreprocessConfig(), name):
                del values[name]
        return json.dumps(values, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> PreprocessConfig:
        values = json.loads(text)
        values |= {key: tuple(values[key]) for key in ("image_mean", "image_std")}
        values["image_fit"] = Fit(**values.get("image_fit", {}))
        return cls(**values)


def make_preprocessors(
    config: PreprocessConfig, tokenizer: Path, limits: Limits = DEFAULT_LIMITS
) -> dict[Modality, Preprocessor]:
    """The preprocessors of all modalities. tokenizer: a tokenizer.json."""
    return {
        "image": ImagePreprocessor(
            config.image_mean,
            config.image_std,
            limits,
            DecodingRoom(limits.max_decoding_pixels),
            config.image_fit,
            config.face,
        ),
        "audio": AudioPreprocessor(config.normalize_audio, limits),
        "text": TextPreprocessor(tokenizer, config.pad_token, limits),
    }


def everyday(modality: Modality, data: bytes) -> bool:
    """Whether nothing but decoders that meet hostile files all day long sees it: those of the usual formats."""
    if modality == "image":
        form = format_of(data)
        return form is None or form.everyday
    return modality != "audio" or reader_of(data) in (None, MP3)


def library_versions() -> dict[str, str]:
    """Which versions prepare on this machine; what isn't installed refuses the formats that it reads."""
    return installed_versions(LIBRARIES)


def fingerprint(config: PreprocessConfig, tokenizer: Path) -> str:
    """SHA-256 over all that decides what bytes become here: this code, its configuration, tokenizer.json, libraries."""
    digest = hashlib.sha256(f"{REVISION} {config.to_json()}".encode())
    digest.update(json.dumps(library_versions(), sort_keys=True).encode())
    digest.update(tokenizer.read_bytes())
    return digest.hexdigest()


def open_preprocessors(folder: Path, limits: Limits = DEFAULT_LIMITS) -> dict[Modality, Preprocessor]:
    """The preprocessors out of the folder of a version of the `preprocess` stage."""
    return make_preprocessors(open_config(folder), folder / TOKENIZER_FILE, limits)


def open_config(folder: Path) -> PreprocessConfig:
    """The configuration out of the folder of a version of `preprocess` or `check`."""
    return PreprocessConfig.from_json((folder / CONFIG_FILE).read_text())


def is_absent(item: dict[str, Array]) -> bool:
    """Whether a prepared picture counts as none, since it has no face."""
    note = FaceNote.from_json(item[FACE.name][0]) if FACE.name in item else None
    return note is not None and note.used == "absent"


def face_notes(items: Sequence[dict[str, Array]]) -> Array:
    """[items, 1]: what each picture says of its face; empty where nobody looked."""
    notes = np.full((len(items), 1), b"", np.object_)
    for row, item in enumerate(items):
        if FACE.name in item:
            notes[row] = item[FACE.name]
    return notes


def collate(modality: Modality, items: Sequence[dict[str, Array]]) -> dict[str, Array]:
    """Items as one batch: each tensor [batch, ...], zero-padded to the longest item's bucket.

    Zero is padding for every ready tensor: silence beyond `num_samples`, ids masked out by `attention_mask`.
    """
    batch = {}
    for spec in READY[modality]:
        arrays = [item[spec.name] for item in items]
        shape = np.max([array.shape for array in arrays], axis=0)
        stacked = np.zeros((len(arrays), *shape), spec.numpy_dtype)
        for row, array in zip(stacked, arrays, strict=True):
            row[tuple(slice(size) for size in array.shape)] = array
        batch[spec.name] = stacked
    return batch
