"""Single-modality data sets paired by label: within a split, the same every time, and called paired."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cmt_export.checkpoint import Checkpoint
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_training.data import DataChoice
from cmt_training.data.names import label_set_of
from cmt_training.data.pairing import Parts, paired
from cmt_training.examples import SPLITS, DataError, DataSet, Example, Media
from cmt_training.prepare import prepare
from small_corpus import small_corpus


def part(name: str, modality: Modality, labels: tuple[str, ...], count: int, people: str = "") -> DataSet:
    """count examples of each label and split."""
    examples = []
    for split in SPLITS:
        for label in labels:
            for n in range(count):
                found = f"{split} {label} {n}" if modality == "text" else Media(Path(f"{split}-{label}-{n}"))
                speaker = f"{people} {split} {n}" if people else ""
                id_ = f"{name} {split} {label} {n}"
                examples.append(Example(id_, split, label, **{modality: found}, speaker=speaker))  # type: ignore[arg-type]
    return DataSet(name, label_set_of(labels, name), tuple(examples))


@pytest.fixture
def parts() -> Parts:
    return {
        "image": part("fer2013", "image", ("anger", "joy", "surprise"), 5),
        "audio": part("emodb", "audio", ("anger", "boredom", "joy"), 2, "e"),
        "text": part("words.csv", "text", ("angry", "happy"), 3, "w"),
    }


def test_each_example_is_of_one_label_and_one_split(parts: Parts) -> None:
    data = paired(parts)
    assert (data.name, data.label_set) == ("paired-fer2013-emodb-words.csv", "anger,joy")
    assert Counter((e.split, e.label) for e in data.examples) == {(s, n): 5 for s in SPLITS for n in ("anger", "joy")}
    own = {"anger": "angry", "joy": "happy"}
    for example in data.examples:
        assert example.image.path.name.startswith(f"{example.split}-{example.label}-")  # type: ignore[union-attr]
        assert example.audio.path.name.startswith(f"{example.split}-{example.label}-")  # type: ignore[union-attr]
        assert example.text.startswith(f"{example.split} {own[example.label]} ")  # type: ignore[union-attr]
    assert data.skipped == {
        "image of fer2013: label outside of the label set: surprise": tuple(
            e.id for e in parts["image"].examples if e.label == "surprise"
        ),
        "audio of emodb: label outside of the label set: boredom": tuple(
            e.id for e in parts["audio"].examples if e.label == "boredom"
        ),
    }
    assert data.notes[0].startswith(
        "paired by label (seed 0), nobody recorded at once: image of fer2013, audio of emodb"
    )
    assert "train 10 (image 10, audio 4, text 6)" in data.notes[0]


def test_everything_is_used_evenly_and_the_same_every_time(parts: Parts) -> None:
    data = paired(parts)
    for m, often in (("image", {1}), ("audio", {2, 3}), ("text", {1, 2})):
        assert set(Counter(e.tags[m] for e in data.examples).values()) == often
    assert paired(parts) == data
    other = paired(parts, seed=1)
    assert [e.tags for e in other.examples] != [e.tags for e in data.examples]


def test_a_label_that_a_split_lacks_is_counted(parts: Parts) -> None:
    audio = parts["audio"]
    lacking = tuple(e for e in audio.examples if (e.split, e.label) != ("test", "joy"))
    data = paired({**parts, "audio": replace(audio, examples=lacking)})
    assert len(data.skipped["joy in test: no audio"]) == 8
    assert {e.label for e in data.of("test")} == {"anger"}


def test_people_are_kept_apart_across_tables(parts: Parts) -> None:
    audio, text = (
        part("voices.csv", "audio", ("anger", "joy"), 2, "p"),
        part("words.csv", "text", ("anger", "joy"), 3, "p"),
    )
    assert paired({"audio": audio, "text": text}).examples
    moved = tuple(replace(e, speaker="p train 1") if e.speaker == "p test 0" else e for e in text.examples)
    moved = tuple(e for e in moved if (e.split, e.speaker) != ("train", "p train 1"))
    with pytest.raises(DataError, match=r"people in different splits: p train 1 \(train, test\); expected each in one"):
        paired({"audio": audio, "text": replace(text, name="w.csv", examples=moved)})
    names_alone = {"audio": replace(audio, name="emodb"), "text": text}
    assert paired(names_alone).examples  # speakers of another data set are others


def test_splits_published_with_shared_people_are_said(parts: Parts) -> None:
    text = part("meld", "text", ("anger", "joy"), 2)
    text = replace(text, examples=tuple(replace(e, speaker="Joey") for e in text.examples))
    notes = paired({"image": parts["image"], "text": text}).notes
    assert "the splits of meld share people, as it was published" in notes


def test_what_cant_be_paired_is_refused(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected two or three modalities"):
        paired({"image": parts["image"]})
    with pytest.raises(DataError, match="emodb has no image"):
        paired({"image": parts["audio"], "text": parts["text"]})
    with pytest.raises(
        DataError, match=r"got labels of which 1 are in all \(fer2013: anger, joy, surprise; x: awe, joy"
    ):
        paired({"image": parts["image"], "audio": part("x", "audio", ("joy", "awe"), 1)})
    for pairs in (("image",), ("smell=a",), ("image=a", "image=b")):
        with pytest.raises(DataError, match="--pair: got"):
            DataChoice(pairs=pairs).open()
    with pytest.raises(DataError, match="expected either DATA, or --pair"):
        DataChoice().open()
    with pytest.raises(DataError, match="expected either DATA, or --pair"):
        DataChoice(tmp_path, pairs=("image=a",)).open()


def test_media_that_recur_are_prepared_once(untrained: Checkpoint, tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path / "corpus")
    data = paired(dict.fromkeys(MODALITIES, corpus))
    made = prepare(data, untrained.config.preprocess, untrained.tokenizer, tmp_path / "prepared", lambda *_: None, 1)
    assert made.notes == data.notes
    images = {e.image for e in data.examples}
    assert len({item.image for item in made.items}) == len(images) == len(made.array("pixels.npy"))
    assert len(made.items) == len(data.examples) > len(images) - 1
    frames = {item.audio for item in made.items}
    assert sum(count for _, count in frames if frames) == len(made.array("samples.npy"))  # type: ignore[misc]
