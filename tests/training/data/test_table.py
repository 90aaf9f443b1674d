"""Tables of one's own: what their rows become, who is kept apart from whom, and what is wrong with one, in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from cmt_training.data import open_data_set
from cmt_training.examples import SPLITS, DataError, DataSet

COLUMNS = ("image", "audio", "text", "label", "split", "group", "valence", "arousal")
Row = Sequence[object]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A drawn face and a tone."""
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save(tmp_path / "face.png")
    soundfile.write(tmp_path / "tone.wav", np.sin(np.arange(1600) / 5).astype(np.float32) / 4, 16_000)
    return tmp_path


def write(path: Path, rows: Sequence[Row], columns: Sequence[str] = COLUMNS) -> Path:
    """In the format of the path's suffix; None is a cell without a value."""
    found = [dict(zip(columns, row, strict=True)) for row in rows]
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found), encoding="utf-8")
    elif path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow.parquet import write_table

        write_table(pyarrow.Table.from_pylist(found), path)
    else:
        mark = "\t" if path.suffix == ".tsv" else ","
        lines = [columns, *[["" if value is None else str(value) for value in row] for row in rows]]
        path.write_text("".join(mark.join(line) + "\r\n" for line in lines), encoding="utf-8-sig")
    return path


def texts(path: Path, rows: Sequence[tuple[str, str, str]]) -> Path:
    """A table of label, split and group, with any words."""
    return write(path, [(f"words {n}", *row) for n, row in enumerate(rows)], ("text", "label", "split", "group"))


def by_split(data: DataSet) -> dict[str, set[str]]:
    return {split: {e.speaker for e in data.of(split)} for split in SPLITS}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_gives_the_same_examples(folder: Path, suffix: str) -> None:
    rows: list[Row] = [
        ("face.png", None, "Oh\u2028really?", "calm", "train", "ann", -0.5, 1),
        (None, "tone.wav", None, "wild", "VAL", "ben", None, None),
        ("face.png", "tone.wav", None, "wild", "test", "eva", None, None),
    ]
    with pytest.raises(DataError, match=r"the file .*face\.png \(train, test\).*in several splits|in several splits"):
        open_data_set(write(folder / f"moods{suffix}", rows))
    rows[2] = (None, None, "Go!", "wild", "test", "eva", None, None)
    data = open_data_set(write(folder / f"moods{suffix}", rows))
    assert (data.name, data.label_set, data.skipped, data.notes) == (f"moods{suffix}", "calm,wild", {}, ())
    first, second, third = data.examples
    assert (first.split, first.label, first.text, first.speaker) == ("train", "calm", "Oh\u2028really?", "ann")
    assert (first.image.path, first.audio) == (folder / "face.png", None)  # type: ignore[union-attr]
    assert (first.valence, first.arousal) == (-0.5, 1.0)
    assert (second.split, second.audio.path) == ("validation", folder / "tone.wav")  # type: ignore[union-attr]
    assert (third.split, third.text, third.valence) == ("test", "Go!", None)


def test_people_stay_in_one_split_each_and_labels_in_their_shares(tmp_path: Path) -> None:
    rows = [(("joy", "anger")[n % 2], "", f"p{n // 3 % 20}") for n in range(400)]
    path = write(tmp_path / "t.csv", [("words", row[0], row[2]) for row in rows], ("text", "label", "group"))
    data = open_data_set(path)
    people = by_split(data)
    assert sum(map(len, people.values())) == len(set.union(*people.values())) == 20
    for split, share in (("train", 0.7), ("validation", 0.15), ("test", 0.15)):
        for label in ("joy", "anger"):
            found = sum(e.label == label for e in data.of(split))  # type: ignore[arg-type]
            assert abs(found / 200 - share) < 0.06
    assert data.notes == ("split here by group (seed 0): train 14, validation 3, test 3",)
    assert open_data_set(path) == data


def test_without_people_rows_are_split_by_label_and_it_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", [(f"{n}", ("joy", "anger")[n % 2]) for n in range(100)], ("text", "label"))
    data = open_data_set(path)
    assert [len(data.of(split)) for split in SPLITS] == [70, 15, 15] or len(data.of("train")) in range(68, 73)
    assert "who is who isn't known" in data.notes[0]


def test_a_part_of_training_is_validation_where_there_is_none(tmp_path: Path) -> None:
    rows = [("joy" if n % 2 else "anger", "train", f"p{n // 4}") for n in range(40)] + [("joy", "test", "q")]
    data = open_data_set(texts(tmp_path / "t.csv", rows))
    people = by_split(data)
    assert people["validation"]
    assert not people["validation"] & people["train"]
    assert people["test"] == {"q"}
    assert data.notes[0].startswith("no validation split: split here by group")


def test_splits_that_share_a_person_are_refused_by_name(tmp_path: Path) -> None:
    rows = [("joy", "train", "ann"), ("anger", "train", "ben"), ("joy", "val", "eva"), ("anger", "test", "ann")]
    with pytest.raises(DataError, match=r"the group is in several splits: ann \(train, test\); expected each in one"):
        open_data_set(texts(tmp_path / "t.csv", rows))


def test_some_absent_files_are_counted_and_named_many_are_refused(folder: Path) -> None:
    rows = [("face.png", ("joy", "anger")[n % 2], "test") for n in range(19)]
    path = write(folder / "t.csv", [*rows, ("gone.png", "joy", "test")], ("image", "label", "split"))
    data = open_data_set(path)
    assert data.skipped["image is absent"] == ("gone.png",)
    assert data.skipped["nothing left of the example"] == ("t.csv, line 21",)
    assert len(data.examples) == 19
    path = write(
        folder / "t.csv", [*rows, *[(f"gone{n}.png", "joy", "test") for n in range(6)]], ("image", "label", "split")
    )
    with pytest.raises(DataError, match=r"6 of the 25 files it names aren't in .*: gone0.png, .*gone4.png, …;.*--root"):
        open_data_set(path)


def test_files_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    below = tmp_path / "tables"
    below.mkdir()
    rows = [(f"face{n}.png", ("joy", "anger")[n % 2]) for n in range(3)]
    for name, _ in rows:
        (folder / name).write_bytes((folder / "face.png").read_bytes())
    path = write(below / "t.csv", rows, ("image", "label"))
    with pytest.raises(DataError, match="aren't in"):
        open_data_set(path)
    assert len(open_data_set(path, root=folder).examples) == 3
    with pytest.raises(DataError, match="got --root"):
        open_data_set(folder, "label-folders", root=folder)


def test_what_isnt_read_is_said(tmp_path: Path) -> None:
    rows = [("a", "joy", "x"), ("b", "", "x"), ("c", "anger", "x"), ("", "joy", "x"), ("e", "joy", "x")]
    data = open_data_set(write(tmp_path / "t.csv", rows, ("text", "label", "remark")))
    assert data.skipped == {
        "column that isn't read": ("remark",),
        "no label": ("t.csv, line 3",),
        "nothing left of the example": ("t.csv, line 5",),
    }


def test_labels_are_read_as_those_of_a_set(tmp_path: Path) -> None:
    rows = [(str(n), ("Happy", "ang", "hope", "neutral", "sad")[n % 5]) for n in range(50)]
    path = write(tmp_path / "t.csv", rows, ("text", "label"))
    assert open_data_set(path).label_set == "Happy,ang,hope,neutral,sad"
    data = open_data_set(path, label_set="meld")
    assert {e.label for e in data.examples} == {"joy", "anger", "neutral", "sadness"}
    assert list(data.skipped) == ["label outside of the label set: hope"]
    assert len(data.examples) == 40
    assert data.notes[-1] == "labels read as meld's: Happy as joy, ang as anger, sad as sadness"
    with pytest.raises(DataError, match=r"got labels boredom for t.csv; expected some of Happy"):
        open_data_set(path, label_set="Happy,boredom")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,label\na,joy,more\n", r"line 2 has 3 fields; expected 2"),
        ("words,label\na,joy\n", r"has the columns words, label; expected label and one or more of image, audio, text"),
        ("text,emotion\na,joy\n", r"expected label"),
        ("text,text,label\na,b,joy\n", r"expected each once"),
        ("", r"has the columns \(none\)"),
        ('text,label\n"never closed,joy\n', r"breaks CSV's rules"),
        ("text,label,split\na,joy,train\nb,anger,later\n", r"line 3: the split is 'later'; expected train, validation"),
        ("text,label,split\na,joy,train\nb,anger,\n", r"line 3: the split is ''; expected train, validation or test"),
        ("text,label,valence\na,joy,7\n", r"line 2: valence is 7; expected -1 to 1"),
        ("text,label,valence\na,joy,nan\n", r"line 2: valence is 'nan'; expected a finite number"),
        ("text,label\na,0\nb,1\nc,LABEL_2\n", r"got the labels 0, 1, LABEL_2; expected names"),
        ("text,label\na,joy\nb,joy\nc,joy\n", r"expected two or more different names"),
        ("text,label\na,joy\nb,anger\n", r"a group is to be in one split alone: got 2 for 3 splits"),
        ("text,label\na,\n", r"no example to use \(left out: 1 x no label\)"),
    ],
)
def test_a_bad_table_is_refused_in_words(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        open_data_set(path)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.csv", b"text,label\n\xff\xfe,joy\n", "expected UTF-8"),
        ("t.jsonl", b'{"text": "a", "label": "joy"}\n[1]\n', r"line 2 is '\[1\]'; expected one object a line"),
        ("t.jsonl", b'{"text": "a"\n', "line 1 isn't JSON"),
        ("t.jsonl", b'{"text": {"a": 1}, "label": "joy"}\n', "text is a dict; expected text or a number"),
        ("t.parquet", b"PAR1 no more", "expected a Parquet file"),
    ],
)
def test_a_damaged_file_is_refused_in_words(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        open_data_set(tmp_path / name)
