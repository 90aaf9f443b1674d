"""What published encoders expect to see comes from their own files, as transformers reads them."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer
from transformers import AutoImageProcessor, BertConfig

from cmt_export.checkpoint import checkpoint_from_preset
from cmt_export.errors import CheckpointError
from cmt_export.expected_inputs import expected_inputs, tokenizer_in
from cmt_export.family import FAMILIES
from cmt_export.samples import SENTENCES
from cmt_pipeline.image import ImagePreprocessor
from cmt_pipeline.preprocess import PreprocessConfig
from published import preset_file, published, write_config
from tiny_model import TEXT_ENCODER


def test_what_encoders_expect_to_see_is_read(tmp_path: Path) -> None:
    preset = preset_file(tmp_path, {"text": "roberta"})
    (tmp_path / "image" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "size": {"height": 224, "width": 224},
                "image_mean": [0.1, 0.2, 0.3],
                "image_std": [1, 1, 1],
                "resample": 2,
            }
        )
    )
    (tmp_path / "audio" / "preprocessor_config.json").write_text(
        json.dumps({"do_normalize": False, "sampling_rate": 16_000})
    )
    expected = checkpoint_from_preset(str(preset), "meld").config.preprocess
    assert (expected.image_mean, expected.image_std) == ((0.1, 0.2, 0.3), (1, 1, 1))
    assert not expected.normalize_audio
    assert expected.pad_token == "[PAD]"


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS: dict[str, tuple[str, dict[str, Any]]] = {
    "as ViT's": ("vit", {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}),
    "as Swin's": ("vit", {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "resample": 3, **IMAGENET}),
    "as DeiT's": (
        "deit",
        {
            "feature_extractor_type": "DeiTFeatureExtractor",
            "size": 256,
            "do_center_crop": True,
            "crop_size": 224,
            "resample": 3,
            **IMAGENET,
        },
    ),
    "as DINOv2's": (
        "vit",
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 256},
            "crop_size": {"height": 224, "width": 224},
            **IMAGENET,
        },
    ),
    "as ConvNeXt's": ("vit", {"image_processor_type": "ConvNextImageProcessor", "size": 224, "crop_pct": 0.9}),
    "nothing but its kind": ("beit", {"image_processor_type": "BeitImageProcessor"}),
    "not normalised": ("vit", {"image_processor_type": "ViTImageProcessor", "do_normalize": False, "resample": 1}),
    "not rescaled": ("vit", {"image_processor_type": "ViTImageProcessor", "do_rescale": False}),
    "rescaled otherwise": ("vit", {"image_processor_type": "ViTImageProcessor", "rescale_factor": 0.00784}),
}


@pytest.mark.long
@pytest.mark.parametrize("size", [(300, 201), (401, 640)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_picture_becomes_the_pixels_of_its_encoders_own_processor(
    tmp_path: Path, name: str, size: tuple[int, int]
) -> None:
    kind, values = PROCESSORS[name]
    folder = published(kind, tmp_path / "image")
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    picture = Image.effect_noise(size, 90).convert("RGB")
    theirs = AutoImageProcessor.from_pretrained(folder, backend="pil")(picture, return_tensors="np")["pixel_values"][0]
    config = expected_inputs(
        {"image": FAMILIES[kind]}, {"image": folder, "audio": None}, TEXT_ENCODER / "tokenizer.json", BertConfig()
    )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    preprocess = ImagePreprocessor(config.image_mean, config.image_std, fit=config.image_fit)
    ours = preprocess(buffer.getvalue())["pixel_values"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert PreprocessConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"size": 384}, "'height': 384"),
        ({"image_processor_type": "BitImageProcessor", "do_center_crop": False}, "'shortest_edge': 224"),
        ({"do_resize": False}, "'do_resize': False"),
        ({"resample": 0}, "got resampling '0'; expected one of lanczos, bilinear"),
        ({"image_processor_type": "NoProcessor"}, "can't be read: Unrecognized image processor"),
    ],
)
def test_what_preprocessing_doesnt_do_is_refused(tmp_path: Path, values: object, told: str) -> None:
    preset = preset_file(tmp_path, {})
    (tmp_path / "image" / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=re.escape(told)):
        checkpoint_from_preset(str(preset), "meld")


def test_a_tokenizer_without_its_json_is_made_of_its_vocabulary(tmp_path: Path) -> None:
    preset = preset_file(tmp_path, {"text": "distilbert"})
    words = json.loads((TEXT_ENCODER / "tokenizer.json").read_text())["model"]["vocab"]
    (tmp_path / "text" / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"neither a tokenizer\.json nor files"):
        checkpoint_from_preset(str(preset), "meld")
    (tmp_path / "text" / "vocab.txt").write_text("\n".join(sorted(words, key=lambda word: words[word])))
    made = checkpoint_from_preset(str(preset), "meld")
    assert json.loads(made.tokenizer.read_text())["model"]["vocab"] == words


BEGINNING = {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "pad_piece": "[PAD]"}
BEGINNING |= {"bos_piece": "[CLS]", "eos_piece": "[SEP]", "unk_piece": "[UNK]"}


@pytest.mark.parametrize(
    ("model_type", "file", "pieces", "ends", "offset"),
    [
        ("deberta-v2", "spm.model", BEGINNING, (1, 2), 0),
        ("xlm-roberta", "sentencepiece.bpe.model", {}, (0, 2), 1),  # fairseq's numbers begin one later
    ],
)
def test_a_tokenizer_is_made_of_a_sentencepiece_model(
    tmp_path: Path, model_type: str, file: str, pieces: dict[str, Any], ends: tuple[int, int], offset: int
) -> None:
    with (tmp_path / file).open("wb") as model:
        SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES * 3),
            model_writer=model,
            vocab_size=120,
            hard_vocab_limit=False,
            minloglevel=2,
            **pieces,
        )
    write_config(tmp_path, model_type=model_type)
    made = Tokenizer.from_file(str(tokenizer_in(tmp_path)))
    numbers = SentencePieceProcessor(model_file=str(tmp_path / file)).encode(SENTENCES[0])
    assert made.encode(SENTENCES[0]).ids == [ends[0], *(number + offset for number in numbers), ends[1]]


def test_a_whisper_hears_sound_as_it_is(tmp_path: Path) -> None:
    preset = preset_file(tmp_path, {"audio": "whisper"})
    assert not checkpoint_from_preset(str(preset), "meld").config.preprocess.normalize_audio
