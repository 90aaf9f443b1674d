"""What published encoders expect to see, out of their own files: preprocessor_config.json and the tokenizer's."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmt_export.errors import CheckpointError
from cmt_export.family import EncoderFamily
from cmt_pipeline.buckets import SAMPLE_RATE_HZ
from cmt_pipeline.modality import Modality
from cmt_pipeline.preprocess import TOKENIZER_FILE, PreprocessConfig
from cmt_pipeline.tensors import IMAGE_SIDE

PREPROCESSOR_FILE = "preprocessor_config.json"
BILINEAR = 2  # Pillow's number
VOCABULARIES = ("vocab.txt", "vocab.json", "*.model")  # without one, transformers makes a tokenizer of nothing


def expected_inputs(
    families: Mapping[Modality, EncoderFamily],
    folders: Mapping[Modality, Path | None],
    tokenizer: Path,
    text_config: Any,
) -> PreprocessConfig:
    """folders: of published encoders, None for those with random weights, which expect what their families do.
    tokenizer: a tokenizer.json; text_config: Hugging Face's, of the text encoder. CheckpointError for what isn't done
    here.
    """
    values: dict[str, Any] = {"vocabulary": text_config.vocab_size, "pad_token": _pad_token(tokenizer, text_config)}
    for family in families.values():
        values |= family.expects
    image, audio = _preprocessor(folders["image"]), _preprocessor(folders["audio"])
    if image:
        values |= _of_image(image, folders["image"])
    if audio:
        values |= _of_audio(audio, folders["audio"])
    return PreprocessConfig(**values)


def tokenizer_in(folder: Path) -> Path:
    """A folder's tokenizer.json; made of the slow tokenizer's files where there are only those. CheckpointError."""
    if (folder / TOKENIZER_FILE).is_file():
        return folder / TOKENIZER_FILE
    try:
        if not any(path.match(pattern) for path in folder.iterdir() for pattern in VOCABULARIES):
            raise FileNotFoundError(f"expected one of {', '.join(VOCABULARIES)}")
        from transformers import AutoTokenizer

        text = AutoTokenizer.from_pretrained(folder).backend_tokenizer.to_str()
    except Exception as error:  # of transformers many kinds, for each tokenizer others
        raise CheckpointError(
            f"{folder} has neither a {TOKENIZER_FILE} nor files of a tokenizer that one can be made of: {error}"
        ) from error
    made = Path(tempfile.mkdtemp(prefix="cmt-tokenizer-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    (made / TOKENIZER_FILE).write_text(text)
    return made / TOKENIZER_FILE


def _pad_token(tokenizer: Path, text_config: Any) -> str:
    from tokenizers import Tokenizer

    number = getattr(text_config, "pad_token_id", None)
    token = Tokenizer.from_file(str(tokenizer)).id_to_token(number or 0)
    if token is None:
        raise CheckpointError(f"{tokenizer} has no token {number}, which the encoder's config.json pads with")
    return str(token)


def _preprocessor(folder: Path | None) -> dict[str, Any]:
    """What preprocessor_config.json says; nothing where there is none."""
    path = folder / PREPROCESSOR_FILE if folder else None
    if path is None or not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    return values if isinstance(values, dict) else {}


def _of_image(values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    size = values.get("size", IMAGE_SIDE)
    sides = {size.get(key) for key in ("height", "width")} if isinstance(size, dict) else {size}
    wrong = [
        f"size {size}" if sides != {IMAGE_SIDE} else "",
        f"resample {values['resample']}" if values.get("resample", BILINEAR) != BILINEAR else "",
        "do_center_crop true" if values.get("do_center_crop") else "",
    ]
    if told := ", ".join(filter(None, wrong)):
        raise CheckpointError(
            f"{folder}: {PREPROCESSOR_FILE} says {told}; expected pictures of {IMAGE_SIDE} x {IMAGE_SIDE}, resampled "
            f"bilinearly ({BILINEAR}) and not cropped: preprocessing does no other"
        )
    if not values.get("do_normalize", True):
        return {"image_mean": (0.0,) * 3, "image_std": (1.0,) * 3}
    return {key: tuple(map(float, values[key])) for key in ("image_mean", "image_std") if key in values}


def _of_audio(values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    rate = values.get("sampling_rate", SAMPLE_RATE_HZ)
    if rate != SAMPLE_RATE_HZ:
        raise CheckpointError(f"{folder}: {PREPROCESSOR_FILE} says {rate} Hz; expected {SAMPLE_RATE_HZ}")
    return {"normalize_audio": bool(values["do_normalize"])} if "do_normalize" in values else {}
