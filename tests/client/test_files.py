"""Files as programs hold them: open ones, rows of data sets, and text that only looks like a path."""

from __future__ import annotations

import base64
import io
import tempfile
from pathlib import Path
from typing import Any

import pytest

from cmt_client import InvalidInput
from cmt_client.encode import audio_bytes, image_bytes, text_bytes
from cmt_pipeline.limits import DEFAULT_LIMITS, Limits

CONTENT = bytes(range(256)) * 2


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "face.jpg"
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize("encode", [image_bytes, audio_bytes])
def test_open_files_are_read_from_their_start(encode: Any, path: Path) -> None:
    written = io.BytesIO()
    written.write(CONTENT)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw, tempfile.SpooledTemporaryFile() as spooled:
        spooled.write(CONTENT)
        file.read(7)
        for source in (written, file, raw, spooled):
            for _ in range(2):
                assert encode(source, DEFAULT_LIMITS) == CONTENT


class Pipe(io.RawIOBase):
    """Gives a few bytes at a time, and can't go back."""

    def __init__(self, content: bytes) -> None:
        self._file = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        part = self._file.read(min(100, len(buffer)))
        buffer[: len(part)] = part
        return len(part)


def test_a_pipe_is_read_to_its_end_or_the_limit() -> None:
    assert image_bytes(Pipe(CONTENT), DEFAULT_LIMITS) == CONTENT
    pipe = Pipe(CONTENT)
    with pytest.raises(InvalidInput) as raised:
        image_bytes(pipe, Limits(max_image_bytes=150))
    assert raised.value.code == "too_large"
    assert len(pipe.read()) == len(CONTENT) - 151


@pytest.mark.parametrize("encode", [image_bytes, audio_bytes])
def test_rows_of_data_sets_give_their_file(encode: Any, path: Path) -> None:
    for row in ({"bytes": CONTENT, "path": "x.jpg"}, {"bytes": None, "path": str(path)}, {"path": path}):
        assert encode(row, DEFAULT_LIMITS) == CONTENT


class Upload:
    """As an ASGI framework's, whose read() is a coroutine."""

    def read(self, size: int) -> object:
        return object()


@pytest.mark.parametrize(
    ("source", "code", "told"),
    [
        (io.StringIO("text"), "wrong_type", r"open\(path, 'rb'\)"),
        (io.StringIO(), "wrong_type", r"open\(path, 'rb'\)"),
        (Upload(), "wrong_type", r"whose read\(\) gives object"),
        ({"bytes": None, "path": None}, "wrong_type", "got a mapping with 'bytes', 'path'"),
        ({"pixels": 1}, "wrong_type", "got a mapping with 'pixels'"),
        ({}, "wrong_type", "got a mapping with nothing"),
        (base64.b64encode(CONTENT).decode(), "wrong_type", r"base64\.b64decode\(text\)"),
        (base64.encodebytes(CONTENT).decode(), "wrong_type", r"base64\.b64decode\(text\)"),
        (base64.urlsafe_b64encode(CONTENT * 99).decode(), "wrong_type", r"base64\.b64decode\(text\)"),
        ("data:image/png;base64,iVBORw0KGgo=", "wrong_type", r"url\.partition\(','\)"),
        ("https://example.org/face.jpg", "wrong_type", "fetch it"),
        ("/no-such/" + "folder/" * 40 + "face.jpg", "unreadable", "No such file"),
        ("x" * 5_000 + ".jpg", "unreadable", "File name too long"),
        (7, "wrong_type", "got int"),
    ],
)
def test_what_is_no_file_is_told_what_to_do(source: Any, code: str, told: str) -> None:
    for encode, field in ((image_bytes, "image"), (audio_bytes, "audio")):
        with pytest.raises(InvalidInput, match=told) as raised:
            encode(source, DEFAULT_LIMITS)
        assert (raised.value.field, raised.value.code) == (field, code)
        assert len(str(raised.value)) < 500


def test_a_closed_file_is_unreadable(path: Path) -> None:
    with path.open("rb") as file:
        pass
    with pytest.raises(InvalidInput, match="closed file") as raised:
        image_bytes(file, DEFAULT_LIMITS)
    assert raised.value.code == "unreadable"


def test_a_file_in_text_mode_is_refused(path: Path) -> None:
    with path.open(encoding="latin-1") as file, pytest.raises(InvalidInput, match="text mode"):
        image_bytes(file, DEFAULT_LIMITS)


def test_the_path_of_a_text_is_not_its_text(path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"path\.read_text"):
        text_bytes(path, DEFAULT_LIMITS)
