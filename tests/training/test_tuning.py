"""Published encoders are tuned as asked: what learns and how fast, and what `cmt train` and an export make of it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cmt_cli.main import app
from cmt_engine.engine import ENGINES
from cmt_export.checkpoint import Checkpoint, EncoderConfig, load_checkpoint
from cmt_export.encoders import Features
from cmt_export.family import FAMILIES
from cmt_export.onnx_from_checkpoint import onnx_from_checkpoint
from cmt_export.parity import references, stage_parity
from cmt_export.samples import batches
from cmt_pipeline.preprocess import make_preprocessors
from cmt_pipeline.stages import COMPILED_STAGES, Stage
from cmt_training.options import TrainOptions
from cmt_training.tuning import masked_in_time, merge_lora, tune_published
from published import ENCODERS, backbone, published
from small_corpus import small_corpus, table_of

WAYS = ("frozen", "last-2", "lora", "full")
#: How encoders were tuned, and which stages are exported; all of them take half a minute each.
TEXT = tuple(stage for stage in COMPILED_STAGES if stage.modality == "text")
EXPORTED = [("lora", TEXT), *(pytest.param(way, COMPILED_STAGES, marks=pytest.mark.slow) for way in WAYS)]


def one_encoder(name: str) -> tuple[Checkpoint, Any]:
    """A checkpoint that has no more than one published encoder, and that."""
    family = FAMILIES[ENCODERS[name][0]]
    encoder = family.wrap(family.settled(backbone(name)))
    configs = {family.modality: EncoderConfig({"model_type": family.model_type}, weights_from="somewhere")}
    model, config = SimpleNamespace(encoders={family.modality: encoder}), SimpleNamespace(encoders=configs)
    return cast(Checkpoint, SimpleNamespace(config=config, model=model)), encoder


def features(encoder: Any, modality: str) -> torch.Tensor:
    torch.manual_seed(0)
    inputs = {
        "image": (torch.randn(1, 3, 224, 224),),
        "audio": (torch.randn(1, 8_000), torch.tensor([[8_000]])),
        "text": (torch.arange(5, 14)[None], torch.ones(1, 9, dtype=torch.int64)),
    }
    found: Features = encoder(*inputs[modality])
    return found[0]


@pytest.mark.long
@pytest.mark.parametrize("name", ENCODERS)
def test_every_family_is_tuned(name: str) -> None:
    """What is tuned gets a gradient, and nothing else; the last layer learns fastest; a merged LoRA answers alike."""
    family = FAMILIES[ENCODERS[name][0]]
    for tune in ("last-1", "full"):
        checkpoint, encoder = one_encoder(name)
        shares = tune_published(checkpoint, TrainOptions(tune=tune))
        tuned = {n for n, p in encoder.backbone.named_parameters() if p.requires_grad}
        assert {n.split(".backbone.")[1] for n in shares} == tuned
        assert not [n for n in tuned if n.startswith("feature_extractor")]
        assert max(shares.values()) == 1
        assert tune == "last-1" or family.layer_decay == 1 or min(shares.values()) <= family.layer_decay
        features(encoder.train(), family.modality).square().sum().backward()
        alike = tune_published(one_encoder(name)[0], TrainOptions(tune=tune, layer_decay=1.0))
        assert set(alike) == set(shares)
        assert set(alike.values()) == {1.0}
        idle = {n for n, p in encoder.backbone.named_parameters() if p.requires_grad and p.grad is None}
        assert tune == "full" or not idle
        assert all(n.endswith(("mask_token", "pooler")) for n in idle)

    checkpoint, encoder = one_encoder(name)
    names, before = set(encoder.state_dict()), features(encoder.eval(), family.modality)
    assert all("lora_" in n for n in tune_published(checkpoint, TrainOptions(tune="lora")))
    for n, parameter in encoder.named_parameters():
        if "lora_B" in n:
            torch.nn.init.normal_(parameter, std=0.1)
    apart = features(encoder.eval(), family.modality)  # what was added has a dropout
    merge_lora(encoder)
    assert set(encoder.state_dict()) == names
    merged = features(encoder, family.modality)
    assert (apart - before).abs().max() > 1e-3
    assert (apart - merged).abs().max() < 1e-4 * apart.abs().max()


def test_sound_is_masked_in_stretches_in_training_alone() -> None:
    masked = SimpleNamespace(training=True, masked_spec_embed=torch.zeros(2))
    torch.manual_seed(0)
    hidden, beside = masked_in_time(masked, torch.nn.Identity(), (), (torch.ones(40, 500, 2), "beside"))
    gone = (hidden == 0).all(dim=2)
    assert beside == "beside"
    assert 0.04 < float(gone.float().mean()) < 0.06
    starts = int((gone[:, 1:] & ~gone[:, :-1]).sum())
    assert float(gone.sum()) / starts > 8  # frames in a stretch
    masked.training = False
    assert (masked_in_time(masked, torch.nn.Identity(), (), torch.ones(4, 50, 2)) == 1).all()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return table_of(small_corpus(folder, (12, 6, 3)), folder / "moods.csv")


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, table: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, list[str]]:
    """How published encoders were tuned, the checkpoint of `cmt train`, and where they came from."""
    folder, tune = tmp_path_factory.mktemp("tuned"), cast(str, request.param)
    sources = [str(published(name, table.parent / name)) for name in ("vit", "wav2vec2", "bert")]
    chosen = [word for m, s in zip(("image", "audio", "text"), sources, strict=True) for word in (f"--{m}-encoder", s)]
    rates = ("--tune", tune, "--tune-learning-rate", "0.002", "--learning-rate", "0.002", "--batch-size", "4")
    more = (*rates, "--epochs", "4", "--modality-dropout", "0", "--threads", "1", "--gradient-checkpointing")
    where = ("--out", str(folder / "out"), "--state", str(table.parent / "state"))
    ran = CliRunner().invoke(app, ["train", str(table), *chosen, *more, *where], env={"COLUMNS": "300"})
    assert ran.exit_code == 0, f"{ran.output}\n{ran.exception!r}"
    return tune, folder / "out", sources


@pytest.mark.long
@pytest.mark.parametrize("trained", WAYS, indirect=True)
def test_the_loss_falls_and_what_was_tuned_is_kept(trained: tuple[str, Path, list[str]]) -> None:
    tune, out, sources = trained
    rows = json.loads((out.with_name("out.run") / "history.json").read_text())["history"]
    losses = [row["training_loss"] for row in rows]
    assert losses[-1] < 0.8 * losses[0]
    assert min(row["validation_cross_entropy"] for row in rows) < 0.8 * np.log(3)  # of three labels, at random
    encoders = load_checkpoint(out).config.encoders
    kept = {m: encoder.weights_from for m, encoder in encoders.items()}
    expected = sources if tune == "frozen" else [None] * 3
    assert kept == dict(zip(("image", "audio", "text"), expected, strict=True))


@pytest.mark.long
@pytest.mark.parametrize(("trained", "stages"), EXPORTED, indirect=["trained"])
def test_the_checkpoint_is_exported_with_parity(
    trained: tuple[str, Path, list[str]], stages: tuple[Stage, ...], tmp_path: Path
) -> None:
    checkpoint, engine = load_checkpoint(trained[1]), ENGINES["onnxruntime"]
    samples = batches(make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer), (2,))
    for stage in stages:
        path = onnx_from_checkpoint(checkpoint.model, stage, tmp_path / stage.name)
        runner = engine.open(path, "fp32", 1)
        row = stage_parity(runner, engine, stage, "fp32", references(checkpoint.model, stage, samples))
        assert row.passed, row
