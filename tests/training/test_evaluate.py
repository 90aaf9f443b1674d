"""Evaluation: what it measures, writes and refuses."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmt_export.checkpoint import Checkpoint, load_checkpoint
from cmt_export.model import run_model
from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import SUBSETS
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_pipeline.tensors import Array
from cmt_training.data.media import read_audio, read_image
from cmt_training.evaluate import evaluate
from cmt_training.examples import DataError, DataSet
from cmt_training.metrics import metrics_of
from cmt_training.prepare import Prepared
from cmt_training.report import write_evaluation
from cmt_training.train import train
from small_training import OPTIONS, silent


@pytest.fixture(scope="module")
def trained(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    out = tmp_path_factory.mktemp("trained") / "out"
    train(prepared, OPTIONS, out, silent)
    return load_checkpoint(out)


def served(checkpoint: Checkpoint, data: DataSet) -> tuple[Array, Array]:
    """Probabilities and labels of the test split, each item from its bytes and on its own, as a server has it."""
    preprocessors = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)
    probabilities = []
    for example in data.of("test"):
        tensors: dict[str, Array] = {}
        if example.image is not None:
            tensors |= collate("image", [preprocessors["image"](read_image(example.image))])
        if example.audio is not None:
            tensors |= collate("audio", [preprocessors["audio"](read_audio(example.audio))])
        if example.text is not None:
            tensors |= collate("text", [preprocessors["text"](example.text.encode())])
        probabilities.append(run_model(checkpoint.model, tensors)["probabilities"][0])
    names = labels_of(data.label_set)
    return np.stack(probabilities), np.array([names.index(example.label) for example in data.of("test")])


@pytest.mark.long
def test_it_measures_what_serving_answers(trained: Checkpoint, prepared: Prepared, corpus: DataSet) -> None:
    backbone = trained.model.encoders["text"].backbone
    evaluation = evaluate(trained, prepared, silent)
    assert trained.model.encoders["text"].backbone is backbone
    wanted = metrics_of(*served(trained, corpus))
    assert evaluation.calibrated == pytest.approx(wanted, abs=2e-3)
    assert evaluation.uncalibrated["accuracy"] == evaluation.calibrated["accuracy"]
    assert sum(map(sum, evaluation.confusion)) == evaluation.calibrated["count"] == 9
    assert list(evaluation.subsets) == ["+".join(subset) for subset in SUBSETS]
    for name, metrics in evaluation.subsets.items():
        able = [e for e in corpus.of("test") if any(getattr(e, m) is not None for m in name.split("+"))]
        assert metrics["count"] == len(able)
    assert {"machine", "versions", "commit", "command"} <= evaluation.conditions.keys()


@pytest.mark.long
def test_it_writes_json_figures_and_one_page(trained: Checkpoint, prepared: Prepared, tmp_path: Path) -> None:
    curves = {"noise": [(0.0, prepared), (1.0, prepared)]}
    evaluation = evaluate(trained, prepared, silent, curves=curves)
    write_evaluation(evaluation, tmp_path / "report")
    written = {path.name for path in (tmp_path / "report").iterdir()}
    figures = {"confusion.png", "calibration.png", "subsets.png", "robustness_noise.png"}
    assert written == {"evaluation.json", "MODEL_CARD.md", "report.html", *figures}
    values = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert values["curves"]["noise"][1][1]["weighted_f1"] == evaluation.calibrated["weighted_f1"]
    assert "Not for real decisions about people" in (tmp_path / "report" / "MODEL_CARD.md").read_text()
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == len(figures)
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert (tmp_path / "report" / "confusion.png").read_bytes().startswith(b"\x89PNG")


def test_other_labels_and_empty_splits_are_refused(trained: Checkpoint, prepared: Prepared) -> None:
    with pytest.raises(DataError, match="labels of 'iemocap4'; the checkpoint answers with those of 'meld'"):
        evaluate(trained, replace(prepared, label_set="iemocap4"), silent)
    no_test = replace(prepared, items=tuple(item for item in prepared.items if item.split != "test"))
    with pytest.raises(DataError, match="the split 'test' of 'small' is empty"):
        evaluate(trained, no_test, silent)
