"""AffectNet (Mollahosseini et al., 2017, arXiv 1708.03985): photographs with 8 emotions, valence and arousal.

Both releases: the original one (CSV files and whole photographs) and the cropped one (faces and .npy files). Neither
has a test split: the official validation split is the test split here, and a twentieth of the training split, chosen
by the SHA-256 of the image's name, is the validation split.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from cmt_training.data.reading import (
    COMPANION,
    Tally,
    finite,
    read_table,
    require_examples,
    require_folder,
)
from cmt_training.examples import DataError, DataSet, Example, Media, Split

LABEL_SET = "affectnet8"
LABELS = ("neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt")
NO_LABELS = ("None", "Uncertain", "No-Face")  # numbers 8, 9, 10
COLUMNS = (
    "subDirectory_filePath",
    "face_x",
    "face_y",
    "face_width",
    "face_height",
    "facial_landmarks",
    "expression",
    "valence",
    "arousal",
)
CROPPED_FOLDERS = ("train_set", "val_set")
TABLES = ("training.csv", "validation.csv")
#: Where the photographs of the original release lie, below the folder of its CSV files.
PHOTOGRAPHS = ("", "Manually_Annotated_Images", "Manually_Annotated/Manually_Annotated_Images")
NO_RATING = -2.0
VALIDATION_SHARE = 0.05
MAX_NPY_BYTES = 4096  # a string of at most some twenty characters and its header


def load_affectnet(folder: Path) -> DataSet:
    """The folder of either release. Raises DataError."""
    require_folder(folder)
    tally = Tally()
    load = _load_cropped if (folder / CROPPED_FOLDERS[0]).is_dir() else _load_original
    examples = tuple(load(folder, tally))
    return require_examples(DataSet("affectnet", LABEL_SET, examples, tally.skipped()), folder)


def _load_cropped(folder: Path, tally: Tally) -> Iterator[Example]:
    for name in CROPPED_FOLDERS:
        annotations, images = folder / name / "annotations", folder / name / "images"
        require_folder(annotations)
        require_folder(images)
        for path in sorted(annotations.glob("*_exp.npy")):
            id_ = f"{name}/{path.name.removesuffix('_exp.npy')}"
            if path.name.startswith(COMPANION):
                tally.skip("companion file of macOS", f"{name}/{path.name}")
                continue
            image = images / f"{path.name.removesuffix('_exp.npy')}.jpg"
            label = _label(_read_string(path), str(path), id_, tally)
            if label is None:
                continue
            if not image.is_file():
                tally.skip("image is absent", id_)
                continue
            parts = [annotations / path.name.replace("_exp.npy", f"_{part}.npy") for part in ("val", "aro")]
            ratings = [(_read_string(part), str(part)) for part in parts]
            yield _example(id_, name == CROPPED_FOLDERS[0], label, Media(image), ratings, tally)


def _load_original(folder: Path, tally: Tally) -> Iterator[Example]:
    seen: set[str] = set()
    for table in TABLES:
        for line, row in read_table(folder / table, COLUMNS):
            where = f"{folder / table}, line {line}"
            if row is None or not all(map(_is_number, (row["expression"], row["valence"], row["arousal"]))):
                tally.skip("malformed row", f"{table}, line {line}")
                continue
            id_ = row["subDirectory_filePath"].strip()
            if id_ in seen:
                tally.skip("repeated image", f"{table}, line {line}: {id_}")
                continue
            seen.add(id_)
            label = _label(row["expression"], where, id_, tally)
            image = None if label is None else _photograph(folder, id_, row, f"{table}, line {line}", tally)
            if label is not None and image is not None:
                ratings = [(row["valence"], where), (row["arousal"], where)]
                yield _example(id_, table == TABLES[0], label, image, ratings, tally)


def _example(
    id_: str, training: bool, label: str, image: Media, ratings: list[tuple[str, str]], tally: Tally
) -> Example:
    """ratings: valence and arousal, each with its file and line."""
    values = [finite(text, where, name) for (text, where), name in zip(ratings, ("valence", "arousal"), strict=True)]
    rated = all(-1 <= value <= 1 for value in values)
    if not rated and NO_RATING not in values:
        raise DataError(f"{ratings[0][1]}: valence and arousal are {values}; expected -1 to 1: correct them")
    if not rated:
        tally.skip("no valence and arousal (-2): label alone", id_)
    split: Split = _training_split(id_) if training else "test"
    valence, arousal = values if rated else (None, None)
    return Example(id=id_, split=split, label=label, image=image, valence=valence, arousal=arousal)


def _training_split(id_: str) -> Split:
    """The same for an image, whatever else lies in the folder."""
    place = int.from_bytes(hashlib.sha256(id_.encode()).digest()[:4], "big") / 2**32
    return "validation" if place < VALIDATION_SHARE else "train"


def _label(text: str, where: str, id_: str, tally: Tally) -> str | None:
    """The name of a numbered expression; None, and counted, for those that are no emotion."""
    value = finite(text, where, "the expression")
    names = LABELS + NO_LABELS
    if value not in range(len(names)):
        raise DataError(f"{where}: the expression is {text!r}; expected 0 to {len(names) - 1}: correct it")
    name = names[int(value)]
    if name in NO_LABELS:
        tally.skip(f"expression {name}", id_)
        return None
    return name


def _photograph(folder: Path, name: str, row: dict[str, str], where: str, tally: Tally) -> Media | None:
    """A photograph and the face in it; None, and counted, if there is none to be had."""
    fields = [row[column] for column in COLUMNS[1:5]]
    if not all(map(_is_number, fields)) or min(finite(size, where, "the face's size") for size in fields[2:]) < 1:
        tally.skip("face box without a size", where)
        return None
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise DataError(f"{folder}, {where}: the image {name!r} lies outside the data set: take the line out")
    path = next((path for root in PHOTOGRAPHS if (path := folder / root / name).is_file()), None)
    if path is None:
        tally.skip("image is absent", name)
        return None
    left, top, width, height = (int(finite(field, where, "the face's place")) for field in fields)
    return Media(path, crop=(left, top, left + width, top + height))


def _read_string(path: Path) -> str:
    """The one string of an .npy file; nothing in the file is executed. DataError for any other file."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_NPY_BYTES + 1)
        if len(data) > MAX_NPY_BYTES:
            raise ValueError(f"more than {MAX_NPY_BYTES} bytes")
        array = np.load(io.BytesIO(data), allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.size != 1 or array.dtype.kind not in "Uif":
            raise ValueError(f"an array of {array.shape} {array.dtype}")
    except FileNotFoundError:
        raise DataError(f"{path} isn't there; expected beside the image's other annotations: unpack it again") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} can't be used ({error}); expected an array of one string: unpack it again") from None
    return str(array.reshape(-1)[0])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
