"""Preparing: serving's very tensors, once, whole or not at all; what can't be used is counted or refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cmt_export.checkpoint import Checkpoint
from cmt_pipeline.preprocess import make_preprocessors
from cmt_training.batches import Reader, raw_sources
from cmt_training.data.media import read_audio, read_image
from cmt_training.examples import DataError, DataSet, Example, Media
from cmt_training.prepare import INDEX_FILE, PIXELS_FILE, TOKENS_FILE, Prepared, prepare


def silent(*_: object) -> None:
    pass


def prepared_of(data: DataSet, checkpoint: Checkpoint, cache: Path, workers: int = 1) -> Prepared:
    return prepare(data, checkpoint.config.preprocess, checkpoint.tokenizer, cache, silent, workers)


def test_tensors_are_those_that_serving_makes(prepared: Prepared, corpus: DataSet, untrained: Checkpoint) -> None:
    preprocessors = make_preprocessors(untrained.config.preprocess, untrained.tokenizer)
    reader = Reader(prepared, raw_sources(prepared))
    for index, example in enumerate(corpus.examples[:8]):
        batch = reader.batch([index]).inputs
        if example.image is not None:
            pixels = preprocessors["image"](read_image(example.image))["pixel_values"]
            assert (batch["pixel_values"][0].numpy() == pixels).all()
        if example.audio is not None:
            ready = preprocessors["audio"](read_audio(example.audio))
            count = int(ready["num_samples"][0])
            assert batch["num_samples"].tolist() == [[count]]
            np.testing.assert_allclose(batch["input_values"][0], ready["input_values"][:count], rtol=1e-3, atol=1e-3)
        if example.text is not None:
            ready = preprocessors["text"](example.text.encode())
            count = int(ready["attention_mask"].sum())
            assert batch["input_ids"][0].tolist() == ready["input_ids"][:count].tolist()


def test_it_is_done_once(prepared: Prepared, corpus: DataSet, untrained: Checkpoint) -> None:
    stamp = (prepared.folder / INDEX_FILE).stat().st_mtime_ns
    again = prepared_of(corpus, untrained, prepared.folder.parent)
    assert again == prepared
    assert (again.folder / INDEX_FILE).stat().st_mtime_ns == stamp


def test_other_data_and_other_preprocessing_lie_elsewhere(
    corpus: DataSet, untrained: Checkpoint, tmp_path: Path
) -> None:
    data = replace(corpus, examples=corpus.examples[:3])
    config = untrained.config.preprocess
    folders = {prepared_of(data, untrained, tmp_path).folder}
    folders.add(prepare(data, replace(config, image_mean=(0.4,) * 3), untrained.tokenizer, tmp_path, silent).folder)
    folders.add(prepared_of(replace(corpus, examples=corpus.examples[:4]), untrained, tmp_path).folder)
    assert len(folders) == 3
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.long
def test_many_processes_prepare_what_one_does(corpus: DataSet, untrained: Checkpoint, tmp_path: Path) -> None:
    many = tuple(replace(example, id=f"{example.id}-{turn}") for turn in range(4) for example in corpus.examples)
    data = replace(corpus, examples=many)
    one, two = (prepared_of(data, untrained, tmp_path / str(workers), workers) for workers in (1, 2))
    assert one.items == two.items
    for file in (PIXELS_FILE, TOKENS_FILE):
        assert (one.array(file) == two.array(file)).all()


def test_media_that_cant_be_read_are_counted(corpus: DataSet, untrained: Checkpoint, tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF no sound at all")
    first = corpus.examples[0]
    examples = (
        first,
        replace(first, id="a corrupt clip", audio=Media(broken)),
        replace(first, id="nothing left", image=Media(tmp_path / "none.png"), audio=None, text=None),
        replace(first, id="blank text", text="   "),
    )
    data = replace(corpus, examples=examples, skipped={"listed, no clip": ("x", "y")})
    prepared = prepared_of(data, untrained, tmp_path / "cache")
    assert [item.id for item in prepared.items] == [first.id, "a corrupt clip", "blank text"]
    assert prepared.items[1].audio is None
    assert prepared.skipped == {
        "listed, no clip": 2,
        "audio can't be read": 1,
        "image can't be read": 1,
        "nothing left of the example": 1,
        "text.empty": 1,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "bored"}, r"train-0: label: got 'bored'; expected one of meld's.*Correct"),
        ({"valence": float("nan")}, r"train-0: valence: got nan.*correct.*train-0.png"),
        ({"arousal": float("inf")}, r"train-0: arousal: got inf"),
        ({"split": "dev"}, r"train-0: split: got 'dev'"),
    ],
)
def test_what_no_training_can_use_is_refused_by_name(
    corpus: DataSet, untrained: Checkpoint, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    data = replace(corpus, examples=(replace(corpus.examples[0], **change),))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=said):
        prepared_of(data, untrained, tmp_path)
    assert not list(tmp_path.iterdir())


def test_empty_splits_and_empty_data_are_refused(corpus: DataSet, untrained: Checkpoint, tmp_path: Path) -> None:
    data = replace(corpus, examples=corpus.of("train")[:3])
    prepared = prepared_of(data, untrained, tmp_path)
    with pytest.raises(DataError, match=r"the split 'validation' of 'small' is empty .*'train': 3.*complete"):
        prepared.of("validation")
    gone = Example("gone", "train", "joy", image=Media(tmp_path / "gone.png"))
    with pytest.raises(DataError, match=r"no usable example came out of 1 of 'small'.*check the folder"):
        prepared_of(replace(corpus, examples=(gone,)), untrained, tmp_path)
