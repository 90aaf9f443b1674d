"""Folders named by label, as image and audio data sets are often laid out.

    DATA/train/joy/1.jpg     with splits: train, validation (valid, val, dev), test
    DATA/joy/1.wav           without; they are made here

Images, sounds, videos (image and sound at once) and texts (a .txt file each) may lie in them, also in folders of their
own below a label's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cmt_training.data.media import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES
from cmt_training.data.names import label_set_of
from cmt_training.data.reading import COMPANION, Tally, read_text
from cmt_training.data.splits import NAMES, completed, with_splits
from cmt_training.examples import DataError, DataSet, Example, Media, Split

TEXT_SUFFIX = ".txt"
SUFFIXES = {*IMAGE_SUFFIXES, *AUDIO_SUFFIXES, *VIDEO_SUFFIXES, TEXT_SUFFIX}


def load_label_folders(folder: Path) -> DataSet:
    """The files of a folder that `are_label_folders`. Raises DataError."""
    tally = Tally()
    parts = _splits_in(folder)
    if parts:
        loaded = [example for split, part in parts.items() for example in _examples(part, split, folder, tally)]
        examples, notes = completed(loaded)
    else:
        examples, note = with_splits(list(_examples(folder, "train", folder, tally)))
        notes = (note,)
    if not examples:
        raise DataError(f"{folder} has folders of labels, but no file to use in them (left out: {tally})")
    label_set = label_set_of((example.label for example in examples), str(folder))
    return DataSet(folder.resolve().name, label_set, examples, tally.skipped(), notes)


def are_label_folders(folder: Path) -> bool:
    """Whether two or more folders, of the whole or of its training split, hold files of a known kind."""
    parts = _splits_in(folder)
    below = _folders(next(iter(parts.values())) if parts else folder)
    return sum(any(path.suffix.lower() in SUFFIXES for path in label.rglob("*")) for label in below) > 1


def _splits_in(folder: Path) -> dict[Split, Path]:
    """Folders of splits; none unless all folders are."""
    found = _folders(folder)
    if not found or any(path.name.casefold() not in NAMES for path in found):
        return {}
    parts: dict[Split, Path] = {}
    for path in found:
        split = NAMES[path.name.casefold()]
        if split in parts:
            raise DataError(f"{folder} has {parts[split].name} and {path.name}; expected one folder for {split}")
        parts[split] = path
    return {split: parts[split] for split in ("train", "validation", "test") if split in parts}


def _examples(folder: Path, split: Split, root: Path, tally: Tally) -> Iterator[Example]:
    for label in _folders(folder):
        for path in sorted(label.rglob("*")):
            name = str(path.relative_to(root))
            if path.is_dir():
                continue
            if path.name.startswith(COMPANION):
                tally.skip("companion file of macOS", name)
            elif (suffix := path.suffix.lower()) not in SUFFIXES:
                tally.skip("file that is no image, sound, video or text", name)
            else:
                seen, heard = suffix not in AUDIO_SUFFIXES, suffix not in IMAGE_SUFFIXES
                media = Media(path) if suffix != TEXT_SUFFIX else None
                yield Example(
                    id=name,
                    split=split,
                    label=label.name,
                    image=media if seen else None,
                    audio=media if heard else None,
                    text=read_text(path).strip() or None if media is None else None,
                )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
