"""MELD (Poria et al., ACL 2019, arXiv 1810.02508): a series' utterances with 7 emotions; text alone, or with clips."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cmt_pipeline.labels import labels_of
from cmt_training.data.reading import COMPANION, Tally, read_table, require_examples, require_folder
from cmt_training.examples import DataError, DataSet, Example, Media, Split

LABEL_SET = "meld"
COLUMNS = (
    "Utterance",
    "Speaker",
    "Emotion",
    "Sentiment",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
)
#: split -> (annotations, folder of clips)
FILES: dict[Split, tuple[str, str]] = {
    "train": ("train_sent_emo.csv", "train_splits"),
    "validation": ("dev_sent_emo.csv", "dev_splits_complete"),
    "test": ("test_sent_emo.csv", "output_repeated_splits_test"),
}
#: Clips of the official release whose file is damaged: (split, dialogue, utterance).
DAMAGED = {("train", 125, 3)}
#: Two test clips were cut by wrong times into minutes of several scenes; true utterances end within 42 s.
LONGEST_S = 60.0

_CLIP = re.compile(r"(final_videos_test)?dia(\d+)_utt(\d+)\.mp4")
_TIME = re.compile(r"(\d{1,2}):(\d\d):(\d\d),(\d{1,3})")


@dataclass(frozen=True)
class _Key:
    split: Split
    dialogue: int
    utterance: int

    def __str__(self) -> str:
        return f"{self.split}/dia{self.dialogue}_utt{self.utterance}"


def load_meld(folder: Path) -> DataSet:
    """The folder of the CSV files, with the folders of clips beside them or without. Raises DataError."""
    require_folder(folder)
    tally = Tally()
    examples: list[Example] = []
    for split, (table, clips) in FILES.items():
        examples += _load_split(folder / table, folder / clips, split, labels_of(LABEL_SET), tally)
    return require_examples(DataSet("meld", LABEL_SET, tuple(examples), tally.skipped()), folder)


def _load_split(table: Path, clips: Path, split: Split, labels: tuple[str, ...], tally: Tally) -> list[Example]:
    found = _find_clips(clips, split, tally) if clips.is_dir() else None
    examples: dict[_Key, Example] = {}
    for line, row in read_table(table, COLUMNS):
        where = f"{table}, line {line}"
        if row is None:
            raise DataError(f"{where} has too few or too many fields: take the file of the official release")
        key = _Key(split, _number(row["Dialogue_ID"], where), _number(row["Utterance_ID"], where))
        if key in examples:
            tally.skip("repeated dialogue and utterance id", str(key))
            continue
        media = None if found is None else _clip_of(key, row, found, where, tally)
        examples[key] = _example(key, row, media, labels, where)
    for key in sorted(set(found or ()) - set(examples), key=str):
        tally.skip("clip without annotation", str(key))
    return list(examples.values())


def _example(key: _Key, row: Mapping[str, str], clip: Path | None, labels: tuple[str, ...], where: str) -> Example:
    label = row["Emotion"].strip()
    if label not in labels:
        raise DataError(f"{where}: the emotion is {label!r}; expected one of {', '.join(labels)}: correct it")
    media = None if clip is None else Media(clip)
    return Example(
        id=str(key),
        split=key.split,
        label=label,
        image=media,
        audio=media,
        text=row["Utterance"].strip() or None,
        speaker=row["Speaker"],
        tags={
            "dialogue": str(key.dialogue),
            "utterance": str(key.utterance),
            "season": row["Season"],
            "episode": row["Episode"],
            "sentiment": row["Sentiment"],
        },
    )


def _find_clips(folder: Path, split: Split, tally: Tally) -> dict[_Key, Path]:
    """The clip of each utterance. Of the test split, some were cut again: `final_videos_test…` is the better one."""
    found: dict[_Key, Path] = {}
    for path in sorted(folder.iterdir()):  # `dia…` before `final_videos_test…`
        if path.name.startswith(COMPANION):
            tally.skip("companion file of macOS", f"{folder.name}/{path.name}")
            continue
        match = _CLIP.fullmatch(path.name)
        if match is None or (match[1] and split != "test"):
            tally.skip("file that is no clip", f"{folder.name}/{path.name}")
            continue
        key = _Key(split, int(match[2]), int(match[3]))
        if key in found:
            tally.skip("clip that was cut again", f"{folder.name}/{found[key].name}")
        found[key] = path
    return found


def _clip_of(key: _Key, row: Mapping[str, str], found: Mapping[_Key, Path], where: str, tally: Tally) -> Path | None:
    """The clip of an utterance; without a usable one the utterance keeps its text."""
    if (key.split, key.dialogue, key.utterance) in DAMAGED:
        tally.skip("damaged clip: text alone", str(key))
    elif _seconds(row["EndTime"], where) - _seconds(row["StartTime"], where) > LONGEST_S:
        tally.skip("clip cut at wrong times: text alone", str(key))
    elif key not in found:
        tally.skip("clip is absent: text alone", str(key))
    else:
        return found[key]
    return None


def _number(text: str, where: str) -> int:
    if not text.strip().isdecimal():
        raise DataError(f"{where}: an id is {text!r}; expected a number: take the file of the official release")
    return int(text)


def _seconds(text: str, where: str) -> float:
    """`h:mm:ss,ms` or `hh:mm:ss,ms` in seconds."""
    match = _TIME.fullmatch(text.strip())
    if match is None:
        raise DataError(f"{where}: a time is {text!r}; expected hh:mm:ss,ms: take the file of the official release")
    hours, minutes, seconds, milliseconds = map(int, match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
