"""Calibration of composed classifiers: it finds what was put in, helps on items held out, and leaves alone what it
can't better."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_export.checkpoint import Checkpoint
from cmt_export.compose import ComposeOptions, compose
from cmt_export.fusion import CrossModalFusion
from cmt_export.log_linear import Calibrated, Expert, LogLinearFusion
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.presets import FusionSize
from cmt_pipeline.tensors import MODEL_WIDTH
from cmt_training import calibration
from cmt_training.calibration import calibrate
from cmt_training.data import open_data_set
from cmt_training.examples import DataError
from cmt_training.prepare import Prepared, prepare
from published_classifiers import ROWS, made
from small_training import silent

LABELS = 4


def drawn(count: int, sharper: float, seed: int = 0) -> calibration.CalibrationItems:
    """Items whose heads are right about their own doubts, but for logits that are `sharper` times too large; the sound
    only repeats what the image says, so that together they are too sure."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randn(count, 2, LABELS, generator=generator, dtype=torch.float64) * 1.5
    labels = torch.multinomial(true.sum(dim=1).softmax(dim=1), 1, generator=generator)[:, 0]
    outputs = torch.stack([true[:, 0], true[:, 0], true[:, 1]], dim=1) * sharper
    return calibration.CalibrationItems(outputs, torch.ones(count, 3, dtype=torch.float64), labels)


@pytest.fixture
def fusion() -> LogLinearFusion:
    return LogLinearFusion({m: Expert("softmax", tuple(range(LABELS))) for m in MODALITIES}, LABELS)


def test_it_finds_what_was_put_in(fusion: LogLinearFusion) -> None:
    items = drawn(4000, sharper=3.0)
    found = calibration.fitted(fusion, items)
    text = found.temperatures[2]
    assert text > 2.5  # its logits were 3 times too large, and alone it knows half of the truth
    assert found.weights[0] + found.weights[1] == pytest.approx(float(found.weights[2]), rel=0.35)
    fresh = drawn(4000, sharper=3.0, seed=1)
    before = calibration._losses(fusion, fresh, calibration._double(Calibrated.none(LABELS))).mean()
    after = calibration._losses(fusion, fresh, found).mean()
    assert after < 0.8 * before


def test_what_is_right_already_stays_about_as_it_is(fusion: LogLinearFusion) -> None:
    items = drawn(4000, sharper=1.0)
    alone = calibration.CalibrationItems(
        items.outputs, items.presence * torch.tensor([0.0, 0.0, 1.0]).double(), items.labels
    )
    found = calibration.fitted(fusion, alone)
    assert found.biases.abs().max() < 0.2
    torch.testing.assert_close(found.log_prior.exp(), torch.full((LABELS,), 1 / LABELS).double(), atol=0.05, rtol=0)


@torch.no_grad()
def test_a_fusion_is_calibrated_by_its_parts() -> None:
    """Its text is half as sure as it says, its image and sound say nothing of the label, its interaction is noise."""
    torch.manual_seed(0)
    fusion = CrossModalFusion(FusionSize(layers=2, heads=4, feed_forward_width=64), LABELS).eval()
    for head in fusion.heads:
        torch.nn.init.normal_(head.emotion_head[-1].weight, std=0.4)
    torch.nn.init.normal_(fusion.interaction[-1].weight, std=0.2)

    def given(seed: int) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        features = [torch.randn(600, 3, MODEL_WIDTH, generator=generator) for _ in MODALITIES]
        masks = [torch.ones(600, 3)] * 3
        logits, _, separate = fusion.taught(features, masks)
        return features, masks, logits, separate

    _, masks, logits, separate = given(1)
    truth = 0.5 * separate[:, 2]
    labels = torch.multinomial(truth.softmax(dim=1), 1, generator=torch.Generator().manual_seed(2))[:, 0]
    fresh, _, before, said = given(3)
    right = (0.5 * said[:, 2]).softmax(dim=1)

    def cross_entropy(logits: torch.Tensor) -> float:
        return float(-(right * logits.log_softmax(dim=1)).sum(dim=1).mean())

    least = float(-(right * right.log()).sum(dim=1).mean())
    believed = fusion.interaction[-1].weight.clone()
    items = calibration.CalibrationItems(separate.double(), torch.ones(600, 3).double(), labels)
    calibration.calibrate_parts(fusion, items, logits)
    after = cross_entropy(fusion.answer(fresh, masks)[0])
    assert cross_entropy(before) > least + 0.5
    assert after < least + 0.05
    assert fusion.interaction[-1].weight[:LABELS].norm() < 0.3 * believed[:LABELS].norm()
    assert torch.equal(fusion.interaction[-1].weight[LABELS:], believed[LABELS:]), "valence and arousal as they were"
    only_text = [masks[0] * 0, masks[1] * 0, masks[2]]
    assert cross_entropy(fusion.answer(fresh, only_text)[0]) < least + 0.05


@pytest.fixture(scope="module")
def composed(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = made(ROWS["bhadresh-savani/bert-base-uncased-emotion"], tmp_path_factory.mktemp("published"))
    return compose(ComposeOptions({"text": str(folder)}, "joy,anger,sadness"))


def table(folder: Path, count: int, only_tested: str = "") -> Path:
    rng = np.random.default_rng(0)
    path = folder / "said.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label", "split"])
        for number in range(count):
            label = ("joy", "anger", "sadness")[number % 3]
            tested = label == only_tested or number % 10 == 9
            words = " ".join(rng.choice(["well", "now", "then", "look", "here", label], 5))
            rows.writerow([f"{words} {number}", label, "test" if tested else "train"])
    return path


def ready(composed: Checkpoint, path: Path, cache: Path) -> Prepared:
    data = open_data_set(path, label_set=composed.config.label_set)
    return prepare(data, composed.config.preprocess, composed.tokenizer, cache, silent)


def test_items_held_out_are_answered_better(composed: Checkpoint, tmp_path: Path) -> None:
    """Random heads are sure of nothing that is so: calibration learns to say little."""
    found = calibrate(composed, ready(composed, table(tmp_path, 200), tmp_path / "cache"), silent)
    assert (found.items, found.kept) == (180, True)  # the test split isn't read
    assert found.after < min(found.before, np.log(3) + 0.05)
    fusion = composed.model.fusion
    assert isinstance(fusion, LogLinearFusion)
    assert fusion.temperatures[2] != 1
    assert fusion.temperatures[:2].tolist() == [1, 1]


def test_too_few_items_and_labels_nobody_has(composed: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got 36 items outside of the test split; expected 50 at least"):
        calibrate(composed, ready(composed, table(tmp_path, 40), tmp_path / "cache"), silent)
    few = table(tmp_path, 100, only_tested="sadness")
    with pytest.raises(DataError, match="no item has the label sadness; expected some of each"):
        calibrate(composed, ready(composed, few, tmp_path / "cache"), silent)
