"""FER2013 (Goodfellow et al. 2013, arXiv 1307.0414): 35,887 grey faces of 48 x 48 with 7 emotions.

As folders (`train/angry/….jpg`), or as the one table of the challenge: `emotion,pixels,Usage`. The table's numbers are
not in the folders' alphabetic order: they end in surprise and neutral.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from cmt_pipeline.labels import labels_of
from cmt_pipeline.synonyms import canonical
from cmt_training.data.label_folders import load_label_folders
from cmt_training.data.reading import Tally, require_examples
from cmt_training.examples import DataError, DataSet, Example, Media, Split

LABEL_SET = "meld"  # the same seven
LABELS = ("anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral")  # 0 to 6 of the table
FOLDERS = frozenset(("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"))
HEADER = ("emotion", "pixels", "usage")
USAGE: dict[str, Split] = {"training": "train", "publictest": "validation", "privatetest": "test"}
TABLES = ("fer2013.csv", "icml_face_data.csv")
#: Of the second table the columns are in another order.
_COLUMNS = 3


def load_fer2013(folder: Path) -> DataSet:
    """The folder of train, test and perhaps validation, or of the table; or the table itself. Raises DataError."""
    table = _table_in(folder)
    if table is not None:
        tally = Tally()
        data = DataSet("fer2013", LABEL_SET, tuple(_rows(table, tally)), tally.skipped())
        return require_examples(data, folder, ())
    data = load_label_folders(folder)
    examples = tuple(replace(e, label=canonical(e.label)) for e in data.examples)
    return replace(data, name="fer2013", label_set=LABEL_SET, examples=examples)


def is_fer2013(path: Path) -> bool:
    if _table_in(path) is not None:
        return True
    train = path / "train"
    return train.is_dir() and {label.name.casefold() for label in train.iterdir() if label.is_dir()} == FOLDERS


def _table_in(path: Path) -> Path | None:
    candidates = [path] if path.is_file() else [path / name for name in TABLES]
    return next((found for found in candidates if found.is_file() and _header(found)), None)


def _header(path: Path) -> tuple[str, ...] | None:
    """The names of the columns; None for another table."""
    if path.suffix.lower() != ".csv":
        return None
    with path.open("rb") as file:
        line = file.readline(1024)
    names = tuple(name.strip().casefold() for name in line.decode("utf-8-sig", "replace").split(","))
    return names if sorted(names) == sorted(HEADER) else None


def _rows(table: Path, tally: Tally) -> Iterator[Example]:
    names = _header(table) or HEADER
    number, usage = names.index("emotion"), names.index("usage")
    with table.open("rb") as file:
        offset = len(file.readline())
        for line, row in enumerate(file, 2):
            where = f"{table.name}, line {line}"
            fields = [field.strip().casefold() for field in row.decode("ascii", "replace").split(",")]
            if len(fields) != len(HEADER):
                tally.skip("malformed row", where)
            elif fields[number] not in map(str, range(len(LABELS))) or fields[usage] not in USAGE:
                raise DataError(
                    f"{where}: emotion {fields[number]!r} and Usage {fields[usage]!r}; expected 0 to 6, and Training, "
                    "PublicTest or PrivateTest: take the table of the challenge"
                )
            else:
                label = LABELS[int(fields[number])]
                yield Example(f"{table.stem}:{line}", USAGE[fields[usage]], label, image=Media(table, offset=offset))
            offset += len(row)


assert set(LABELS) == set(labels_of(LABEL_SET))
