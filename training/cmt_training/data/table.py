"""A table of one's own: CSV, TSV, JSON Lines or Parquet, a row an example.

image, audio   files, relative to the table or to a root of one's choice; a video serves as either
text           the words themselves
label          any names
split, group   which split, and who is seen and heard; made by group where there is no column `split`
valence, arousal   -1 to 1
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cmt_pipeline.modality import MODALITIES
from cmt_training.data.names import label_set_of
from cmt_training.data.reading import Tally, finite, lines_of, read_text
from cmt_training.data.splits import NAMED, NAMES, check_apart, completed, with_splits
from cmt_training.examples import DataError, DataSet, Example, Media, Split

COLUMNS = (*MODALITIES, "label", "split", "group", "valence", "arousal")
#: More of the files named than this share are absent: then the paths are wrong, not the files lost.
MOST_ABSENT = 0.1

#: Where a row stands, and its values by column; "" for none.
Row = tuple[str, dict[str, str]]


def load_table(path: Path, root: Path | None = None) -> DataSet:
    """The examples of a table. root: where its files lie; beside it by default. Raises DataError."""
    tally = Tally()
    rows = list(_READERS[path.suffix.lower()](path))
    _check_columns(path, rows, tally)
    own_splits = any(values.get("split") for _, values in rows)
    examples = _with_media(rows, path, root or path.parent, own_splits, tally)
    if not examples:
        raise DataError(f"{path} has no example to use (left out: {tally}); expected a label and a modality in a row")
    notes: tuple[str, ...]
    if own_splits:
        examples, notes = completed(examples, "group")
        check_apart(examples, str(path))
    else:
        examples, note = with_splits(examples, "group")
        notes = (note,)
    return DataSet(path.name, label_set_of((e.label for e in examples), str(path)), examples, tally.skipped(), notes)


def is_table(path: Path) -> bool:
    return path.suffix.lower() in _READERS


def _check_columns(path: Path, rows: Sequence[Row], tally: Tally) -> None:
    found = {name: None for _, values in rows for name in values}
    if "label" not in found or not any(m in found for m in MODALITIES):
        raise DataError(
            f"{path} has the columns {', '.join(found) or '(none)'}; expected label and one or more of "
            f"{', '.join(MODALITIES)}, and if you like {', '.join(COLUMNS[4:])}: rename them"
        )
    for name in found:
        if name not in COLUMNS:
            tally.skip("column that isn't read", name)


def _with_media(rows: Sequence[Row], path: Path, root: Path, own_splits: bool, tally: Tally) -> tuple[Example, ...]:
    named = 0
    absent: list[str] = []
    examples = []
    for where, values in rows:
        media: dict[str, Media] = {}
        for m in ("image", "audio"):
            if name := values.get(m):
                named += 1
                if (file := root / name).is_file():
                    media[m] = Media(file)
                else:
                    absent.append(name)
                    tally.skip(f"{m} is absent", name)
        example = _example(where, values, media, own_splits, tally)
        if example is not None:
            examples.append(example)
    if len(absent) > MOST_ABSENT * named:
        raise DataError(
            f"{path}: {len(absent)} of the {named} files it names aren't in {root}: {', '.join(absent[:NAMED])}"
            f"{', …' if len(absent) > NAMED else ''}; expected paths relative to the table: correct them, or name the "
            "folder that they are relative to with --root"
        )
    return tuple(examples)


def _example(
    where: str, values: Mapping[str, str], media: Mapping[str, Media], own_splits: bool, tally: Tally
) -> Example | None:
    """A row's example; None, and counted, for one without a label or without anything to read."""
    text = values.get("text") or None
    if not values.get("label"):
        tally.skip("no label", where)
        return None
    if not media and text is None:
        tally.skip("nothing left of the example", where)
        return None
    return Example(
        id=where,
        split=_split(values.get("split", ""), where) if own_splits else "train",
        label=values["label"],
        image=media.get("image"),
        audio=media.get("audio"),
        text=text,
        valence=_rating(values, "valence", where),
        arousal=_rating(values, "arousal", where),
        speaker=values.get("group", ""),
    )


def _split(name: str, where: str) -> Split:
    if name.casefold() not in NAMES:
        raise DataError(f"{where}: the split is {name!r}; expected train, validation or test in every row: correct it")
    return NAMES[name.casefold()]


def _rating(values: Mapping[str, str], name: str, where: str) -> float | None:
    if not values.get(name):
        return None
    value = finite(values[name], where, name)
    if not -1 <= value <= 1:
        raise DataError(f"{where}: {name} is {value:g}; expected -1 to 1: scale it")
    return value


def _read_separated(delimiter: str) -> Callable[[Path], Iterator[Row]]:
    def read(path: Path) -> Iterator[Row]:
        lines = csv.reader(io.StringIO(_read(path), newline=""), delimiter=delimiter, strict=True)
        try:
            header = [name.strip().casefold() for name in next(lines, [])]
            if len(set(header)) < len(header):
                raise DataError(f"{path} has the columns {', '.join(header)}; expected each once: rename them")
            for line in lines:
                where = f"{path.name}, line {lines.line_num}"
                if line and len(line) != len(header):
                    raise DataError(
                        f"{where} has {len(line)} fields; expected {len(header)}, as its header: put text that holds "
                        "a separator in double quotes"
                    )
                if line:
                    yield where, {name: value.strip() for name, value in zip(header, line, strict=True)}
        except csv.Error as error:
            raise DataError(f"{path.name}, line {lines.line_num} breaks CSV's rules ({error}): quote it") from None

    return read


def _read_json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(lines_of(_read(path)), 1):
        where = f"{path.name}, line {number}"
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError as error:
            raise DataError(f"{where} isn't JSON ({error}); expected one object a line: correct it") from None
        if not isinstance(found, dict):
            raise DataError(f"{where} is {line[:40]!r}; expected one object a line: correct it")
        yield where, _as_text(found, where)


def _read_parquet(path: Path) -> Iterator[Row]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise DataError(
            f"{path.name}: Parquet needs pyarrow ({error}): pip install 'cmt-triton[parquet]', or write CSV"
        ) from None
    try:
        rows = read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise DataError(f"{path} can't be read ({error}); expected a Parquet file: write it again") from None
    for number, row in enumerate(rows, 1):
        where = f"{path.name}, row {number}"
        yield where, _as_text(row, where)


def _as_text(found: Mapping[str, Any], where: str) -> dict[str, str]:
    """Values of a typed row as a CSV file would have them."""
    values = {}
    for name, value in found.items():
        if name.casefold() in COLUMNS and not isinstance(value, str | int | float | None):
            raise DataError(f"{where}: {name} is a {type(value).__name__}; expected text or a number: write it so")
        values[name.casefold()] = "" if value is None else str(value).strip()
    return values


def _read(path: Path) -> str:
    try:
        return read_text(path)
    except DataError:
        raise DataError(f"{path} can't be read; expected UTF-8 text: save it as UTF-8") from None


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".csv": _read_separated(","),
    ".tsv": _read_separated("\t"),
    ".jsonl": _read_json_lines,
    ".parquet": _read_parquet,
}
