"""Published encoders stay as they are: run once, left out of the checkpoint, and answering as if run anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import cmt_training.evaluate
from cmt_export.checkpoint import checkpoint_from_preset, load_checkpoint
from cmt_export.sources import WEIGHTS_FILE
from cmt_pipeline.modality import MODALITIES
from cmt_training.batches import Reader, raw_sources
from cmt_training.encoded import Encoded, GivenText
from cmt_training.evaluate import evaluate, reading
from cmt_training.examples import DataSet
from cmt_training.fitting import task_of, without_idle
from cmt_training.frozen import Projected
from cmt_training.options import TrainOptions
from cmt_training.predict import predict
from cmt_training.prepare import Item, Prepared, prepare
from cmt_training.train import opened, train, trainee_of
from cmt_training.trainee import Loss, average_of
from small_training import OPTIONS, silent


@pytest.fixture(scope="module")
def options(published_preset: Path) -> TrainOptions:
    return replace(OPTIONS, preset=str(published_preset), epochs=2)


@pytest.fixture(scope="module")
def data(corpus: DataSet, options: TrainOptions, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Of which every sound is there twice."""
    checkpoint = checkpoint_from_preset(options.preset, "meld")
    doubled = replace(
        corpus, examples=(*corpus.examples, *(replace(e, id=f"{e.id}-2", image=None) for e in corpus.examples))
    )
    cache = tmp_path_factory.mktemp("prepared")
    return prepare(doubled, checkpoint.config.preprocess, checkpoint.tokenizer, cache, silent)


@pytest.mark.long
def test_they_are_run_once_and_answer_as_if_run_anew(data: Prepared, options: TrainOptions, tmp_path: Path) -> None:
    train(data, options, tmp_path / "one", silent)
    kept = {path: path.stat().st_mtime_ns for path in data.folder.glob("frozen-*/*.npy")}
    assert {path.name for path in kept} == {f"{m}{end}.npy" for m in MODALITIES for end in ("", "-spans")}
    train(data, replace(options, seed=1), tmp_path / "two", silent)
    assert {path: path.stat().st_mtime_ns for path in data.folder.glob("frozen-*/*.npy")} == kept

    weights = load_file(tmp_path / "one" / WEIGHTS_FILE)
    assert not [name for name in weights if ".backbone." in name]
    checkpoint, raw = load_checkpoint(tmp_path / "one"), Reader(data, raw_sources(data))
    assert checkpoint.config.trained
    untrained = checkpoint_from_preset(options.preset, "meld").model
    for m in MODALITIES:
        before, after = (model.encoders[m].state_dict() for model in (untrained, checkpoint.model))
        assert all(torch.equal(before[name], after[name]) for name in before if not name.startswith("projection."))
        assert not torch.equal(before["projection.weight"], after["projection.weight"])

    anew = predict(checkpoint.model, raw, data.of("test"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cmt_training.evaluate, "fast_precision", lambda: torch.float32)
        with reading(checkpoint, data, silent) as reader:
            again = predict(checkpoint.model, reader, data.of("test"))
    np.testing.assert_allclose(again.logits, anew.logits, atol=2e-2)
    assert predict(checkpoint.model, raw, data.of("test")).logits.tolist() == anew.logits.tolist()
    assert "precision" in evaluate(checkpoint, data, silent).conditions


def test_weights_are_averaged_where_no_encoder_starts_from_nothing(data: Prepared, options: TrainOptions) -> None:
    """Heads on frozen encoders swing from epoch to epoch."""

    def decay(changed: TrainOptions, *, features: bool = False) -> float:
        checkpoint = checkpoint_from_preset(changed.preset, "meld", model=changed.model)
        ready = opened(checkpoint, data, changed, silent)
        trainee = trainee_of(checkpoint.model, ready, ready.reader, data, changed, features=features)
        task = task_of(trainee, ready.reader, data, changed)
        without_idle(task, Loss(changed, ready.reader.labels(task.training), task.labels))
        return average_of(trainee, changed)

    assert decay(options) == decay(replace(options, model="audio")) == 0.99
    assert decay(replace(options, ema=0.5)) == 0.5
    assert decay(replace(options, tune="last-1")) == 0.999
    assert decay(options, features=True) == 0.0
    assert decay(replace(options, preset=OPTIONS.preset)) == 0.0


def test_nothing_is_made_of_what_never_moves(tmp_path: Path) -> None:
    """MiniLM has such channels; divided by next to nothing, their weights left eight bits none for the others."""
    rng = np.random.default_rng(0)
    rows = rng.normal(3, 0.5, (40, 6)).astype(np.float16)
    rows[:, 1], rows[:, 4] = 0, 5
    np.save(tmp_path / "text.npy", rows)
    np.save(tmp_path / "text-spans.npy", np.array([[0, 0, 25], [9, 25, 15]]))
    kept, absent = Encoded(tmp_path, "text"), dict.fromkeys((*MODALITIES, "valence", "arousal"))
    items = [Item("a", "train", "joy", **absent | {"text": (at, 3)}, cues={}, tags={}, speaker="") for at in (0, 9)]  # type: ignore[arg-type]
    mean, deviation = kept.moments(items)
    assert torch.isinf(deviation).tolist() == [False, True, False, False, True, False]
    np.testing.assert_allclose(mean, rows.astype(np.float64).mean(axis=0), rtol=1e-5)
    projection = torch.nn.Linear(6, 4)
    tokens = torch.from_numpy(rows.astype(np.float32))[None]
    stand_in = Projected(GivenText(), projection, mean, deviation)
    with torch.no_grad():
        wanted, _ = stand_in(tokens, torch.ones(1, 40, dtype=torch.int64))
        stand_in.fold()
        np.testing.assert_allclose(projection(tokens), wanted, atol=1e-5)
    assert not projection.weight[:, [1, 4]].any()
    assert projection.weight.abs().max() < 10
