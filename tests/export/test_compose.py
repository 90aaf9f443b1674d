"""Composed checkpoints: published classifiers pooled, by hand and by the fusion."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_export.checkpoint import Checkpoint, load_checkpoint, merging_tokens, save_checkpoint
from cmt_export.compose import ComposeOptions, compose, meanings
from cmt_export.errors import CheckpointError
from cmt_export.log_linear import Calibrated, Expert, LogLinearFusion
from cmt_export.model import run_model
from cmt_export.samples import generated_bytes
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, SUBSETS, Modality
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_pipeline.tensors import Array
from published_classifiers import ROWS, logits_of, made

THREE: Mapping[Modality, str] = {
    "image": "trpakov/vit-face-expression",
    "audio": "superb/hubert-base-superb-er",
    "text": "j-hartmann/emotion-english-distilroberta-base",
}
DIMENSIONS = "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("published")
    names = (*THREE.values(), DIMENSIONS, "SamLowe/roberta-base-go_emotions")
    return {name: made(ROWS[name], root / str(number)) for number, name in enumerate(names)}


@pytest.fixture(scope="module")
def composed(folders: dict[str, Path]) -> Checkpoint:
    return compose(ComposeOptions({m: str(folders[name]) for m, name in THREE.items()}))


@pytest.fixture(scope="module")
def ready(composed: Checkpoint) -> dict[Modality, dict[str, Array]]:
    rng = np.random.default_rng(1)
    prepare = make_preprocessors(composed.config.preprocess, composed.tokenizer)
    return {m: collate(m, [prepare[m](generated_bytes(m, rng, 1.7))]) for m in MODALITIES}


def by_hand(logits: Mapping[Modality, Array], meant: Mapping[Modality, Mapping[str, str | None]]) -> Array:
    """The product of what transformers says, each over the labels that it knows, which keep their share of the rest."""
    labels = labels_of("meld")
    total = np.ones(len(labels))
    for m, row in logits.items():
        probabilities = np.exp(row - row.max())
        by_label = dict.fromkeys(labels, 0.0)
        for name, p in zip(meant[m], probabilities, strict=True):
            if meant[m][name] is not None:
                by_label[str(meant[m][name])] += float(p)
        known = [label for label in labels if by_label[label] > 0]
        whole = sum(by_label.values())
        for index, label in enumerate(labels):
            total[index] *= by_label[label] / whole * len(known) if label in known else 1.0
    pooled: Array = total / total.sum()
    return pooled


@pytest.mark.long
@pytest.mark.parametrize("subset", SUBSETS, ids="+".join)
def test_a_subset_is_the_product_of_what_transformers_says(
    subset: tuple[Modality, ...],
    composed: Checkpoint,
    folders: dict[str, Path],
    ready: dict[Modality, dict[str, Array]],
) -> None:
    answer = run_model(composed.model, {name: array for m in subset for name, array in ready[m].items()})
    logits = {m: logits_of(folders[THREE[m]], m, ready[m]).numpy().astype(np.float64) for m in subset}
    expected = by_hand(logits, meanings(composed))
    np.testing.assert_allclose(answer["probabilities"][0], expected, atol=2e-4)
    np.testing.assert_allclose(answer["attention"][0], [(m in subset) / len(subset) for m in MODALITIES], atol=1e-6)
    assert not composed.model.reads_valence_arousal


def test_what_a_classifier_doesnt_know_keeps_its_share(
    composed: Checkpoint, ready: dict[Modality, dict[str, Array]]
) -> None:
    """The classifier of sound knows four labels of seven."""
    answer = run_model(composed.model, ready["audio"])["probabilities"][0]
    of = dict(zip(composed.config.labels, answer, strict=True))
    unknown = [of[label] for label in ("surprise", "fear", "disgust")]
    np.testing.assert_allclose(unknown, 1 / 7, atol=1e-5)


def test_numbers_are_valence_and_arousal(folders: dict[str, Path], ready: dict[Modality, dict[str, Array]]) -> None:
    sources: dict[Modality, str] = {"audio": str(folders[DIMENSIONS]), "text": str(folders[THREE["text"]])}
    composed = compose(ComposeOptions(sources))
    arousal, _, valence = logits_of(folders[DIMENSIONS], "audio", ready["audio"]).tolist()
    inputs = {**ready["audio"], **ready["text"]}
    expected = [[2 * min(max(value, 0), 1) - 1 for value in (valence, arousal)]]
    both, alone = run_model(composed.model, inputs), run_model(composed.model, ready["audio"])
    for answer in (both, alone):
        np.testing.assert_allclose(answer["valence_arousal"], expected, atol=1e-4)
    np.testing.assert_allclose(alone["probabilities"], 1 / 7, atol=1e-6)  # numbers say nothing of labels
    assert composed.model.reads_valence_arousal
    assert composed.model.modalities == ("audio", "text")


def test_names_that_stand_each_by_itself(folders: dict[str, Path], ready: dict[Modality, dict[str, Array]]) -> None:
    folder = folders["SamLowe/roberta-base-go_emotions"]
    composed = compose(ComposeOptions({"text": str(folder)}, synonyms={"annoyance": "anger", "grief": "sadness"}))
    logits = logits_of(folder, "text", ready["text"])
    scores: dict[str, float] = {}
    for (name, label), score in zip(meanings(composed)["text"].items(), torch.sigmoid(logits).tolist(), strict=True):
        if label is not None:
            assert name not in ("love", "pride")
            scores[label] = max(score, scores.get(label, 0.0))
    expected = [scores[label] / sum(scores.values()) for label in labels_of("meld")]
    np.testing.assert_allclose(run_model(composed.model, ready["text"])["probabilities"][0], expected, atol=2e-4)


def test_a_prior_counts_once(composed: Checkpoint, ready: dict[Modality, dict[str, Array]]) -> None:
    """However many modalities there are: each adds what it says beyond the prior."""
    experts = {m: Expert("softmax", (0, 1)) for m in MODALITIES}
    fusion = LogLinearFusion(experts, 2)
    found = Calibrated.none(2)
    fusion.calibrate(Calibrated(torch.tensor([0.9, 0.1]).log(), found.temperatures, found.biases, found.weights))
    says_the_prior = torch.tensor([0.9, 0.1]).log()[None]
    for count in (1, 2, 3):
        presence = torch.tensor([[float(index < count) for index in range(3)]])
        logits, _ = fusion.pooled([says_the_prior] * 3, presence, fusion.calibrated)
        torch.testing.assert_close(logits.exp(), torch.tensor([[0.9, 0.1]]))


def test_what_no_composition_can_be(folders: dict[str, Path]) -> None:
    text = str(folders[THREE["text"]])
    for label_set, told in (("calm,bored", "fewer than two have a place among calm, bored"), ("meld", "")):
        options = ComposeOptions({"text": text}, label_set, synonyms={} if told else {"joy": "glee"})
        with pytest.raises(CheckpointError, match=told or "got the label 'glee' for a name; expected one of neutral"):
            compose(options)
    with pytest.raises(CheckpointError, match="names 'roberta', which reads text; expected one that reads image"):
        compose(ComposeOptions({"image": text}))
    with pytest.raises(ValueError, match="got names for audio, and no classifier for it"):
        ComposeOptions({"text": text}, names={"audio": ["joy"]})


def test_a_classifier_of_faces_may_merge_tokens(
    composed: Checkpoint, ready: dict[Modality, dict[str, Array]], tmp_path: Path
) -> None:
    whole = run_model(composed.model, ready["image"])["logits"]
    try:
        merging = merging_tokens(composed, 8)
        logits = run_model(merging.model, ready["image"])["logits"]
        save_checkpoint(merging, tmp_path / "merging")
    finally:
        merging_tokens(composed, 0)
    again = run_model(load_checkpoint(tmp_path / "merging").model, ready["image"])["logits"]
    assert np.array_equal(again, logits)
    assert not np.allclose(whole, logits, atol=1e-6)
    assert np.array_equal(run_model(composed.model, ready["image"])["logits"], whole)
