"""Training: every model learns, the checkpoint is whole, trained, calibrated and small."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint, save_checkpoint
from cmt_export.fusion import CrossModalFusion
from cmt_export.sources import WEIGHTS_FILE
from cmt_pipeline.tensors import IMAGE_SIDE
from cmt_training.batches import Randomness, Reader, epoch_order, raw_sources
from cmt_training.examples import DataError
from cmt_training.fitting import finished, share_of_peak
from cmt_training.initial import start_from_scratch
from cmt_training.options import MODELS, Model
from cmt_training.prepare import Prepared
from cmt_training.state import TrainState
from cmt_training.train import learns_encoders_first, train
from cmt_training.trainee import class_weights
from small_training import OPTIONS, silent
from tiny_model import TINY


@pytest.mark.long
@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns(model: Model, prepared: Prepared, tmp_path: Path) -> None:
    epochs = {"image": 10, "audio": 10, "conventional": 12}.get(model, 3)
    steps = 150 if model == "audio" else 0
    options = replace(OPTIONS, model=model, epochs=epochs, patience=epochs, audio_pretraining_steps=steps)
    options = replace(options, learning_rate=1e-3) if model == "conventional" else options
    state = train(prepared, options, tmp_path / "out", silent)
    best = state.history[state.best_epoch - 1]
    assert best["validation_weighted_f1"] > 0.6
    assert best["training_loss"] < state.history[0]["training_loss"] or state.best_epoch == 1
    checkpoint = load_checkpoint(tmp_path / "out")
    assert (checkpoint.config.trained, checkpoint.config.model) == (True, model)
    fusion = checkpoint.model.fusion
    calibrated = fusion.evidence_weights if isinstance(fusion, CrossModalFusion) else fusion.temperature
    assert (calibrated != 1).all()
    assert all(parameter.dtype == torch.float32 for parameter in checkpoint.model.parameters())
    assert [*tmp_path.glob("out.run/logs/events*")]
    history = json.loads((tmp_path / "out.run" / "history.json").read_text())
    assert [row["epoch"] for row in history["history"]] == list(range(1, state.epoch + 1))


def test_published_weights_stay_out_unless_they_were_trained(prepared: Prepared, tmp_path: Path) -> None:
    text = replace(OPTIONS, model="text", epochs=1)
    for tune in ("frozen", "last-1"):
        train(prepared, replace(text, tune=tune, tune_learning_rate=1e-2), tmp_path / tune, silent)
    frozen, trained = (load_checkpoint(tmp_path / name) for name in ("frozen", "last-1"))
    assert frozen.config.encoders["text"].weights_sha256 is not None
    assert not [k for k in load_file(tmp_path / "frozen" / WEIGHTS_FILE) if k.startswith("encoders.text.backbone")]
    assert trained.config.encoders["text"].weights_from is None
    states = [c.model.encoders["text"].backbone.state_dict() for c in (frozen, trained)]
    moved = {k for k in states[0] if (states[0][k] - states[1][k]).abs().max() > 5e-3}
    assert moved
    assert all("encoder.layer.1." in name for name in moved)


@pytest.mark.long
def test_half_precision_keeps_the_answers(prepared: Prepared, tmp_path: Path) -> None:
    checkpoint = checkpoint_from_preset("mini", "meld")
    save_checkpoint(checkpoint, tmp_path / "half", half=True)
    assert (tmp_path / "half" / WEIGHTS_FILE).stat().st_size < 12e6
    stored = load_checkpoint(tmp_path / "half").model.state_dict()
    for name, tensor in checkpoint.model.state_dict().items():
        assert stored[name].dtype == tensor.dtype
        assert torch.allclose(stored[name], tensor, rtol=1e-3, atol=1e-6)


@pytest.mark.long
def test_empty_splits_other_runs_and_nonsense_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    lacking = replace(prepared, items=tuple(item for item in prepared.items if item.split != "validation"))
    with pytest.raises(DataError, match="the split 'validation' of 'small' is empty"):
        train(lacking, OPTIONS, tmp_path / "a", silent)
    train(prepared, replace(OPTIONS, model="image", epochs=1), tmp_path / "b", silent)
    with pytest.raises(ValueError, match="exists; name a new folder"):
        train(prepared, OPTIONS, tmp_path / "b", silent)
    (tmp_path / "b").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="holds a training; go on with --resume"):
        train(prepared, OPTIONS, tmp_path / "b", silent)
    with pytest.raises(ValueError, match="holds a training with other options"):
        train(prepared, OPTIONS, tmp_path / "b", silent, resume=True)
    with pytest.raises(ValueError, match="tune: got last-9; expected last-2 at most"):
        train(prepared, replace(OPTIONS, tune="last-9"), tmp_path / "c", silent)
    with pytest.raises(ValueError, match="precision: got fp16 on a CPU"):
        train(prepared, replace(OPTIONS, precision="fp16"), tmp_path / "c", silent)
    with pytest.raises(ValueError, match="tune: got 'last'; expected frozen, last-N"):
        replace(OPTIONS, tune="last")
    with pytest.raises(ValueError, match="epochs: got 0"):
        replace(OPTIONS, epochs=0)
    with pytest.raises(ValueError, match=r"layer_decay: got 1\.5; expected more than 0 and 1 at most"):
        replace(OPTIONS, layer_decay=1.5)


@pytest.mark.long
def test_a_loss_that_is_no_number_ends_training(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the loss became NaN or infinite.*lower --learning-rate"):
        train(prepared, replace(OPTIONS, learning_rate=1e30, warm_up=0.0), tmp_path / "out", silent)
    assert not (tmp_path / "out").exists()


def test_an_epoch_is_a_permutation_in_batches_of_like_lengths() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 1000).tolist()
    batches = epoch_order(range(1000), lengths, 8, seed=1, epoch=2)
    assert sorted(index for batch in batches for index in batch) == list(range(1000))
    assert np.mean([np.ptp([lengths[i] for i in batch]) for batch in batches]) < 15
    assert batches == epoch_order(range(1000), lengths, 8, seed=1, epoch=2)
    assert batches != epoch_order(range(1000), lengths, 8, seed=1, epoch=3)


def test_modality_dropout_leaves_something_and_depends_on_the_item_alone(prepared: Prepared) -> None:
    reader = Reader(prepared, raw_sources(prepared))
    randomness = Randomness(seed=0, epoch=1, modality_dropout=0.9, augment=True)
    batch = reader.batch(range(20), randomness)
    had = reader.batch(range(20)).presence
    assert (batch.presence.sum(dim=1) >= 1).all()
    assert (batch.presence <= had).all()
    assert batch.presence.sum() < had.sum()
    again = reader.batch([7, 3], randomness)
    assert again.presence.tolist() == batch.presence[[7, 3]].tolist()
    for name in set(again.inputs) - {"input_values"}:  # which are padded to other lengths
        assert torch.equal(again.inputs[name][0].flatten()[:50], batch.inputs[name][7].flatten()[:50])


def test_the_learning_rate_rises_and_falls() -> None:
    options = replace(OPTIONS, epochs=10, warm_up=0.1)
    rates = [share_of_peak(step, 100, options) for step in range(1, 101)]
    assert rates[0] == 0.1
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert 0 < rates[-1] < 0.01


def test_training_ends_when_it_no_longer_helps() -> None:
    options = replace(OPTIONS, epochs=10, patience=2)
    assert not finished(TrainState({}, epoch=4, best_epoch=3), options)
    assert finished(TrainState({}, epoch=5, best_epoch=3), options)
    assert finished(TrainState({}, epoch=10, best_epoch=10), options)


def test_class_weights_are_one_on_average() -> None:
    labels = np.array([0] * 90 + [1] * 10)
    for power, ratio in ((0.0, 1.0), (0.5, 3.0), (1.0, 9.0)):
        weights = class_weights(labels, 2, power)
        assert float(weights[1] / weights[0]) == pytest.approx(ratio)
        assert float(weights[labels].mean()) == pytest.approx(1.0)


@pytest.mark.long
def test_first_weights_are_seeded_and_published_ones_stay() -> None:
    def started(seed: int) -> dict[str, torch.Tensor]:
        checkpoint = checkpoint_from_preset("mini", "meld")
        start_from_scratch(checkpoint, seed)
        return checkpoint.model.state_dict()

    usual, one, again, other = checkpoint_from_preset("mini", "meld").model.state_dict(), *map(started, (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    query = "encoders.image.backbone.layers.0.attention.q_proj.weight"
    assert not torch.equal(one[query], other[query])
    changed = {name for name in one if not torch.equal(one[name], usual[name])}
    assert {name.split(".")[1] for name in changed} == {"image", "audio"}


def test_a_vision_transformer_starts_from_energies() -> None:
    """What the first layer adds tells an edge from a plain patch, but not dark beside bright from the reverse."""
    checkpoint = checkpoint_from_preset("mini", "meld")
    start_from_scratch(checkpoint, 0)
    backbone = cast(Any, checkpoint.model.encoders["image"]).backbone
    edges = torch.zeros(1, 3, IMAGE_SIDE, IMAGE_SIDE)
    edges[..., IMAGE_SIDE // 2 + 5 :] = 1.0

    def added(pixels: torch.Tensor) -> torch.Tensor:
        seen = backbone.embeddings(pixels)
        return cast(torch.Tensor, backbone.layers[0](seen) - seen)[0, 1:]

    with torch.inference_mode():
        bright, dark, plain = (added(pixels) for pixels in (edges, -edges, torch.zeros_like(edges)))
    edge = (bright - plain).norm(dim=1).argmax()
    assert edge % 14 == 7
    assert float((bright - dark)[edge].norm()) < 0.35 * float((bright - plain)[edge].norm())


@pytest.mark.long
def test_encoders_learn_before_there_is_a_fusion(prepared: Prepared, tmp_path: Path) -> None:
    """And a training that is cut off between the two goes on to the same result."""
    options = replace(OPTIONS, epochs=2, encoder_epochs=3)

    def cut_off(what: str, _: float) -> None:
        if what.startswith("features"):
            raise KeyboardInterrupt

    train(prepared, options, tmp_path / "whole", silent)
    with pytest.raises(KeyboardInterrupt):
        train(prepared, options, tmp_path / "parts", cut_off)
    train(prepared, options, tmp_path / "parts", silent, resume=True)
    whole, parts = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [path.name for path in (tmp_path / "parts.run" / "encoders").glob("epoch-*")] == ["epoch-0003"]
    assert not (tmp_path / "parts.run" / "features").exists()
    at_first = checkpoint_from_preset(TINY.name, "meld")
    start_from_scratch(at_first, OPTIONS.seed)
    name = "encoders.image.backbone.layers.0.mlp.fc1.weight"
    assert not torch.allclose(whole[name].float(), at_first.model.state_dict()[name], atol=1e-3)


@pytest.mark.parametrize(("model", "expected"), [("cmt", True), ("concat", True), ("late", True), ("image", False)])
def test_only_several_encoders_that_start_from_nothing_learn_first(model: Model, expected: bool) -> None:
    options = replace(OPTIONS, model=model, encoder_epochs=2)
    checkpoint = checkpoint_from_preset(TINY.name, "meld", model=model)
    assert learns_encoders_first(checkpoint, options) is expected
    assert not learns_encoders_first(checkpoint, replace(options, encoder_epochs=0))
    encoders = {m: replace(e, weights_from="package:somewhere") for m, e in checkpoint.config.encoders.items()}
    published = replace(checkpoint, config=replace(checkpoint.config, encoders=encoders))
    assert not learns_encoders_first(published, options)
