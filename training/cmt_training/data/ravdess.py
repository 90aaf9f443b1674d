"""RAVDESS (Livingstone & Russo 2018, PLoS ONE 13(5)): speech of 24 actors with 8 emotions, as sound, as video, as both.

`03-01-06-01-02-01-12.wav`: modality (01 both, 02 video, 03 sound), speech or song, emotion, intensity, statement,
repetition, actor (odd: male).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from cmt_training.data.reading import COMPANION, Tally, small_data_set
from cmt_training.examples import DataSet, Example, Media

LABELS = ("neutral", "calm", "joy", "sadness", "anger", "fear", "disgust", "surprise")  # 01 to 08
BOTH, VIDEO, SOUND = "01", "02", "03"
SONG = "02"
_NAME = re.compile(r"(0[123])-(0[12])-(0[1-8])-(0[12])-(0[12])-(0[12])-(\d\d)\.(?:wav|mp4|flac)")


def load_ravdess(folder: Path) -> DataSet:
    """Any folder above the files; songs are left out. Raises DataError."""
    tally = Tally()
    return small_data_set("ravdess", folder, _examples(folder, tally), tally, "actor")


def is_ravdess(folder: Path) -> bool:
    return any(_NAME.fullmatch(path.name) for path in folder.rglob("*-*-*-*-*-*-*.*"))


def _examples(folder: Path, tally: Tally) -> Iterator[Example]:
    found: dict[tuple[str, ...], dict[str, Path]] = {}
    for path in sorted(folder.rglob("*")):
        match = _NAME.fullmatch(path.name)
        if path.is_dir():
            continue
        if match is None:
            reason = "companion file of macOS" if path.name.startswith(COMPANION) else "file that is no recording"
            tally.skip(reason, str(path.relative_to(folder)))
            continue
        modality, channel, key = match[1], match[2], match.groups()[2:]
        files = found.setdefault(key, {})
        if channel == SONG:
            tally.skip("song", path.name)
        elif modality in files:
            tally.skip("repeated file", str(path.relative_to(folder)))
        else:
            files[modality] = path
    for key, files in sorted(found.items()):
        if files:
            yield _example(key, files)


def _example(key: tuple[str, ...], files: dict[str, Path]) -> Example:
    emotion, intensity, statement, repetition, actor = key
    seen, heard = files.get(BOTH) or files.get(VIDEO), files.get(SOUND) or files.get(BOTH)
    return Example(
        id="-".join(key),
        split="train",
        label=LABELS[int(emotion) - 1],
        image=Media(seen) if seen else None,
        audio=Media(heard) if heard else None,
        speaker=actor,
        tags={"intensity": intensity, "statement": statement, "repetition": repetition},
    )
