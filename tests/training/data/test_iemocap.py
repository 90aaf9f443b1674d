"""IEMOCAP's layout with its quirks."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from cmt_pipeline.image import decode_image
from cmt_training.data import open_data_set
from cmt_training.data.media import read_audio, read_image
from cmt_training.examples import SPLITS, DataError, DataSet, Example
from small_media import write_video

HEAD = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]\n\n"


def turn(id_: str, code: str = "neu", ratings: str = "2.5000, 3.5000, 2.5000", times: str = "[0.2000 - 0.8000]") -> str:
    raters = "C-E2:\tNeutral;\t()\nC-E3:\tNeutral;\t()\nA-E3:\tval 3; act 2; dom  2;\t()\n\n"
    return f"{times}\t{id_}\t{code}\t[{ratings}]\n{raters}"


class Release:
    """A release to write dialogues into."""

    def __init__(self, folder: Path) -> None:
        self._video = write_video(folder / "any.avi", halves=True)
        self.root = folder / "IEMOCAP_full_release"
        for number in range(1, 6):
            self.dialogue(number, f"Ses0{number}F_impro01", f"Ses0{number}F_impro01_F000")

    def path(self, session: int, *parts: str) -> Path:
        path = self.root.joinpath(f"Session{session}", *parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def dialogue(self, session: int, name: str, *ids: str, turns: str | None = None, text: str | None = None) -> None:
        """ids: of neutral utterances; turns, text: whole files instead."""
        evaluation = HEAD + (turns if turns is not None else "".join(map(turn, ids)))
        self.path(session, "dialog", "EmoEvaluation", f"{name}.txt").write_text(evaluation)
        lines = [f"{id_} [006.2901-008.2357]: Excuse me." for id_ in ids]
        self.path(session, "dialog", "transcriptions", f"{name}.txt").write_text(
            text if text is not None else "\n".join(lines)
        )
        for id_ in ids:
            sound = (1000 * np.sin(np.arange(8000))).astype(np.int16)
            soundfile.write(self.path(session, "sentences", "wav", name, f"{id_}.wav"), sound, 16_000)
        shutil.copy(self._video, self.path(session, "dialog", "avi", "DivX", f"{name}.avi"))


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return Release(tmp_path)


def find(data: DataSet, id_: str) -> Example:
    return next(found for found in data.examples if found.id == id_)


def test_a_dialogue_with_its_media(release: Release) -> None:
    evaluations = release.path(1, "dialog", "EmoEvaluation", "Categorical", "Ses01F_impro01_e2_cat.txt")
    evaluations.write_text("Ses01F_impro01_F000 :Anger; ()\n")
    release.dialogue(1, "Ses01M_script01_1b", "Ses01M_script01_1b_F003", "Ses01M_script01_1b_M000")
    data = open_data_set(release.root)
    assert (data.name, data.label_set, data.skipped) == ("iemocap", "iemocap4", {})
    assert {split: len(data.of(split)) for split in SPLITS} == {"train": 5, "validation": 1, "test": 1}
    found = find(data, "Ses01F_impro01_F000")
    assert (found.label, found.text, found.valence, found.arousal) == ("neutral", "Excuse me.", -0.25, 0.25)
    assert (found.speaker, found.tags) == ("Ses01F", {"dialogue": "Ses01F_impro01", "kind": "improvised"})
    assert find(data, "Ses01M_script01_1b_F003").tags["kind"] == "scripted"
    assert found.audio is not None
    assert read_audio(found.audio)


@pytest.mark.parametrize(
    ("dialogue", "id_", "green"),
    [
        ("Ses01F_impro02", "Ses01F_impro02_F000", True),
        ("Ses01F_impro02", "Ses01F_impro02_M000", False),
        ("Ses01M_impro02", "Ses01M_impro02_M000", True),
        ("Ses01M_impro02", "Ses01M_impro02_F000", False),
    ],
)
def test_the_speaker_is_on_the_side_of_the_dialogue(release: Release, dialogue: str, id_: str, green: bool) -> None:
    release.dialogue(1, dialogue, id_)
    image = find(open_data_set(release.root), id_).image
    assert image is not None
    assert (image.start_s, image.end_s) == (0.2, 0.8)
    colours = np.asarray(decode_image(read_image(image)), np.float64)[:, 4:-4].mean((0, 1))
    assert (colours[1] > colours[2]) == green


def test_label_sets(release: Release) -> None:
    codes = ("neu", "hap", "sad", "ang", "sur", "fea", "dis", "fru", "exc", "oth", "xxx")
    ids = [f"Ses02F_impro02_F{number:03d}" for number in range(len(codes))]
    turns = "".join(turn(id_, code) for id_, code in zip(ids, codes, strict=True))
    release.dialogue(2, "Ses02F_impro02", *ids, turns=turns)
    four = open_data_set(release.root.parent)  # the folder that the release lies in
    labels = {found.id: found.label for found in four.examples}
    assert [labels.get(id_) for id_ in ids] == (
        ["neutral", "happiness", "sadness", "anger", None, None, None, None, "happiness", None, None]
    )
    left_out = {reason.split()[1]: found for reason, found in four.skipped.items()}
    assert left_out == {code: (id_,) for id_, code in zip(ids, codes, strict=True) if id_ not in labels}
    six = open_data_set(release.root, "iemocap", "iemocap6")
    assert find(six, ids[7]).label == "frustration"
    assert find(six, ids[8]).label == "excitement"


def test_what_is_left_out_is_counted(release: Release) -> None:
    ids = ["Ses03M_script02_2_F000", "Ses03M_script02_2_F001", "Ses03M_script02_2_M000"]
    turns = (
        "".join(map(turn, ids))
        + turn("Ses03M_script02_2_MXX0")
        + turn(ids[0], "sad")
        + turn("Ses03M_script02_2_M001", ratings="2.5, 5.5, 3")
        + "[broken\n"
    )
    text = "\n".join(
        [
            f"{ids[0]} [001.0-002.0]: [LAUGHTER] Oh, [BREATHING] no.",
            f"{ids[1]} [001.0-002.0]: [LAUGHTER]",
            "M: what was that",
            f"{ids[2]} [001.0-002.0]: Yes.",
            "Ses03M_script02_2_M001 [001.0-002.0]: Right.",
        ]
    )
    release.dialogue(3, "Ses03M_script02_2", *ids, turns=turns, text=text)
    release.path(3, "sentences", "wav", "Ses03M_script02_2", f"{ids[2]}.wav").unlink()
    release.path(3, "dialog", "avi", "DivX", "Ses03M_script02_2.avi").unlink()
    release.path(3, "dialog", "EmoEvaluation", "._Ses03M_script02_2.txt").write_bytes(b"\0\5\26\7")
    data = open_data_set(release.root)
    assert data.skipped == {
        "companion file of macOS": ("._Ses03M_script02_2.txt",),
        "transcription line that doesn't parse": ("Ses03M_script02_2.txt, line 3",),
        "video is absent: no image": ("Ses03M_script02_2",),
        "no transcription: no text": (ids[1],),
        "sound file is absent: no audio": (ids[2], "Ses03M_script02_2_M001"),
        "utterance id that isn't understood": (
            f"{release.path(3, 'dialog', 'EmoEvaluation', 'Ses03M_script02_2.txt')}, line 18: Ses03M_script02_2_MXX0",
        ),
        "repeated utterance id": (ids[0],),
        "rating that isn't on 1-5: no valence and arousal": ("Ses03M_script02_2_M001",),
        "evaluation line that doesn't parse": ("Ses03M_script02_2.txt, line 33",),
    }
    assert find(data, ids[0]).text == "Oh, no."
    assert find(data, ids[1]).text is None
    assert find(data, ids[2]).image is find(data, ids[2]).audio is None


def test_sessions_of_the_splits_can_be_chosen(release: Release) -> None:
    from cmt_training.data.iemocap import load_iemocap

    data = load_iemocap(release.root, test_session=1, validation_session=2)
    assert [found.speaker for split in SPLITS for found in data.of(split)] == [f"Ses0{n}F" for n in (3, 4, 5, 2, 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (turn("Ses04F_impro01_F000", "joy"), r"Ses04F_impro01\.txt, line 3: the emotion is 'joy'; expected one of neu"),
        (turn("Ses04F_impro01_F000", ratings="nan, 2, 3"), r"line 3: valence is 'nan'; expected a finite number"),
        ("", "the validation split of iemocap is empty"),
    ],
)
def test_bad_evaluations_are_named(release: Release, line: str, message: str) -> None:
    release.dialogue(4, "Ses04F_impro01", turns=line, text="")
    with pytest.raises(DataError, match=message):
        open_data_set(release.root)


def test_an_absent_session_is_named(release: Release) -> None:
    (release.root / "Session3").rename(release.root / "Session33")
    with pytest.raises(DataError, match=r"Session3/dialog/EmoEvaluation is no folder"):
        open_data_set(release.root)


def test_labels_have_their_places_in_another_set(release: Release) -> None:
    own, others = open_data_set(release.root), open_data_set(release.root, label_set="meld")
    names = {"anger": "anger", "happiness": "joy", "neutral": "neutral", "sadness": "sadness"}
    assert [names[e.label] for e in own.examples] == [e.label for e in others.examples]
    assert others.notes == ("labels read as meld's: happiness as joy",)
