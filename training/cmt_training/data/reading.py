"""What the loaders share: tables and texts whose faults are named, and the tally of what is left out."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cmt_training.data.names import label_set_of
from cmt_training.data.splits import with_splits
from cmt_training.examples import SPLITS, DataError, DataSet, Example, Split

#: The companion files that macOS leaves beside every file of an archive.
COMPANION = "._"


class Tally:
    """Counts what is left out, by reason."""

    def __init__(self) -> None:
        self._found: dict[str, list[str]] = {}

    def skip(self, reason: str, what: str) -> None:
        self._found.setdefault(reason, []).append(what)

    def __str__(self) -> str:
        return ", ".join(f"{len(found)} x {reason}" for reason, found in self._found.items()) or "nothing"

    def skipped(self) -> dict[str, tuple[str, ...]]:
        return {reason: tuple(found) for reason, found in self._found.items()}


def read_text(path: Path) -> str:
    """A UTF-8 file. DataError if it is absent or anything else."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path} isn't there; expected as part of the data set: unpack it again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} can't be read ({error}); expected UTF-8 text: unpack it again") from None


def lines_of(text: str) -> list[str]:
    """Split at CR, LF and CRLF alone, as files of lines are; str.splitlines would cut an utterance at its U+2028."""
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def read_table(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, str] | None]]:
    """The rows of a CSV file, each with the number of its last line; None for one with too few or too many fields.

    Raises DataError if the file is absent, isn't UTF-8, has another header or breaks CSV's quoting.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        if missing := [name for name in columns if name not in header]:
            raise DataError(
                f"{path} has the columns {', '.join(header) or '(none)'}; expected {', '.join(missing)} too: "
                "take the file of the official release"
            )
        for row in rows:
            if row:
                yield rows.line_num, dict(zip(header, row, strict=True)) if len(row) == len(header) else None
    except csv.Error as error:
        raise DataError(
            f"{path}, line {rows.line_num} breaks CSV's rules ({error}): take the file of the official release"
        ) from None


def require_folder(folder: Path) -> None:
    """DataError if a folder is absent."""
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder; expected that of a data set: check its path")


def small_data_set(name: str, folder: Path, examples: Iterable[Example], tally: Tally, of: str) -> DataSet:
    """Examples of a data set without splits, whose labels are its own. of: what it calls its people."""
    require_folder(folder)
    found = tuple(examples)
    if not found:
        raise DataError(f"{folder} has no recording of {name} (left out: {tally}); complete it")
    split, note = with_splits(found, of)
    return DataSet(name, label_set_of({e.label for e in found}, str(folder)), split, tally.skipped(), (note,))


def require_examples(data_set: DataSet, folder: Path, splits: Iterable[Split] = SPLITS) -> DataSet:
    """The data set; DataError if a split is empty."""
    for split in splits:
        if not any(example.split == split for example in data_set.examples):
            left_out = ", ".join(f"{len(found)} x {reason}" for reason, found in data_set.skipped.items()) or "nothing"
            raise DataError(
                f"{folder}: the {split} split of {data_set.name} is empty (left out: {left_out}); "
                "complete the folder, or choose another label set"
            )
    return data_set


def check_label_set(kind: str, chosen: str | None, possible: Sequence[str]) -> str:
    """The label set chosen, else the first that is possible. DataError for another."""
    if chosen is not None and chosen not in possible:
        raise DataError(f"got label set {chosen!r} for {kind}; expected {' or '.join(possible)}")
    return chosen or possible[0]


def finite(text: str, where: str, what: str) -> float:
    """A number. DataError for anything else, NaN and infinity among it. where: the file and line."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: {what} is {text!r}; expected a finite number: correct it or take the line out")
    return value
