"""Releases: numbered, whole or not there at all, sharing what they have in common, and checked before use."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmt_export import release as release_module
from cmt_export.release import (
    MANIFEST_FILE,
    GoldenAnswer,
    Manifest,
    Release,
    ReleaseError,
    draft_folder,
    find_release,
    open_release,
    release_from_engines,
    release_numbers,
)
from cmt_pipeline.release_info import ReleaseInfo
from cmt_pipeline.stages import STAGES

INFO = ReleaseInfo(0, "meld", ("joy", "anger"), "mini", "openvino", "fp32", trained=False)
GOLDEN = GoldenAnswer(("image", "text"), {"joy": 0.25, "anger": 0.75}, valence=-0.5, arousal=0.5)


def write_stages(draft: Path, contents: Mapping[str, str]) -> None:
    """Two files a stage, one of them in a folder; a stage that isn't named has the same content every time."""
    for name in STAGES:
        folder = draft / "stages" / name
        (folder / "more").mkdir(parents=True)
        (folder / "model.bin").write_text(f"{name} {contents.get(name, '')}")
        (folder / "more" / "labels.txt").write_text("joy\nanger\n")


def release_draft(store: Path, draft: Path, recipe: str = "recipe") -> Release:
    parity = [{"what": "fuse", "error": 1e-7}]
    return release_from_engines(
        store, draft, INFO, parity=parity, golden=[GOLDEN], versions={"torch": "2"}, recipe=recipe
    )


def make(store: Path, recipe: str = "recipe", **contents: str) -> Release:
    with draft_folder(store) as draft:
        write_stages(draft, contents)
        return release_draft(store, draft, recipe)


def versions(release: Release) -> dict[str, int]:
    return {name: stage.version for name, stage in release.manifest.stages.items()}


def inode(release: Release, stage: str) -> int:
    return (release.stage_folder(stage) / "model.bin").stat().st_ino


def rewrite(path: Path, content: bytes) -> None:
    """As a disk or a person would, past the read-only flag."""
    path.chmod(0o644)
    path.write_bytes(content)


def names(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


def test_releases_are_numbered_in_order(tmp_path: Path) -> None:
    assert release_numbers(tmp_path / "none yet") == []
    for number in range(1, 12):
        assert make(tmp_path, fuse=str(number)).number == number
    assert release_numbers(tmp_path) == list(range(1, 12))
    assert open_release(tmp_path).number == 11
    assert open_release(tmp_path, 2).number == 2


def test_a_number_is_not_given_twice_when_old_releases_go(tmp_path: Path) -> None:
    for content in "abc":
        make(tmp_path, fuse=content)
    for path in sorted((tmp_path / "1").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "1").rmdir()
    assert make(tmp_path, fuse="d").number == 4


def test_a_manifest_says_all_and_is_read_back(tmp_path: Path) -> None:
    made = make(tmp_path, "how")
    assert open_release(tmp_path, 1) == made
    assert made.manifest.info == replace(INFO, release=1)
    assert (made.manifest.golden, made.manifest.recipe) == ([GOLDEN], "how")
    assert made.manifest.stages.keys() == STAGES.keys()
    for name, stage in made.manifest.stages.items():
        assert stage.files.keys() == {"model.bin", "more/labels.txt"}
        assert (made.folder / "stages" / name) == made.stage_folder(name)
    assert Manifest.from_json(made.manifest.to_json()) == made.manifest


def test_unchanged_stages_are_shared(tmp_path: Path) -> None:
    first = make(tmp_path, fuse="a", encode_text="a")
    second = make(tmp_path, fuse="b", encode_text="a")
    assert versions(first) == dict.fromkeys(STAGES, 1)
    assert versions(second) == dict.fromkeys(STAGES, 1) | {"fuse": 2}
    for name in STAGES:
        assert (inode(first, name) == inode(second, name)) == (name != "fuse")
    third = make(tmp_path, fuse="a", encode_text="c")  # back to what the first release had
    assert versions(third) == dict.fromkeys(STAGES, 1) | {"encode_text": 3}
    assert inode(third, "fuse") == inode(first, "fuse")
    for release in (first, second, third):
        release.verify()


def test_without_hard_links_each_release_has_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    first, second = make(tmp_path), make(tmp_path, fuse="b")
    assert versions(second) == dict.fromkeys(STAGES, 1) | {"fuse": 2}
    assert inode(first, "check") != inode(second, "check")
    second.verify()
    assert not list(tmp_path.rglob("*.shared"))


def test_files_cant_be_changed_by_mistake(tmp_path: Path) -> None:
    release = make(tmp_path)
    for path in release.folder.rglob("*"):
        assert path.is_dir() or path.stat().st_mode & 0o777 == 0o444


def flip_a_bit(release: Release) -> None:
    path = release.stage_folder("encode_audio") / "model.bin"
    data = path.read_bytes()
    rewrite(path, bytes([data[0] ^ 1]) + data[1:])


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (flip_a_bit, "encode_audio/model.bin"),
        (lambda r: rewrite(r.stage_folder("fuse") / "model.bin", b""), "fuse/model.bin"),
        (lambda r: (r.stage_folder("check") / "more/labels.txt").unlink(), "check/more/labels.txt"),
        (lambda r: (r.stage_folder("check") / "more/extra").write_text(""), "check/more/extra"),
        (lambda r: r.stage_folder("fuse").rename(r.folder / "gone"), "fuse/model.bin"),
    ],
    ids=["bit", "emptied", "missing", "extra", "stage missing"],
)
def test_damage_is_found_and_named(damage: Callable[[Release], object], file: str, tmp_path: Path) -> None:
    release = make(tmp_path)
    release.verify()
    damage(release)
    with pytest.raises(
        ReleaseError, match=f"release 1: {tmp_path}/1/stages/{file} has sha256.*export the release again"
    ):
        open_release(tmp_path).verify()


def test_a_draft_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def fail_halfway() -> None:
        with draft_folder(tmp_path) as draft:
            write_stages(draft, {})
            raise Stopped

    with pytest.raises(Stopped):
        fail_halfway()
    assert names(tmp_path) == []


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from test_release import draft_folder, make, release_draft, release_module, write_stages
store, how = Path(sys.argv[1]), sys.argv[2]
if how == "draft":
    with draft_folder(store) as draft:
        write_stages(draft, {})
        os.kill(os.getpid(), signal.SIGKILL)
elif how == "manifest":
    release_module._make_durable = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
    make(store)
else:
    while time.time() < float(how):
        pass
    try:
        print(make(store, fuse=str(os.getpid())).number)
    except release_module.ReleaseError as error:
        print(error, file=sys.stderr)
"""


def run(store: Path, how: str) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parent), *(path for path in sys.path if path)]
    program = f"import sys; sys.path[:0] = {paths}\n{PROGRAM}"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(store), how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("moment", ["draft", "manifest"])
def test_a_killed_export_leaves_no_release(moment: str, tmp_path: Path) -> None:
    make(tmp_path, fuse="earlier")
    killed = run(tmp_path, moment)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".draft-*"))) == 1  # it was in the middle of it
    assert release_numbers(tmp_path) == [1]
    assert find_release(tmp_path, "recipe") == open_release(tmp_path, 1)
    assert make(tmp_path, fuse="later").number == 2


def test_of_writers_at_once_each_makes_a_release_or_is_told(tmp_path: Path) -> None:
    start = str(time.time() + 1.5)
    writers = [run(tmp_path, start) for _ in range(4)]
    results = [writer.communicate() for writer in writers]
    made = sorted(int(out) for out, _ in results if out)
    assert made == release_numbers(tmp_path) == list(range(1, len(made) + 1))
    assert made
    for out, err in results:
        assert out or "was made by somebody else meanwhile" in err
    for number in made:
        open_release(tmp_path, number).verify()
    assert names(tmp_path) == [str(number) for number in made]


def test_a_number_that_was_taken_meanwhile_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(tmp_path, fuse="first")
    monkeypatch.setattr(release_module, "release_numbers", lambda store: [])
    with pytest.raises(ReleaseError, match=r"release 1 was made by somebody else meanwhile .*; export again"):
        make(tmp_path, fuse="second")
    monkeypatch.undo()
    assert names(tmp_path) == ["1"]
    assert open_release(tmp_path) == first
    first.verify()


def test_a_release_is_found_by_its_recipe(tmp_path: Path) -> None:
    assert find_release(tmp_path / "none", "a") is None
    for recipe, content in (("a", "1"), ("b", "2"), ("a", "3")):
        make(tmp_path, recipe, fuse=content)
    found = [find_release(tmp_path, recipe) for recipe in "abc"]
    assert [release and release.number for release in found] == [3, 2, None]
    rewrite(tmp_path / "3/stages/fuse/model.bin", b"damaged")
    assert find_release(tmp_path, "a") == open_release(tmp_path, 1)


def test_what_isnt_there_is_told_with_what_is(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=f"{tmp_path} holds no release; make one with `cmt export`"):
        open_release(tmp_path)
    make(tmp_path)
    make(tmp_path, fuse="b")
    with pytest.raises(ReleaseError, match=f"release 7 came; {tmp_path} holds 1, 2"):
        open_release(tmp_path, 7)


def test_folders_that_are_no_releases_are_passed_over(tmp_path: Path) -> None:
    make(tmp_path)
    for name in (".draft-1", "notes", "17"):  # 17: a number, but no manifest
        (tmp_path / name).mkdir()
    assert release_numbers(tmp_path) == [1]


def test_a_format_of_another_version_is_refused(tmp_path: Path) -> None:
    release = make(tmp_path)
    path = release.folder / MANIFEST_FILE
    values = json.loads(path.read_text())
    rewrite(path, json.dumps(values | {"format": 2}).encode())
    with pytest.raises(ReleaseError, match="a manifest of format 2 came; this version reads format 1"):
        open_release(tmp_path)
