"""API keys: 128 random bits behind a prefix that people recognise; at rest there is a name and a SHA-256 alone.

A key has so many bits that a fast hash keeps it: nobody can guess what it was made from. File: a line a key,
`NAME SHA256`; lines that begin with # are comments. A file that changes is read again at the next request.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

PREFIX = "cmt_"
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LINE = re.compile(rf"({NAME.pattern})\s+([0-9a-f]{{64}})")


def new_key(file: Path, name: str) -> str:
    """Adds a key to the file, which only its owner may read, and returns it: it is shown this once.

    ValueError for a name that isn't one or is taken.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"key name: got {name!r}; expected up to 64 of A-Z, a-z, 0-9, '.', '_', '-'")
    if file.exists() and name in {known.name for known in _read(file)}:
        raise ValueError(f"{file} has a key {name} already: take its line out, or choose another name")
    key = PREFIX + secrets.token_urlsafe(16)
    file.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as out:
        out.write(f"{name} {_hash(key)}\n")
    return key


@dataclass(frozen=True)
class _Known:
    name: str
    sha256: str


class Keys:
    """Those of a file. ValueError for one that can't be read, at the start; later the keys of before stay."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._stamp = _stamp(file)
        self._known = _read(file)

    def name_of(self, key: str) -> str | None:
        """Whose key it is; None for nobody's."""
        self._refresh()
        sha256, found = _hash(key), None
        for known in self._known:  # all of them, whichever it is
            if hmac.compare_digest(known.sha256, sha256):
                found = known.name
        return found

    def _refresh(self) -> None:
        try:
            stamp = _stamp(self._file)
            if stamp != self._stamp:
                self._known = _read(self._file)
                self._stamp = stamp
        except ValueError:
            return  # somebody is writing it


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _stamp(file: Path) -> tuple[int, int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise ValueError(f"keys: {file} can't be read ({error}); make one with `cmt key NAME --keys {file}`") from None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(file: Path) -> tuple[_Known, ...]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"keys: {file} can't be read ({error}); make one with `cmt key NAME --keys {file}`") from None
    known = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(
                f"keys: {file}, line {number}: expected NAME and 64 hexadecimal digits: make keys with `cmt key`"
            )
        known.append(_Known(found[1], found[2]))
    return tuple(known)
