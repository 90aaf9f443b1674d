"""What published encoders expect to see, out of their own files: preprocessor_config.json and the tokenizer's."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np

from cmt_export.errors import CheckpointError, first_line
from cmt_export.family import EncoderFamily
from cmt_pipeline.buckets import SAMPLE_RATE_HZ
from cmt_pipeline.image import FILTERS, Fit
from cmt_pipeline.modality import Modality
from cmt_pipeline.preprocess import TOKENIZER_FILE, PreprocessConfig
from cmt_pipeline.tensors import IMAGE_SIDE

PREPROCESSOR_FILE = "preprocessor_config.json"
VOCABULARIES = ("vocab.txt", "vocab.json", "*.model")  # without one, transformers makes a tokenizer of nothing


def expected_inputs(
    families: Mapping[Modality, EncoderFamily],
    folders: Mapping[Modality, Path | None],
    tokenizer: Path,
    text_config: Any,
) -> PreprocessConfig:
    """folders: of published encoders, None for those with random weights, which expect what their families do.
    tokenizer: a tokenizer.json; text_config: Hugging Face's, of the text encoder, None without one. CheckpointError
    for what isn't done here.
    """
    values: dict[str, Any] = {}
    if text_config is not None:
        values = {"vocabulary": text_config.vocab_size, "pad_token": _pad_token(tokenizer, text_config)}
    for family in families.values():
        values |= family.expects
    image, audio = folders.get("image"), folders.get("audio")
    if image and _preprocessor(image):
        values |= _of_image(image)
    if heard := _preprocessor(audio):
        values |= _of_audio(heard, audio)
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


def _of_image(folder: Path) -> dict[str, Any]:
    """As transformers' own processor reads the file: what it leaves out is as the processor's kind has it."""
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    except Exception as error:  # of transformers many kinds
        raise CheckpointError(
            f"{folder / PREPROCESSOR_FILE} can't be read: {shorten(first_line(error), 200)}"
        ) from error
    try:
        fit = _fit_of(processor)
    except ValueError as error:
        raise CheckpointError(f"{folder}: {PREPROCESSOR_FILE}: {error}") from error
    # What stands for a grey level: x * factor, and (that - mean) / std; ours is x / 255 whatever the factor.
    factor = 255 * (processor.rescale_factor if processor.do_rescale else 1)
    mean, std = (processor.image_mean, processor.image_std) if processor.do_normalize else (0.0, 1.0)
    means, stds = (np.broadcast_to(np.asarray(values, np.float64) / factor, 3).tolist() for values in (mean, std))
    return {"image_fit": fit, "image_mean": tuple(means), "image_std": tuple(stds)}


def _fit_of(processor: Any) -> Fit:
    """ValueError for what isn't done here."""
    size, crop = processor.size, processor.crop_size if processor.do_center_crop else None
    share = getattr(processor, "crop_pct", None)  # of ConvNeXt: what is left of the shorter side
    if size.shortest_edge and share:
        resize, sides = int(size.shortest_edge / share), {size.shortest_edge}
    elif size.shortest_edge:
        resize, sides = size.shortest_edge, {crop.height, crop.width} if crop else {None}
    else:
        resize, sides = size.height, {crop.height, crop.width} if crop else {size.height, size.width}
    names = {number: name for name, number in FILTERS.items()}
    if sides != {IMAGE_SIDE} or not processor.do_resize:
        told = {"size": dict(size), "crop_size": crop and dict(crop), "do_resize": processor.do_resize}
        raise ValueError(f"got {told}; expected pictures of {IMAGE_SIDE} x {IMAGE_SIDE} pixels")
    resample = names.get(int(processor.resample), str(processor.resample))
    return Fit(resize=resize, keeps_ratio=bool(size.shortest_edge), resample=resample)


def _of_audio(values: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    rate = values.get("sampling_rate", SAMPLE_RATE_HZ)
    if rate != SAMPLE_RATE_HZ:
        raise CheckpointError(f"{folder}: {PREPROCESSOR_FILE} says {rate} Hz; expected {SAMPLE_RATE_HZ}")
    return {"normalize_audio": bool(values["do_normalize"])} if "do_normalize" in values else {}
