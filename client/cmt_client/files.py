"""Files as a program holds them -> their bytes: paths, open files, and rows of a data set."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from cmt_client.errors import InvalidInput

#: Either alphabet, and longer than a path without a dot is.
BASE64 = re.compile(r"([A-Za-z0-9+/]{254,}|[A-Za-z0-9_-]{254,})={0,2}")
URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
SHOWN_CHARACTERS = 200  # of a path, in an error


def file_bytes(source: Any, field: str, limit: int, accepted: str) -> bytes:
    """Bytes as they are; of a file, at most limit + 1, which shows one that is too large. Raises InvalidInput."""
    if isinstance(source, Mapping):
        source = _file_of_row(source, field, accepted)
    if isinstance(source, bytes):
        return source
    if isinstance(source, (bytearray, memoryview)):
        return bytes(source)
    if hasattr(source, "read"):
        return _from_open_file(source, field, limit)
    if isinstance(source, (str, os.PathLike)):
        return _from_path(source, field, limit, accepted)
    raise InvalidInput(field, "wrong_type", f"got {type(source).__name__}; expected {accepted}")


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


def _from_open_file(file: Any, field: str, limit: int) -> bytes:
    """From its start, where it can go back there: a buffer that was just written stands at its end."""
    data = bytearray()
    try:
        if hasattr(file, "seekable") and file.seekable():
            file.seek(0)
        while len(data) <= limit:
            part = file.read(limit + 1 - len(data))
            if not isinstance(part, (bytes, bytearray)):
                raise InvalidInput(field, "wrong_type", _no_bytes(file, part))
            if not part:
                break
            data += part
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(field, "unreadable", f"got a file that can't be read ({error})") from error
    return bytes(data)


def _no_bytes(file: Any, part: Any) -> str:
    if isinstance(part, str):
        return "got a file in text mode; expected a binary one, as open(path, 'rb') gives"
    kinds = f"{type(file).__name__}, whose read() gives {type(part).__name__}"
    return f"got {kinds}; expected a binary file, as open(path, 'rb') gives"


def _from_path(path: str | os.PathLike[str], field: str, limit: int, accepted: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(limit + 1)
    except (OSError, ValueError) as error:
        told = _no_path(path, accepted) if isinstance(path, str) else None
        if told is not None:
            raise InvalidInput(field, "wrong_type", told) from None
        reason = error.strerror if isinstance(error, OSError) else error
        name = repr(os.fspath(path))[:SHOWN_CHARACTERS]
        raise InvalidInput(field, "unreadable", f"got a path that can't be read ({reason}: {name})") from error


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
