"""`cmt perf-input`: its file, decoded; tests/perf/bench/test_bench.py gives one to the real perf_analyzer."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cmt_cli.export import sample
from cmt_cli.main import app
from cmt_client import InvalidInput

IMAGE, AUDIO = sample("image"), sample("audio")


def written(tmp_path: Path, *arguments: object) -> list[dict[str, bytes]]:
    """What the file says, one mapping a request: name of the input -> its bytes."""
    file = tmp_path / "requests.json"
    ran = CliRunner().invoke(app, ["perf-input", str(file), *map(str, arguments)], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return [
        {name: element(tensor) for name, tensor in request.items()} for request in json.loads(file.read_text())["data"]
    ]


def element(tensor: dict[str, dict[str, str] | list[int]]) -> bytes:
    """The one element of a BYTES tensor: its length in 4 bytes, little-endian, then itself."""
    assert tensor["shape"] == [1]
    content = tensor["content"]
    assert isinstance(content, dict)
    data = base64.b64decode(content["b64"], validate=True)
    (length,) = struct.unpack_from("<I", data)
    assert len(data) == 4 + length
    return data[4:]


def test_requests_hold_the_files_and_texts(tmp_path: Path) -> None:
    requests = written(tmp_path, "--image", IMAGE, "--audio", AUDIO, "--text", "a", "--text", "b\0")
    both = {"image": IMAGE.read_bytes(), "audio": AUDIO.read_bytes()}
    assert requests == [both | {"text": b"a"}, both | {"text": b"b\0"}]


def test_one_modality_alone_and_a_file_of_texts(tmp_path: Path) -> None:
    lines = tmp_path / "texts.txt"
    lines.write_text("Sch\N{LATIN SMALL LETTER O WITH DIAERESIS}n!\n\nOh\u2028no.\n", encoding="utf-8")
    assert written(tmp_path, "--text-file", lines) == [
        {"text": "Sch\u00f6n!".encode()},
        {"text": "Oh\u2028no.".encode()},
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "got no input"),
        (["--text", "a", "--text", "b", "--image", "1", "--image", "2", "--image", "3"], "3 of image, 2 of text"),
    ],
)
def test_lists_that_do_not_match_are_refused(tmp_path: Path, arguments: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        written(tmp_path, *arguments)


def test_what_the_client_would_not_send_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="can't be read"):
        written(tmp_path, "--image", tmp_path / "nowhere.jpg")
    assert not (tmp_path / "requests.json").exists()
