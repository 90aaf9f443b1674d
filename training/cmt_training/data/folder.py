"""A folder -> its data set, whichever it holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from cmt_pipeline.labels import SEPARATOR, labels_of
from cmt_training.data.affectnet import CROPPED_FOLDERS, TABLES, load_affectnet
from cmt_training.data.generated import CORPUS_FILE, load_generated
from cmt_training.data.iemocap import RELEASE_FOLDER, load_iemocap
from cmt_training.data.meld import FILES, load_meld
from cmt_training.data.reading import require_examples, require_folder
from cmt_training.examples import SPLITS, DataError, DataSet

Kind = Literal["meld", "iemocap", "affectnet", "generated"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_LOADERS = {"meld": load_meld, "iemocap": load_iemocap, "affectnet": load_affectnet, "generated": load_generated}
#: What lies in a data set's folder, any one of them.
_MARKS: dict[Kind, tuple[str, ...]] = {
    "generated": (CORPUS_FILE,),
    "meld": tuple(table for table, _ in FILES.values()),
    "iemocap": (RELEASE_FOLDER, "Session1"),
    "affectnet": (*CROPPED_FOLDERS, *TABLES),
}


def open_data_set(folder: Path, kind: Kind | None = None, label_set: str | None = None) -> DataSet:
    """The data set of a folder; recognised by its layout unless its kind is given. No image or sound is read.

    label_set: for IEMOCAP, `iemocap4` (default) or `iemocap6`; each other data set has one of its own. Of any, some of
    its labels, joined by commas (`joy,anger`), leave the examples of the others out. Raises DataError for a folder,
    file or line that can't be used; what is left out is counted in `skipped`.
    """
    require_folder(folder)
    if kind is not None and kind not in KINDS:
        raise DataError(f"got data set {kind!r}; expected one of {', '.join(KINDS)}")
    load = _LOADERS[kind or _recognised(folder)]
    if label_set is not None and SEPARATOR in label_set:
        return _narrowed(load(folder, None), label_set, folder)
    return load(folder, label_set)


def _narrowed(data: DataSet, label_set: str, folder: Path) -> DataSet:
    labels, known = labels_of(label_set), labels_of(data.label_set)
    if unknown := [label for label in labels if label not in known]:
        raise DataError(f"got labels {', '.join(unknown)} for {data.name}; expected some of {', '.join(known)}")
    kept = tuple(example for example in data.examples if example.label in labels)
    others = tuple(example.id for example in data.examples if example.label not in labels)
    skipped = {**data.skipped, **({"label outside of the label set": others} if others else {})}
    splits = [split for split in SPLITS if data.of(split)]
    return require_examples(replace(data, label_set=label_set, examples=kept, skipped=skipped), folder, splits)


def _recognised(folder: Path) -> Kind:
    for kind, marks in _MARKS.items():
        if any((folder / mark).exists() for mark in marks):
            return kind
    expected = "; ".join(f"{kind}: {' or '.join(marks)}" for kind, marks in _MARKS.items())
    raise DataError(f"{folder} is no data set that is known here; expected in it ({expected}): check its path")
