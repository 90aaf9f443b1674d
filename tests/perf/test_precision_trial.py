"""What a precision costs, on a small corpus and the engines of real releases."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmt_engine.engine import Precision
from cmt_export.checkpoint import Checkpoint
from cmt_export.model import run_model
from cmt_perf.precision_trial import answers, measured
from cmt_pipeline.modality import MODALITIES
from cmt_pipeline.progress import no_progress
from cmt_release.release import Release
from cmt_training.batches import Reader, raw_sources
from cmt_training.examples import DataError, DataSet
from cmt_training.metrics import metrics_of
from cmt_training.prepare import Prepared, prepare
from small_corpus import small_corpus


def prepared_from(data: DataSet, checkpoint: Checkpoint, folder: Path) -> Prepared:
    return prepare(data, checkpoint.config.preprocess, checkpoint.tokenizer, folder, no_progress)


@pytest.mark.slow
def test_engines_answer_as_pytorch_and_are_judged_by_it(
    release_of: Callable[[Precision], Release], checkpoint: Checkpoint, tmp_path: Path
) -> None:
    data = prepared_from(small_corpus(tmp_path / "corpus"), checkpoint, tmp_path / "cache")
    reader = Reader(data, raw_sources(data))
    whole = [index for index in data.of("test") if all(data.items[index].has(m) for m in MODALITIES)]
    assert 0 < len(whole) < len(data.of("test"))
    truth = np.concatenate(
        [
            run_model(checkpoint.model, {name: t.numpy() for name, t in reader.batch([item]).inputs.items()})[
                "probabilities"
            ]
            for item in whole
        ]
    )
    assert np.abs(answers(release_of("fp32"), reader, whole) - truth).max() < 1e-3

    fp32, again, int8 = measured([release_of(one) for one in ("fp32", "fp32", "int8")], data)["rows"]
    expected = metrics_of(truth, reader.labels(whole))
    assert fp32["weighted_f1"] == pytest.approx(expected["weighted_f1"], abs=1e-3)
    assert fp32["cross_entropy"] == pytest.approx(expected["cross_entropy"], abs=1e-2)
    assert again == fp32
    assert fp32["as_fp32"] == 1
    assert int8["precision"] == "int8"
    assert int8["cross_entropy"] != fp32["cross_entropy"]
    assert int8["cross_entropy"] == pytest.approx(fp32["cross_entropy"], abs=0.3)


def test_items_without_a_modality_are_no_trial(checkpoint: Checkpoint, tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus", counts=(3, 3, 3))
    silent = DataSet(corpus.name, corpus.label_set, tuple(replace(e, audio=None) for e in corpus.examples))
    with pytest.raises(DataError, match="has all of image, audio, text"):
        measured([], prepared_from(silent, checkpoint, tmp_path / "cache"))
