"""A generated corpus as `cmt corpus` writes it: corpus.json, and a line of JSON for each example of a split."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cmt_pipeline.labels import labels_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_training.data.reading import finite, lines_of, read_text, require_examples, require_folder
from cmt_training.examples import SPLITS, DataError, DataSet, Example, Media, Split

CORPUS_FILE = "corpus.json"
NAME = "generated"
FORMAT = 2


def table_of(split: Split) -> str:
    """The file of a split's examples."""
    return f"{split}.jsonl"


def load_generated(folder: Path) -> DataSet:
    """The folder of a corpus; its splits are those that it was made with. Raises DataError."""
    require_folder(folder)
    path = folder / CORPUS_FILE
    corpus = _read_json(read_text(path), str(path))
    if (corpus.get("name"), corpus.get("format")) != (NAME, FORMAT):
        raise DataError(f"{path} isn't of a {NAME} corpus of format {FORMAT}: make it again with `cmt corpus`")
    label_set = str(corpus.get("label_set"))
    splits = [split for split in SPLITS if split in corpus["splits"]]
    labels = labels_of(label_set)
    counts = {m: len(names) for m, names in corpus.get("cues", {}).items()}
    examples = []
    for split in splits:
        table = folder / table_of(split)
        for number, line in enumerate(lines_of(read_text(table)), 1):
            examples.append(_example(line, folder, split, labels, counts, f"{table}, line {number}"))
    return require_examples(DataSet(NAME, label_set, tuple(examples)), folder, splits)


def _example(
    line: str, folder: Path, split: Split, labels: tuple[str, ...], cues: Mapping[str, int], where: str
) -> Example:
    row = _read_json(line, where)
    label = row.get("label")
    if label not in labels:
        raise DataError(f"{where}: the label is {label!r}; expected one of {', '.join(labels)}: make the corpus again")
    return Example(
        id=str(row.get("id")),
        split=split,
        label=label,
        image=_media(row, "image", folder, where),
        audio=_media(row, "audio", folder, where),
        text=row.get("text"),
        valence=finite(str(row.get("valence")), where, "valence"),
        arousal=finite(str(row.get("arousal")), where, "arousal"),
        cues={m: _cues(row, m, cues.get(m, 0), where) for m in MODALITIES if m in row.get("cues", {})},
        speaker=str(row.get("speaker")),
        tags={str(key): str(value) for key, value in row.get("tags", {}).items()},
    )


def _media(row: Mapping[str, Any], modality: str, folder: Path, where: str) -> Media | None:
    name = row.get(modality)
    if name is None:
        return None
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise DataError(f"{where}: the {modality} is {name!r}; expected a file in the corpus: make the corpus again")
    return Media(folder / name)


def _cues(row: Mapping[str, Any], modality: Modality, count: int, where: str) -> tuple[float, ...]:
    values = row["cues"][modality]
    numbers = isinstance(values, list) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in values)
    if not numbers or len(values) != count:
        raise DataError(
            f"{where}: the {modality}'s cues are {values!r}; expected {count} finite numbers: make the corpus again"
        )
    return tuple(float(value) for value in values)


def _read_json(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} isn't JSON ({error}): make the corpus again with `cmt corpus`") from None
    if not isinstance(found, dict):
        raise DataError(f"{where} is no JSON object: make the corpus again with `cmt corpus`")
    return found
