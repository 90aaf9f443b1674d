"""`cmt predict` of long sound and of folders, on the real server: killed in the middle, and started again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import soundfile
from typer.testing import CliRunner

from cmt_cli.export import sample
from cmt_cli.main import app
from cmt_client import EmotionClient
from cmt_server.server import TritonServer

SOON_S = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "items"
    folder.mkdir()
    shutil.copy(sample("image"), folder / "a.jpg")
    shutil.copy(sample("audio"), folder / "a.wav")
    for name in "abcdxyz":
        (folder / f"{name}.txt").write_text(f"Text {name}, well done!\n")
    return folder


def command(server: TritonServer, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "cmt_cli.main", "predict", *map(str, arguments), "--url", server.grpc_url]


def run(server: TritonServer, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(server, *arguments), capture_output=True, text=True, timeout=120)


@contextlib.contextmanager
def running(server: TritonServer, *arguments: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command(server, *arguments), stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


def wait_for_rows(output: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + SOON_S
    while not output.exists() or len(output.read_bytes().splitlines()) < count:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
def test_a_folder_is_answered_however_often_it_is_killed(server: TritonServer, folder: Path, tmp_path: Path) -> None:
    output, stuck = tmp_path / "answers.jsonl", folder / "m.txt"
    os.mkfifo(stuck)  # nobody writes: the run can't come past it
    with running(server, "--folder", folder, "--output", output, "--concurrency", "1") as process:
        wait_for_rows(output, 4, process)
        process.send_signal(signal.SIGKILL)
    before = output.read_bytes()
    assert [row["item"] for row in rows(output)] == ["a", "b", "c", "d"]
    output.write_bytes(before + before[:30])
    stuck.unlink()
    stuck.write_bytes(b"\xff")
    done = run(server, "--folder", folder, "--output", output)
    assert done.returncode == 2, done.stderr
    assert "8 items: 3 answered, 4 before, failed: 1 text.not_utf8" in done.stdout
    assert "100 % of 8 items" in done.stderr
    assert output.read_bytes().startswith(before)
    found = {row["item"]: row for row in rows(output)}
    assert list(found) == ["a", "b", "c", "d", "m", "x", "y", "z"]
    with EmotionClient(server.grpc_url) as client:
        for row in (row for row in found.values() if row["error"] is None):
            given = {m: folder / row[m] for m in ("image", "audio") if row[m]}
            truth = client.predict(**given, text=(folder / row["text"]).read_text().strip())
            assert row["probabilities"] == pytest.approx(truth.probabilities, abs=1e-5)
            assert (row["label"], row["digest"]) == (truth.label, truth.digest)


def test_a_folder_is_answered_as_parquet(server: TritonServer, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers.parquet"
    done = run(server, "--folder", folder, "--output", output, "--window-s", "0.5")
    assert done.returncode == 0, done.stderr
    found = pyarrow.parquet.read_table(output).to_pylist(maps_as_pydicts="strict")
    assert [row["item"] for row in found] == list("abcdxyz")
    assert len(found[0]["windows"]) > 1
    assert rows(tmp_path / "answers.parquet.jsonl")[0]["probabilities"] == found[0]["probabilities"]


@pytest.mark.long
def test_a_long_sound_is_shown_with_its_windows(server: TritonServer, tmp_path: Path) -> None:
    samples, rate = soundfile.read(sample("audio"), dtype="int16")
    soundfile.write(tmp_path / "long.wav", np.resize(samples, 20 * rate), rate)
    told = run(server, "--audio", tmp_path / "long.wav", "--json")
    assert told.returncode == 0, told.stderr
    answer = json.loads(told.stdout)
    assert [(w["start_s"], w["end_s"]) for w in answer["windows"]] == [(0, 10), (10, 20)]
    assert answer["probabilities"]["joy"] == pytest.approx(
        np.mean([w["probabilities"]["joy"] for w in answer["windows"]])
    )
    shown = run(server, "--audio", tmp_path / "long.wav")
    assert "Windows" in shown.stdout
    assert "20.00" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--folder", "x"], "got one of --folder and --output"),
        (["--output", "x.jsonl", "--text", "x"], "got one of --folder and --output"),
        (["--folder", "x", "--output", "y.jsonl", "--text", "x"], "expected either"),
        (["--folder", "x", "--output", "y.csv"], "expected a .jsonl or .parquet file"),
        (["--folder", "no-such", "--output", "no-such/y.jsonl"], "expected a folder"),
        (["--folder", "x", "--output", "y.jsonl", "--concurrency", "0"], "expected 1 or more"),
    ],
)
def test_options_that_do_not_go_together_are_told(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["predict", *arguments, "--url", "grpc://127.0.0.1:1"])
    assert isinstance(done.exception, ValueError)
    assert told in str(done.exception)
