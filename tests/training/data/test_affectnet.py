"""AffectNet's two layouts with their quirks."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cmt_pipeline.image import decode_image
from cmt_training.data import open_data_set
from cmt_training.data.affectnet import COLUMNS, VALIDATION_SHARE
from cmt_training.data.media import read_image
from cmt_training.examples import SPLITS, DataError, DataSet

NAMES = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")


def write_image(path: Path, side: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side, side), (200, 150, 120)).save(path)


def write_cropped(folder: Path, id_: str, expression: str, valence: str = "0.5", arousal: str = "-0.25") -> Path:
    """One item of the cropped release; the path of its annotations without their ending."""
    write_image(folder / "images" / f"{id_}.jpg")
    (folder / "annotations").mkdir(exist_ok=True)
    for part, value in (("exp", expression), ("val", valence), ("aro", arousal)):
        np.save(folder / "annotations" / f"{id_}_{part}.npy", np.array(value))
    np.save(folder / "annotations" / f"{id_}_lnd.npy", np.zeros(136))
    return folder / "annotations" / id_


@pytest.fixture
def cropped(tmp_path: Path) -> Path:
    for number in range(60):
        write_cropped(tmp_path / "train_set", str(number), str(number % 8))
    for number in range(11):
        rating = "-2" if number > 8 else "0.5"
        write_cropped(tmp_path / "val_set", str(number), str(number), rating, rating)
    return tmp_path


def by_id(data: DataSet) -> dict[str, str]:
    return {found.id: found.label for found in data.examples}


def test_the_cropped_release(cropped: Path) -> None:
    (cropped / "val_set" / "annotations" / "._3_exp.npy").write_bytes(b"\0\5\26\7")
    (cropped / "val_set" / "images" / "4.jpg").unlink()
    data = open_data_set(cropped)
    assert (data.name, data.label_set) == ("affectnet", "affectnet8")
    assert data.skipped == {
        "companion file of macOS": ("val_set/._3_exp.npy",),
        "expression Uncertain": ("val_set/9",),
        "expression None": ("val_set/8",),
        "expression No-Face": ("val_set/10",),
        "image is absent": ("val_set/4",),
    }
    assert [by_id(data).get(f"val_set/{number}") for number in range(8)] == [*NAMES[:4], None, *NAMES[5:]]
    assert len(data.of("test")) == 7
    assert len(data.of("train")) + len(data.of("validation")) == 60
    assert 0 < len(data.of("validation")) < 60 * VALIDATION_SHARE * 3
    found = data.of("test")[0]
    assert (found.valence, found.arousal, found.audio, found.text) == (0.5, 0.5, None, None)
    assert found.image is not None
    assert read_image(found.image) == found.image.path.read_bytes()


def test_a_rating_of_minus_two_leaves_the_label(cropped: Path) -> None:
    write_cropped(cropped / "val_set", "2", "2", "-2", "-2")
    data = open_data_set(cropped)
    assert data.skipped["no valence and arousal (-2): label alone"] == ("val_set/2",)
    assert next(found for found in data.examples if found.id == "val_set/2").valence is None


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("exp", np.array("11"), r"7_exp\.npy: the expression is '11'; expected 0 to 10"),
        ("val", np.array("nan"), r"7_val\.npy: valence is 'nan'; expected a finite number"),
        ("aro", np.array("1.5"), "valence and arousal are .*; expected -1 to 1"),
        ("exp", np.array(["1", "2"]), r"7_exp\.npy can't be used"),
        ("exp", np.array({"a": 1}, dtype=object), r"7_exp\.npy can't be used.*allow_pickle=False"),
        ("exp", np.zeros(1000), r"more than 4096 bytes"),
        ("val", None, r"7_val\.npy isn't there"),
    ],
)
def test_bad_arrays_are_named(cropped: Path, part: str, content: np.ndarray | None, message: str) -> None:
    path = cropped / "val_set" / "annotations" / f"7_{part}.npy"
    path.unlink()
    if content is not None:
        np.save(path, content)
    with pytest.raises(DataError, match=message):
        open_data_set(cropped)


@pytest.mark.parametrize(
    "content", [b"", b"\x93NUMPY", pickle.dumps("1"), b"\x93NUMPY\x01\x00v\x00{'descr': '<U9999999'"]
)
def test_files_that_are_no_arrays_are_named(cropped: Path, content: bytes) -> None:
    (cropped / "val_set" / "annotations" / "7_exp.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"7_exp\.npy can't be used"):
        open_data_set(cropped)


def row(path: str, expression: str = "1", box: str = "4,4,16,16", ratings: str = "0.5,0.25") -> str:
    return f"{path},{box},1.0;2.0;3.0;4.0,{expression},{ratings}"


def write_table(folder: Path, name: str, *rows: str) -> None:
    (folder / name).write_text("\n".join([",".join(COLUMNS), *rows, ""]))


@pytest.fixture
def original(tmp_path: Path) -> Path:
    rows = [row(f"{number}/a.jpg", str(number % 8)) for number in range(60)]
    write_table(tmp_path, "training.csv", *rows)
    write_table(tmp_path, "validation.csv", row("900/a.jpg"))
    for number in (*range(60), 900):
        write_image(tmp_path / "Manually_Annotated_Images" / str(number) / "a.jpg")
    return tmp_path


def test_the_original_release(original: Path) -> None:
    images = original / "Manually_Annotated_Images"
    write_table(
        original,
        "validation.csv",
        row("900/a.jpg", "7"),
        row("900/a.jpg", "7"),
        row("901/a.jpg"),
        row("902/a.jpg", box="4,4,-16,16"),
        "903/a.jpg,4,4",
        row("904/a.jpg", "happy"),
        row("905/a.jpg", "9", ratings="-2,-2"),
    )
    for number in range(902, 906):
        write_image(images / str(number) / "a.jpg")
    data = open_data_set(original)
    assert data.skipped == {
        "repeated image": ("validation.csv, line 3: 900/a.jpg",),
        "image is absent": ("901/a.jpg",),
        "face box without a size": ("validation.csv, line 5",),
        "malformed row": ("validation.csv, line 6", "validation.csv, line 7"),
        "expression Uncertain": ("905/a.jpg",),
    }
    (found,) = data.of("test")
    assert (found.id, found.label, found.valence, found.arousal) == ("900/a.jpg", "contempt", 0.5, 0.25)
    assert found.image is not None
    assert decode_image(read_image(found.image)).size == (16, 16)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (row("900/a.jpg", ratings="nan,0"), r"validation\.csv, line 2: valence is 'nan'"),
        (row("900/a.jpg", "12"), r"validation\.csv, line 2: the expression is '12'"),
        (row("900/a.jpg", "10"), "the test split of affectnet is empty.*1 x expression No-Face"),
        (row("../outside.jpg"), "lies outside the data set"),
    ],
)
def test_bad_rows_are_named(original: Path, line: str, message: str) -> None:
    write_table(original, "validation.csv", line)
    with pytest.raises(DataError, match=message):
        open_data_set(original)


def test_the_validation_split_doesnt_depend_on_the_folder(original: Path) -> None:
    before = {found.id: found.split for found in open_data_set(original).examples}
    write_table(original, "training.csv", *[row(f"{number}/a.jpg", "0") for number in range(59, 0, -1)])
    after = {found.id: found.split for found in open_data_set(original).examples}
    assert after == {id_: split for id_, split in before.items() if id_ in after}
    assert set(after.values()) == set(SPLITS)
