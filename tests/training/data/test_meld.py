"""MELD's layout with its quirks; and its real annotations where they lie beside the project."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from cmt_training.data import open_data_set
from cmt_training.data.media import read_audio, read_image
from cmt_training.examples import SPLITS, DataError, DataSet
from small_media import write_video

REAL = Path(__file__).parents[4] / "shared" / "data" / "meld"
HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime"
TABLES = {"train": "train_sent_emo.csv", "validation": "dev_sent_emo.csv", "test": "test_sent_emo.csv"}
LABELS = ("neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger")


def row(
    dialogue: int,
    utterance: int,
    text: str = "You must’ve had your hands full.",
    emotion: str = "joy",
    end: str = "0:16:21,731",
) -> str:
    return f'1,"{text}",Chandler,{emotion},positive,{dialogue},{utterance},8,21,"0:16:16,059","{end}"'


def write_table(folder: Path, split: str, *rows: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / TABLES[split]).write_bytes("\r\n".join([HEADER, *rows, ""]).encode())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three splits of one or two utterances; ids restart in each and have gaps."""
    write_table(tmp_path, "train", row(0, 0), row(0, 3, "Oh, “really”?", "surprise", "00:16:20,000"))
    write_table(tmp_path, "validation", row(0, 0))
    write_table(tmp_path, "test", row(0, 0), row(38, 4, end="0:21:21,000"))
    return tmp_path


def example(data: DataSet, id_: str):  # type: ignore[no-untyped-def]
    return next(found for found in data.examples if found.id == id_)


def test_text_alone(folder: Path) -> None:
    data = open_data_set(folder)
    assert (data.name, data.label_set, data.skipped) == ("meld", "meld", {})
    assert [found.id for found in data.examples] == [
        "train/dia0_utt0",
        "train/dia0_utt3",
        "validation/dia0_utt0",
        "test/dia0_utt0",
        "test/dia38_utt4",
    ]
    found = example(data, "train/dia0_utt3")
    assert (found.text, found.label, found.speaker, found.image, found.audio) == (
        "Oh, “really”?",
        "surprise",
        "Chandler",
        None,
        None,
    )
    assert found.tags["sentiment"] == "positive"


def test_clips_with_every_quirk(folder: Path) -> None:
    write_table(folder, "train", row(0, 0), row(0, 3), row(125, 3))
    train, test = folder / "train_splits", folder / "output_repeated_splits_test"
    for clip in (train / "dia0_utt0.mp4", train / "dia9_utt9.mp4", test / "dia0_utt0.mp4"):
        write_video(clip)
    write_video(test / "final_videos_testdia0_utt0.mp4", layout="5.1")
    (train / "dia125_utt3.mp4").write_bytes(b"damaged")
    (test / "dia38_utt4.mp4").write_bytes(b"five minutes")
    (test / "._dia0_utt0.mp4").write_bytes(b"\0\5\26\7")
    (test / "notes.txt").write_text("?")
    data = open_data_set(folder, "meld")
    assert data.skipped == {
        "clip is absent: text alone": ("train/dia0_utt3",),
        "damaged clip: text alone": ("train/dia125_utt3",),
        "clip without annotation": ("train/dia9_utt9",),
        "companion file of macOS": ("output_repeated_splits_test/._dia0_utt0.mp4",),
        "file that is no clip": ("output_repeated_splits_test/notes.txt",),
        "clip that was cut again": ("output_repeated_splits_test/dia0_utt0.mp4",),
        "clip cut at wrong times: text alone": ("test/dia38_utt4",),
    }
    again = example(data, "test/dia0_utt0")
    assert again.image == again.audio
    assert again.audio.path.name == "final_videos_testdia0_utt0.mp4"
    assert read_image(again.image)
    assert read_audio(again.audio)
    for id_ in ("train/dia0_utt3", "train/dia125_utt3", "test/dia38_utt4", "validation/dia0_utt0"):
        found = example(data, id_)
        assert found.text
        assert found.image is None
        assert found.audio is None


def test_a_repeated_key_is_counted(folder: Path) -> None:
    write_table(folder, "train", row(0, 0), row(0, 0, "Again."))
    assert open_data_set(folder).skipped == {"repeated dialogue and utterance id": ("train/dia0_utt0",)}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((row(0, 0, emotion="boredom"),), r"train_sent_emo\.csv, line 2: the emotion is 'boredom'; expected one of"),
        ((row(0, 0) + ",more",), r"train_sent_emo\.csv, line 2 has too few or too many fields"),
        (('1,"never closed',), r"train_sent_emo\.csv, line 2 breaks CSV's rules"),
        ((row(0, 0).replace(",0,0,8", ",x,0,8"),), "an id is 'x'"),
        ((), r"the train split of meld is empty"),
    ],
)
def test_bad_tables_are_named(folder: Path, rows: tuple[str, ...], message: str) -> None:
    write_table(folder, "train", *rows)
    with pytest.raises(DataError, match=message):
        open_data_set(folder)


def test_a_bad_time_is_named_where_it_counts(folder: Path) -> None:
    write_table(folder, "train", row(0, 0, end="soon"))
    open_data_set(folder)  # text alone needs no times
    write_video(folder / "train_splits" / "dia0_utt0.mp4")
    with pytest.raises(DataError, match="a time is 'soon'"):
        open_data_set(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\r\n1,2\r\n", "has the columns a, b; expected Utterance"),
        (b"", r"has the columns \(none\)"),
        (b"\xff\xfe\x00", "expected UTF-8"),
    ],
)
def test_files_that_are_no_annotations(folder: Path, content: bytes, message: str) -> None:
    (folder / TABLES["test"]).write_bytes(content)
    with pytest.raises(DataError, match=rf"test_sent_emo\.csv .*{message}"):
        open_data_set(folder)


def test_an_absent_table_is_named(folder: Path) -> None:
    (folder / TABLES["validation"]).unlink()
    with pytest.raises(DataError, match=r"dev_sent_emo\.csv isn't there"):
        open_data_set(folder)


@pytest.mark.skipif(not REAL.is_dir(), reason="MELD's annotations don't lie beside the project")
def test_the_real_annotations() -> None:
    data = open_data_set(REAL)
    assert {split: len(data.of(split)) for split in SPLITS} == {"train": 9989, "validation": 1109, "test": 2610}
    counts = {split: Counter(found.label for found in data.of(split)) for split in SPLITS}
    assert [counts["train"][label] for label in LABELS] == [4710, 1205, 268, 683, 1743, 271, 1109]
    assert [counts["test"][label] for label in LABELS] == [1256, 281, 50, 208, 402, 68, 345]
    assert data.skipped == {}
    assert all(found.text and found.speaker for found in data.examples)
    assert len({found.id for found in data.examples}) == len(data.examples)
    assert sum("’" in (found.text or "") for found in data.examples) > 1000


@pytest.mark.skipif(not REAL.is_dir(), reason="MELD's annotations don't lie beside the project")
def test_the_real_times_parse_and_show_the_two_wrong_cuts(tmp_path: Path) -> None:
    for table in TABLES.values():
        (tmp_path / table).symlink_to(REAL / table)
    for clips in ("train_splits", "dev_splits_complete", "output_repeated_splits_test"):
        (tmp_path / clips).mkdir()
    skipped = open_data_set(tmp_path).skipped
    assert skipped["clip cut at wrong times: text alone"] == ("test/dia38_utt4", "test/dia220_utt0")
    assert len(skipped["clip is absent: text alone"]) == 9989 + 1109 + 2610 - 3
