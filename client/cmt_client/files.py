"""Files as a program holds them -> their bytes: paths, open files, and rows of a data set."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

from cmt_client.errors import InvalidInput

#: Either alphabet, and longer than a path without a dot is.
BASE64 = re.compile(r"([A-Za-z0-9+/]{254,}|[A-Za-z0-9_-]{254,})={0,2}")
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
SHOWN_CHARACTERS = 200  # of a path, in an error


def file_bytes(source: Any, field: str, limit: int, accepted: str) -> bytes:
    """Bytes as they are; of a file, at most limit + 1, which shows one that is too large. Raises InvalidInput."""
    if isinstance(source, bytes):
        return source
    data = bytearray()
    with opened(source, field, accepted) as file:
        try:
            while len(data) <= limit and (part := file.read(limit + 1 - len(data))):
                data += part
        except (OSError, ValueError) as error:
            raise _unreadable(field, error) from error
    return bytes(data)


@contextmanager
def opened(source: Any, field: str, accepted: str) -> Iterator[BinaryIO]:
    """A file at its start, closed afterwards if it was opened here. One that is open already is read from its start
    too, where it can go back there: a buffer that was just written stands at its end. Raises InvalidInput."""
    if isinstance(source, Mapping):
        source = _file_of_row(source, field, accepted)
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield io.BytesIO(source)
    elif hasattr(source, "read"):
        yield _rewound(source, field)
    elif isinstance(source, (str, os.PathLike)):
        with _opened_path(source, field, accepted) as file:
            yield file
    else:
        raise InvalidInput(field, "wrong_type", f"got {type(source).__name__}; expected {accepted}")


def rereadable(source: Any) -> Any:
    """The same, or what a file gave that can't go back to its start."""
    if hasattr(source, "read") and not (hasattr(source, "seekable") and source.seekable()):
        return source.read()
    return source


def check_size(size: int, field: str, limit: int) -> None:
    """Raises InvalidInput for more bytes than may be sent."""
    if size > limit:
        raise InvalidInput(field, "too_large", f"got more than {limit} bytes; at most {limit} are accepted")


def _file_of_row(row: Mapping[Any, Any], field: str, accepted: str) -> Any:
    """Hugging Face `datasets` gives {"bytes", "path"} of a file that it didn't decode; one of them may be None."""
    for key in ("bytes", "path"):
        if row.get(key) is not None:
            return row[key]
    keys = ", ".join(repr(key) for key in list(row)[:8]) or "nothing"
    raise InvalidInput(field, "wrong_type", f"got a mapping with {keys}; expected {accepted}")


def _rewound(file: Any, field: str) -> BinaryIO:
    try:
        nothing = file.read(0)
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
    except (OSError, ValueError) as error:
        raise _unreadable(field, error) from error
    if not isinstance(nothing, bytes):
        kinds = f"{type(file).__name__}, whose read() gives {type(nothing).__name__}"
        given = "a file in text mode" if isinstance(nothing, str) else kinds
        raise InvalidInput(field, "wrong_type", f"got {given}; expected a binary file, as open(path, 'rb') gives")
    return file  # type: ignore[no-any-return]


def _opened_path(path: str | os.PathLike[str], field: str, accepted: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except (OSError, ValueError) as error:
        told = _no_path(path, accepted) if isinstance(path, str) else None
        if told is not None:
            raise InvalidInput(field, "wrong_type", told) from None
        reason = error.strerror if isinstance(error, OSError) else error
        name = repr(os.fspath(path))[:SHOWN_CHARACTERS]
        raise InvalidInput(field, "unreadable", f"got a path that can't be read ({reason}: {name})") from error


def _unreadable(field: str, error: Exception) -> InvalidInput:
    return InvalidInput(field, "unreadable", f"got a file that can't be read ({error})")


def _no_path(text: str, accepted: str) -> str | None:
    """What a string is that names no file; None for what looks like a path."""
    if text[:5].lower() == "data:":
        return "got a data: URL; expected its bytes: base64.b64decode(url.partition(',')[2])"
    if URL.match(text):
        return f"got a URL; expected {accepted}: fetch it, and give its bytes"
    if BASE64.fullmatch("".join(text.split())):
        return (
            f"got {len(text)} characters that name no file and look like base64; expected bytes: base64.b64decode(text)"
        )
    return None
