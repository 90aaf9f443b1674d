"""RAVDESS, CREMA-D, EmoDB, FER2013 and folders named by label: layouts with their quirks; and real ones, if there."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_pipeline.labels import labels_of
from cmt_training.data import open_data_set
from cmt_training.data.media import read_audio, read_image
from cmt_training.examples import SPLITS, DataError, DataSet

REAL = Path(__file__).parents[4] / "shared" / "data"
EMODB, FER2013 = REAL / "emodb" / "emodb.tar", REAL / "fer2013" / "fer2013.tar.gz"


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def apart(data: DataSet) -> bool:
    people = [{e.speaker for e in data.of(split)} for split in SPLITS]
    return all(people) and sum(map(len, people)) == len(set.union(*people))


def labels(data: DataSet) -> dict[str, str]:
    return {example.id: example.label for example in data.examples}


@pytest.mark.parametrize("below", ["", "wav/"])
def test_emodb(tmp_path: Path, below: str) -> None:
    letters = "WLEAFTN"
    names = [f"{below}{9 + n:02}a01{letter}{v}.wav" for n in range(3) for letter in letters for v in "abcdef"]
    data = open_data_set(touch(tmp_path, *names, f"{below}notes.txt"))
    assert (data.name, len(data.examples), data.skipped) == (
        "emodb",
        126,
        {"file that is no recording": ("notes.txt",)},
    )
    found = labels(data)
    expected = ("anger", "boredom", "disgust", "fear", "joy", "sadness", "neutral")
    assert [found[f"09a01{letter}f"] for letter in letters] == list(expected)
    assert apart(data)
    assert data.notes == ("split here by speaker (seed 0): train 1, validation 1, test 1",)
    assert {e.label for e in open_data_set(tmp_path, label_set="meld").examples} == set(expected) - {"boredom"}


def test_ravdess(tmp_path: Path) -> None:
    names = [f"Actor_{a:02}/03-01-{e:02}-01-01-01-{a:02}.wav" for a in (1, 2, 3) for e in range(1, 9)]
    touch(tmp_path, *names, "Actor_01/01-01-05-01-01-01-01.mp4", "Actor_02/02-01-05-01-01-01-02.mp4")
    touch(tmp_path, "Actor_01/03-02-05-01-01-01-01.wav", "copy/Actor_01/03-01-01-01-01-01-01.wav", "Actor_01/._x.wav")
    data = open_data_set(tmp_path)
    assert {reason: len(found) for reason, found in data.skipped.items()} == {
        "song": 1,
        "repeated file": 1,
        "companion file of macOS": 1,
    }
    found = labels(data)
    expected = ("neutral", "calm", "joy", "sadness", "anger", "fear", "disgust", "surprise")
    assert [found[f"{e:02}-01-01-01-02"] for e in range(1, 9)] == list(expected)
    assert apart(data)
    one, two, three = (next(e for e in data.examples if e.id == f"05-01-01-01-0{a}") for a in (1, 2, 3))
    assert (one.image.path.name, one.audio.path.name) == ("01-01-05-01-01-01-01.mp4", "03-01-05-01-01-01-01.wav")  # type: ignore[union-attr]
    assert (two.image.path.name, two.audio.path.suffix) == ("02-01-05-01-01-01-02.mp4", ".wav")  # type: ignore[union-attr]
    assert three.image is None


def test_cremad(tmp_path: Path) -> None:
    codes = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
    names = [f"AudioWAV/{1001 + a}_IEO_{code}_XX.wav" for a in range(4) for code in codes]
    touch(
        tmp_path,
        *names,
        "VideoFlash/1001_IEO_ANG_XX.flv",
        "VideoFlash/1001_TAI_ANG_HI.flv",
        "AudioWAV/1040_ITH_SAD_X.wav",
    )
    data = open_data_set(tmp_path)
    found = labels(data)
    expected = ("anger", "disgust", "fear", "joy", "neutral", "sadness")
    assert [found[f"1002_IEO_{code}_XX"] for code in codes] == list(expected)
    assert (data.name, len(found), data.skipped) == ("cremad", 26, {})
    assert apart(data)
    both = next(e for e in data.examples if e.id == "1001_IEO_ANG_XX")
    assert (both.image.path.suffix, both.audio.path.suffix) == (".flv", ".wav")  # type: ignore[union-attr]
    alone = next(e for e in data.examples if e.id == "1001_TAI_ANG_HI")
    assert alone.image == alone.audio


def fer_table(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows, ""]))
    return path


def test_fer2013_as_a_table_has_its_own_order_of_numbers(tmp_path: Path) -> None:
    pixels = " ".join(str(n % 256) for n in range(48 * 48))
    usages = ("Training", "PublicTest", "PrivateTest")
    rows = [f"{number},{pixels},{usages[number % 3]}" for number in range(7)]
    fer_table(tmp_path / "fer2013.csv", "emotion,pixels,Usage", rows)
    for path in (tmp_path, tmp_path / "fer2013.csv"):
        data = open_data_set(path)
        found = [e.label for e in data.examples]
        assert found == ["anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"]
        assert [e.split for e in data.examples[:3]] == ["train", "validation", "test"]
        assert (data.name, data.label_set) == ("fer2013", "meld")
    for example in data.examples:
        image = np.asarray(Image.open(io.BytesIO(read_image(example.image))))  # type: ignore[arg-type]
        assert (image.ravel() == np.arange(48 * 48) % 256).all()


def test_fer2013_table_with_spaces_and_another_order(tmp_path: Path) -> None:
    fer_table(tmp_path / "icml_face_data.csv", "emotion, Usage, pixels", ["3,Training,1 2 3 4", "6,Training,1 2 3"])
    good, bad = open_data_set(tmp_path).examples
    assert (good.label, np.asarray(Image.open(io.BytesIO(read_image(good.image)))).tolist()) == (
        "joy",
        [[1, 2], [3, 4]],
    )  # type: ignore[arg-type]
    with pytest.raises(DataError, match="has 3 values, not a square"):
        read_image(bad.image)  # type: ignore[arg-type]
    fer_table(tmp_path / "icml_face_data.csv", "emotion, Usage, pixels", ["7,Training,1 2 3 4"])
    with pytest.raises(DataError, match="line 2: emotion '7' and Usage 'training'; expected 0 to 6"):
        open_data_set(tmp_path)


def test_fer2013_as_folders(tmp_path: Path) -> None:
    names = ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    data = open_data_set(touch(tmp_path, *(f"{s}/{n}/1.jpg" for s in ("train", "validation", "test") for n in names)))
    assert (data.name, data.label_set) == ("fer2013", "meld")
    expected = ("anger", "disgust", "fear", "joy", "neutral", "sadness", "surprise")
    assert [labels(data)[f"test/{name}/1.jpg"] for name in names] == list(expected)


def test_folders_named_by_label(tmp_path: Path) -> None:
    files = [
        f"{s}/{label}/{n}" for s in ("Train", "val", "test") for label in ("calm", "wild") for n in ("1.jpg", "2.flac")
    ]
    touch(tmp_path, *files, "val/wild/clip.mp4", "val/wild/notes.md", "val/wild/._1.jpg", "readme.txt")
    (tmp_path / "test/calm/3.txt").write_text("All is well.\n")
    data = open_data_set(tmp_path)
    assert (data.name, data.label_set) == (tmp_path.name, "calm,wild")
    assert Counter(e.split for e in data.examples) == {"train": 4, "validation": 5, "test": 5}
    found = {e.id: e for e in data.examples}
    clip, sound, picture, words = (
        found[n] for n in ("val/wild/clip.mp4", "val/wild/2.flac", "val/wild/1.jpg", "test/calm/3.txt")
    )
    assert clip.image == clip.audio
    assert (sound.image, picture.audio, words.image, words.text) == (None, None, None, "All is well.")
    assert {reason: len(names) for reason, names in data.skipped.items()} == {
        "file that is no image, sound, video or text": 1,
        "companion file of macOS": 1,
    }


def test_folders_without_splits(tmp_path: Path) -> None:
    data = open_data_set(touch(tmp_path, *(f"{label}/{n}.png" for label in ("calm", "wild") for n in range(20))))
    for label in ("calm", "wild"):
        assert Counter(e.split for e in data.examples if e.label == label) == {"train": 14, "validation": 3, "test": 3}
    assert "who is who isn't known" in data.notes[0]


def test_folders_named_by_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"got the labels 1, 2, 3; expected names: what a number means differs"):
        open_data_set(touch(tmp_path, *(f"train/{n}/a.jpg" for n in (1, 2, 3))))


@pytest.mark.skipif(not EMODB.is_file(), reason="EmoDB isn't beside the project")
def test_the_real_emodb(tmp_path: Path) -> None:
    with tarfile.open(EMODB) as archive:
        archive.extractall(tmp_path, filter="data")
    data = open_data_set(tmp_path / "emodb")
    counts = {"anger": 127, "boredom": 81, "disgust": 46, "fear": 69, "joy": 71, "neutral": 79, "sadness": 62}
    assert Counter(e.label for e in data.examples) == counts
    assert len({e.speaker for e in data.examples}) == 10
    assert apart(data)
    assert read_audio(data.examples[0].audio)  # type: ignore[arg-type]


@pytest.mark.long
@pytest.mark.skipif(not FER2013.is_file(), reason="FER2013 isn't beside the project")
def test_the_real_fer2013(tmp_path: Path) -> None:
    """Its layout: the archive's members, without their bytes but for one."""
    with tarfile.open(FER2013) as archive:
        members = [member for member in archive.getmembers() if member.isfile()]
        touch(tmp_path, *(member.name for member in members))
        archive.extract(members[0], tmp_path, filter="data")
    data = open_data_set(tmp_path / "fer2013")
    assert Counter(e.split for e in data.examples) == {"train": 28_707, "validation": 3_589, "test": 3_589}
    assert Counter(e.label for e in data.of("test")) == {
        "joy": 879,
        "neutral": 626,
        "sadness": 594,
        "fear": 528,
        "anger": 491,
        "surprise": 416,
        "disgust": 55,
    }
    assert set(labels_of(data.label_set)) == {e.label for e in data.examples}
    read = next(e for e in data.examples if members[0].name.endswith(e.id))
    assert read_image(read.image)  # type: ignore[arg-type]
