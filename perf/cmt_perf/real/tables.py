"""Tables of real data sets for `cmt train`: every speaker's turn to be measured on, and samples of large sets."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from cmt_release.locks import make_once
from cmt_training.data import open_data_set
from cmt_training.examples import SPLITS, DataSet, Example, Split

HEADER = ("image", "audio", "text", "label", "split", "group")


def unpacked(archive: Path, folder: Path) -> Path:
    """The one folder of an archive, in `folder`."""
    name = archive.name.partition(".")[0]

    def make(draft: Path) -> None:
        with tarfile.open(archive) as opened, TemporaryDirectory(dir=folder) as whole:
            opened.extractall(whole, filter="data")
            Path(whole, name).rename(draft)

    make_once(folder / name, make)
    return folder / name


def leave_one_out(data: DataSet, folder: Path) -> dict[str, Path]:
    """Speaker -> a table whose test split they are, and the next one its validation split."""
    speakers = sorted({example.speaker for example in data.examples})
    tables = {}
    for number, speaker in enumerate(speakers):
        splits: dict[str, Split] = {speaker: "test", speakers[(number + 1) % len(speakers)]: "validation"}
        rows = [(example, splits.get(example.speaker, "train")) for example in data.examples]
        tables[speaker] = written(rows, folder / f"{data.name}-{speaker}.csv")
    return tables


def sampled(path: Path, counts: Mapping[Split, int], table: Path) -> Path:
    """A table of a data set's examples, so many of a split at random; of a split without a count, all.

    Splits are as published, even where they share people, so that it names none.
    """
    data, rng = open_data_set(path), np.random.default_rng(0)
    rows: list[tuple[Example, Split]] = []
    for split in SPLITS:
        found = data.of(split)
        chosen = sorted(rng.permutation(len(found))[: counts.get(split, len(found))].tolist())
        rows += [(replace(found[index], speaker=""), split) for index in chosen]
    return written(rows, table)


def written(rows: Iterable[tuple[Example, Split]], table: Path) -> Path:
    """A table of examples, with the paths of their files as they are."""
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for example, split in rows:
            files: Sequence[str] = [str(m.path.resolve()) if m else "" for m in (example.image, example.audio)]
            writer.writerow([*files, example.text or "", example.label, split, example.speaker])
    return table
