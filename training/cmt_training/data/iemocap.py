"""IEMOCAP (Busso et al., 2008): acted dialogues of five sessions, each of one woman and one man; 4 or 6 emotions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from cmt_training.data.reading import (
    COMPANION,
    Tally,
    check_label_set,
    finite,
    lines_of,
    read_text,
    require_examples,
    require_folder,
)
from cmt_training.examples import DataError, DataSet, Example, Media, Split

RELEASE_FOLDER = "IEMOCAP_full_release"
SESSIONS = (1, 2, 3, 4, 5)
TEST_SESSION = 5
VALIDATION_SESSION = 4  # whole sessions, so that no speaker is in two splits
CODES = ("neu", "hap", "sad", "ang", "sur", "fea", "dis", "fru", "exc", "oth", "xxx")
#: label set -> code of the majority vote -> label; in the 4-way set excitement counts as happiness.
LABELS = {
    "iemocap4": {"ang": "anger", "hap": "happiness", "exc": "happiness", "neu": "neutral", "sad": "sadness"},
    "iemocap6": {
        "hap": "happiness",
        "sad": "sadness",
        "neu": "neutral",
        "ang": "anger",
        "exc": "excitement",
        "fru": "frustration",
    },
}

_UTTERANCE = re.compile(r"(Ses0[1-5]([FM])_(?:impro\d\d[a-z]?|script0[1-3]_\d[a-z]?))_([FM])(\d{3})")
_EVALUATION = re.compile(r"\[\s*([\d.]+)\s*-\s*([\d.]+)\s*\]\t(\S+)\t(\S+)\t\[([^,\]]+),([^,\]]+),([^\]]+)\]\s*")
_TRANSCRIPTION = re.compile(r"(\S+) \[[\d.]+-[\d.]+\]: ?(.*)")
_NO_SPEECH = re.compile(r"\[[A-Z ]+\]")  # [LAUGHTER], [BREATHING], …


@dataclass(frozen=True)
class _Evaluation:
    """One line of an evaluation file. start_s, end_s: in the dialogue's video; ratings on 1-5."""

    utterance: str
    code: str
    start_s: float
    end_s: float
    valence: float
    activation: float
    where: str


def load_iemocap(
    folder: Path,
    label_set: str | None = None,
    test_session: int = TEST_SESSION,
    validation_session: int = VALIDATION_SESSION,
) -> DataSet:
    """The folder IEMOCAP_full_release or the one it lies in; `iemocap4` unless given otherwise. Raises DataError."""
    require_folder(folder)
    chosen = check_label_set("IEMOCAP", label_set, tuple(LABELS))
    root = folder / RELEASE_FOLDER if (folder / RELEASE_FOLDER).is_dir() else folder
    splits: dict[int, Split] = {validation_session: "validation", test_session: "test"}
    tally = Tally()
    examples: dict[str, Example] = {}
    for number in SESSIONS:
        session = root / f"Session{number}"
        require_folder(session / "dialog" / "EmoEvaluation")
        for path in sorted((session / "dialog" / "EmoEvaluation").glob("*.txt")):
            if path.name.startswith(COMPANION):
                tally.skip("companion file of macOS", path.name)
                continue
            for example in _load_dialogue(path, session, LABELS[chosen], splits.get(number, "train"), tally):
                if example.id in examples:
                    tally.skip("repeated utterance id", example.id)
                else:
                    examples[example.id] = example
    return require_examples(DataSet("iemocap", chosen, tuple(examples.values()), tally.skipped()), folder)


def _load_dialogue(path: Path, session: Path, labels: dict[str, str], split: Split, tally: Tally) -> Iterator[Example]:
    dialogue = path.stem
    texts = _transcriptions(session / "dialog" / "transcriptions" / f"{dialogue}.txt", tally)
    video = session / "dialog" / "avi" / "DivX" / f"{dialogue}.avi"
    if not video.is_file():
        tally.skip("video is absent: no image", dialogue)
    for line in _evaluations(path, tally):
        match = _UTTERANCE.fullmatch(line.utterance)
        if match is None or match[1] != dialogue:
            tally.skip("utterance id that isn't understood", f"{line.where}: {line.utterance}")
        elif line.code not in CODES:
            raise DataError(f"{line.where}: the emotion is {line.code!r}; expected one of {', '.join(CODES)}")
        elif line.code not in labels:
            tally.skip(f"emotion {line.code} is not in the label set", line.utterance)
        else:
            sound = session / "sentences" / "wav" / dialogue / f"{line.utterance}.wav"
            example = _example(line, labels[line.code], split, texts.get(line.utterance), match, tally)
            yield replace(
                example,
                audio=_sound(sound, tally),
                image=_face(video, line, match) if video.is_file() else None,
            )


def _example(
    line: _Evaluation, label: str, split: Split, text: str | None, match: re.Match[str], tally: Tally
) -> Example:
    if text is None:
        tally.skip("no transcription: no text", line.utterance)
    valence, arousal = _rating(line.valence), _rating(line.activation)
    if valence is None or arousal is None:
        tally.skip("rating that isn't on 1-5: no valence and arousal", line.utterance)
        valence = arousal = None
    kind = "improvised" if "_impro" in match[1] else "scripted"
    return Example(
        id=line.utterance,
        split=split,
        label=label,
        text=text,
        valence=valence,
        arousal=arousal,
        speaker=match[1][:5] + match[3],
        tags={"dialogue": match[1], "kind": kind},
    )


def _evaluations(path: Path, tally: Tally) -> Iterator[_Evaluation]:
    """The majority votes: the lines that start with `[`; single raters' lines and headers don't."""
    for number, line in enumerate(lines_of(read_text(path)), 1):
        if not line.startswith("["):
            continue
        where = f"{path}, line {number}"
        match = _EVALUATION.fullmatch(line)
        if match is not None:
            start_s, end_s = finite(match[1], where, "the start"), finite(match[2], where, "the end")
            valence, activation = finite(match[5], where, "valence"), finite(match[6], where, "activation")
            yield _Evaluation(match[3], match[4], start_s, end_s, valence, activation, where)
        else:
            tally.skip("evaluation line that doesn't parse", f"{path.name}, line {number}")


def _transcriptions(path: Path, tally: Tally) -> dict[str, str]:
    """utterance -> what was said, without `[LAUGHTER]` and the like; utterances without a word have none."""
    if not path.is_file():
        tally.skip("transcription file is absent", path.name)
        return {}
    texts = {}
    for number, line in enumerate(lines_of(read_text(path)), 1):
        match = _TRANSCRIPTION.fullmatch(line.strip())
        if match is not None:
            if words := " ".join(_NO_SPEECH.sub(" ", match[2]).split()):
                texts[match[1]] = words
        elif line.strip():
            tally.skip("transcription line that doesn't parse", f"{path.name}, line {number}")
    return texts


def _sound(path: Path, tally: Tally) -> Media | None:
    if path.is_file():
        return Media(path)
    tally.skip("sound file is absent: no audio", path.stem)
    return None


def _face(video: Path, line: _Evaluation, match: re.Match[str]) -> Media:
    """The speaker's half of the split screen: left if the dialogue is recorded from their side."""
    return Media(video, line.start_s, line.end_s, "left" if match[3] == match[2] else "right")


def _rating(value: float) -> float | None:
    """1..5 as -1..1."""
    return (value - 3) / 2 if 1 <= value <= 5 else None
