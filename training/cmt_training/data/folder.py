"""A folder or table -> its data set, whichever it holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from cmt_training.data.affectnet import CROPPED_FOLDERS, TABLES, load_affectnet
from cmt_training.data.cremad import is_cremad, load_cremad
from cmt_training.data.emodb import is_emodb, load_emodb
from cmt_training.data.fer2013 import is_fer2013, load_fer2013
from cmt_training.data.generated import CORPUS_FILE, load_generated
from cmt_training.data.iemocap import LABELS as IEMOCAP_LABELS
from cmt_training.data.iemocap import RELEASE_FOLDER, load_iemocap
from cmt_training.data.label_folders import are_label_folders, load_label_folders
from cmt_training.data.meld import FILES, load_meld
from cmt_training.data.names import relabelled
from cmt_training.data.ravdess import is_ravdess, load_ravdess
from cmt_training.data.reading import require_examples, require_folder
from cmt_training.data.table import is_table, load_table
from cmt_training.examples import SPLITS, DataError, DataSet

Kind = Literal[
    "generated", "meld", "iemocap", "affectnet", "ravdess", "cremad", "emodb", "fer2013", "table", "label-folders"
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class _Known:
    """found: whether a path holds it; looks: how that is told."""

    load: Callable[[Path], DataSet]
    found: Callable[[Path], bool]
    looks: str


def _marked(load: Callable[[Path], DataSet], *marks: str) -> _Known:
    """What is told by files of its own, any one of them."""
    return _Known(load, lambda folder: any((folder / mark).exists() for mark in marks), " or ".join(marks))


#: The first that is found is it.
_KNOWN: dict[Kind, _Known] = {
    "generated": _marked(load_generated, CORPUS_FILE),
    "meld": _marked(load_meld, *(table for table, _ in FILES.values())),
    "iemocap": _marked(load_iemocap, RELEASE_FOLDER, "Session1"),
    "affectnet": _marked(load_affectnet, *CROPPED_FOLDERS, *TABLES),
    "fer2013": _Known(load_fer2013, is_fer2013, "train/angry and the other six, or a table of emotion,pixels,Usage"),
    "table": _Known(load_table, lambda path: path.is_file() and is_table(path), ".csv, .tsv, .jsonl, .parquet"),
    "cremad": _Known(load_cremad, is_cremad, "AudioWAV/1001_IEO_ANG_LO.wav"),
    "emodb": _Known(load_emodb, is_emodb, "wav/03a01Fa.wav"),
    "ravdess": _Known(load_ravdess, is_ravdess, "Actor_01/03-01-01-01-01-01-01.wav"),
    "label-folders": _Known(load_label_folders, are_label_folders, "joy/1.jpg and further labels, or train/joy/1.jpg"),
}


def open_data_set(
    path: Path, kind: Kind | None = None, label_set: str | None = None, root: Path | None = None
) -> DataSet:
    """The data set of a folder or a table; recognised by its layout unless its kind is given. No media are read.

    label_set: one in which the data set's labels have their places, or some of them, joined by commas (`joy,anger`);
    examples of others are left out. IEMOCAP is read as `iemocap4`, unless that is `iemocap6`. root: where a table's
    files lie. Raises DataError for a folder, file or line that can't be used; what is left out is counted in `skipped`.
    """
    if kind is not None and kind not in KINDS:
        raise DataError(f"got data set {kind!r}; expected one of {', '.join(KINDS)}")
    if not path.is_file():
        require_folder(path)
    kind = kind or _recognised(path)
    if root is not None and kind != "table":
        raise DataError(f"got --root for {path}; expected a table: only the files of a table lie elsewhere")
    if kind == "iemocap" and label_set in IEMOCAP_LABELS:
        return load_iemocap(path, label_set)
    data = load_table(path, root) if kind == "table" else _KNOWN[kind].load(path)
    if label_set in (None, data.label_set):
        return data
    splits = [split for split in SPLITS if data.of(split)]
    return require_examples(relabelled(data, str(label_set)), path, splits)


def _recognised(path: Path) -> Kind:
    for kind, known in _KNOWN.items():
        if known.found(path):
            return kind
    expected = "; ".join(f"{kind}: {known.looks}" for kind, known in _KNOWN.items())
    raise DataError(f"{path} is no data set that is known here; expected in it ({expected}): check its path")
