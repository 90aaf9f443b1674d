"""Published classifiers, composed: each says what transformers says of the same input, or is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from cmt_export.checkpoint import load_checkpoint, save_checkpoint
from cmt_export.compose import ComposeOptions, compose, meanings
from cmt_export.errors import CheckpointError
from cmt_export.samples import generated_bytes
from cmt_pipeline.preprocess import collate, make_preprocessors
from cmt_pipeline.stages import READY
from published_classifiers import PAGE, ROWS, logits_of, made, table

COMPOSED = {name: row for name, row in ROWS.items() if not row.refused}
REFUSED = {name: row for name, row in ROWS.items() if row.refused}


@pytest.mark.long
@pytest.mark.parametrize("name", COMPOSED)
def test_it_says_what_transformers_says(name: str, tmp_path: Path) -> None:
    row = COMPOSED[name]
    folder = made(row, tmp_path / "published")
    checkpoint = compose(ComposeOptions({row.modality: str(folder)}))
    rng = np.random.default_rng(0)
    item = make_preprocessors(checkpoint.config.preprocess, checkpoint.tokenizer)[row.modality](
        generated_bytes(row.modality, rng, 1.3)
    )
    ready = collate(row.modality, [item])
    inputs = [torch.from_numpy(ready[spec.name]) for spec in READY[row.modality]]
    with torch.inference_mode():
        features, mask = checkpoint.model.encoders[row.modality](*inputs)
    expected = logits_of(folder, row.modality, ready)
    assert expected.std() > 1e-3
    torch.testing.assert_close(features[0, 0, : len(expected)], expected, atol=2e-4, rtol=1e-4)
    assert (features[0, 0, len(expected) :] == 0).all()
    assert mask.tolist() == [[1]]

    save_checkpoint(checkpoint, tmp_path / "saved")
    again = load_checkpoint(tmp_path / "saved")
    with torch.inference_mode():
        torch.testing.assert_close(again.model.encoders[row.modality](*inputs)[0], features)
    assert meanings(again) == meanings(checkpoint)
    assert again.config.to_json() == checkpoint.config.to_json()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cant_be_composed_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    folder = made(REFUSED[name], tmp_path)
    with pytest.raises(CheckpointError) as caught:
        compose(ComposeOptions({REFUSED[name].modality: str(folder)}))
    assert REFUSED[name].refused in str(caught.value)


def test_names_that_say_nothing_are_given_by_the_caller(tmp_path: Path) -> None:
    folder = made(ROWS["Dpngtm/wav2vec2-emotion-recognition"], tmp_path)
    names = ["angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"]
    checkpoint = compose(ComposeOptions({"audio": str(folder)}, names={"audio": names}))
    assert meanings(checkpoint)["audio"]["happy"] == "joy"
    with pytest.raises(CheckpointError, match=r"has 7 outputs and the names angry, disgust \(2\)"):
        compose(ComposeOptions({"audio": str(folder)}, names={"audio": names[:2]}))


def test_the_page_shows_every_row() -> None:
    assert table() in PAGE.read_text(), "PYTHONPATH=tests python -m published_classifiers"
