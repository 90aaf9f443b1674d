"""The log of a child: bounded, kept from one run to the next, and no reason to stop."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmt_server import child_log
from cmt_server.child_log import KEEP_FILES, ChildLog

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="root may mount")


def run(log: ChildLog, code: str) -> None:
    subprocess.run([sys.executable, "-c", code], stdout=log.fd, stderr=log.fd, check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "cmt-test", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no mounts here: {mounted.stderr.decode()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_runs_keep_their_logs_up_to_a_number(tmp_path: Path) -> None:
    log = ChildLog(tmp_path / "work" / "x.log")
    for number in range(KEEP_FILES + 3):
        with log:
            run(log, f"print('run {number}')")
            log.settle()
            assert log.text() == f"run {number}\n"
    names = {path.name for path in (tmp_path / "work").iterdir()}
    assert names == {"x.log", *(f"x.log.{n}" for n in range(1, KEEP_FILES + 1))}
    assert (tmp_path / "work" / "x.log.1").read_text() == f"run {KEEP_FILES + 1}\n"


@pytest.mark.long
def test_a_flood_is_bounded_and_its_end_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_log, "MAX_FILE_BYTES", 100_000)
    with ChildLog(tmp_path / "x.log") as log:
        run(log, "for n in range(200_000): print(f'line {n}')")
        log.settle()
        assert log.text().endswith("line 199999\n")
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) == KEEP_FILES + 1
    assert max(sizes) <= 100_000


def test_lines_are_told_whole(tmp_path: Path) -> None:
    lines: list[str] = []
    with ChildLog(tmp_path / "x.log", lines.append) as log:
        run(log, "import os; [os.write(1, part) for part in (b'a', b'b\\nc', b'\\xff\\n', b'end')]")
        log.settle()
    assert lines == ["ab", "c\N{REPLACEMENT CHARACTER}"]


@ROOT_ONLY
def test_a_full_disk_loses_lines_and_stops_nobody(small_disk: Path) -> None:
    with ChildLog(small_disk / "x.log") as log:
        run(log, "for n in range(100_000): print(f'line {n}')")
        log.settle()
    assert sum(path.stat().st_size for path in small_disk.iterdir()) <= 64 << 10


@ROOT_ONLY
def test_a_log_that_cant_be_written_is_an_error_before_the_child_starts(small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        ChildLog(small_disk / "x.log").__enter__()
