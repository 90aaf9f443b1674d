"""What several processes want at the same time is made once, by one of them; a killed one's half is made anew."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from cmt_release.locks import make_once

FORK = multiprocessing.get_context("fork")
SECONDS = 20.0


def maker(path: Path, made: Path, slow: float) -> BaseProcess:
    """A process that wants the folder, and says so in `made` where it makes it."""

    def make(draft: Path) -> None:
        made.mkdir(exist_ok=True)
        (made / str(os.getpid())).touch()
        draft.mkdir()
        (draft / "a").write_text("first")
        time.sleep(slow)
        (draft / "b").write_text("second")

    process = FORK.Process(target=make_once, args=(path, make))
    process.start()
    return process


def wait_until_begun(made: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not made.is_dir() or not [*made.iterdir()]:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_one_makes_it_and_the_others_find_it(tmp_path: Path) -> None:
    path, made = tmp_path / "cache" / "folder", tmp_path / "made"
    several = [maker(path, made, slow=0.3) for _ in range(4)]
    for process in several:
        process.join(SECONDS)
        assert process.exitcode == 0
    assert len([*made.iterdir()]) == 1
    assert {file.name: file.read_text() for file in path.iterdir()} == {"a": "first", "b": "second"}
    assert sorted(each.name for each in path.parent.iterdir()) == ["folder"]


def test_what_a_killed_one_began_is_made_anew_by_the_one_that_waits(tmp_path: Path) -> None:
    path, made = tmp_path / "folder", tmp_path / "made"
    first = maker(path, made, slow=SECONDS)
    wait_until_begun(made)
    second = maker(path, made, slow=0)
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    for process in (first, second):
        process.join(SECONDS)
    assert second.exitcode == 0
    assert len([*made.iterdir()]) == 2
    assert {file.name for file in path.iterdir()} == {"a", "b"}


def test_a_failure_leaves_nothing_and_a_file_is_made_too(tmp_path: Path) -> None:
    def fail(draft: Path) -> None:
        draft.write_text("half")
        raise ValueError("no")

    path = tmp_path / "file.npz"
    with pytest.raises(ValueError, match="no"):
        make_once(path, fail)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make_once(path, lambda _: (tmp_path / "nowhere").unlink())
    assert not [*tmp_path.iterdir()]
    make_once(path, Path.touch)
    make_once(path, fail)
    assert path.is_file()
