"""Answers as JSON Lines that outlive a kill: a line is written whole, and who starts again goes on from there.

Opened again, a journal keeps what was answered, and drops what failed, so that it is asked again, and a last line that
was torn. One process at a time may hold it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

Row = Mapping[str, Any]

HEAD = b'{"item": '  # of every line


@dataclass(frozen=True)
class Journal:
    """answered: the items that have a line already."""

    answered: frozenset[str]
    _file: BinaryIO

    def append(self, row: Row) -> None:
        """Writes a line at once. OSError where the disk is full."""
        line = json.dumps(row).encode() + b"\n"
        if self._file.write(line) != len(line):
            raise OSError(f"{self._file.name}: the disk is full")


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """A new one, or one to go on with. ValueError for a file that isn't one, or that another process holds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    with path.open("a+b") as before:  # held to the end: whoever opened it before it was replaced finds it locked
        _lock(before, path)
        with draft.open("wb", buffering=0) as file:
            _lock(file, path)
            try:
                answered = frozenset(_kept(before, file, path))
            except BaseException:
                draft.unlink()
                raise
            os.fsync(file.fileno())
            draft.replace(path)
            yield Journal(answered, file)


def rows_of(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a journal that nobody writes to."""
    with path.open("rb") as file:
        for line in file:
            yield json.loads(line)


def _lock(file: Any, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"{path}: another process is writing to it; expected one at a time") from None


def _kept(before: Any, file: Any, path: Path) -> Iterator[str]:
    """The items whose lines were copied."""
    before.seek(0)
    for number, line in enumerate(before, 1):
        if not line.endswith(b"\n") and HEAD.startswith(line[: len(HEAD)]):
            return
        try:
            row = json.loads(line)
            item, error = row["item"], row["error"]
        except (ValueError, TypeError, KeyError):
            told = f"{path}, line {number}: no answer to an item; expected a file that `cmt predict` wrote, or none"
            raise ValueError(told) from None
        if error is None:
            file.write(line)
            yield item
