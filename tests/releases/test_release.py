"""Releases: numbered, whole or not there at all, sharing what they have in common, and checked before use."""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cmt_engine.engine import sha256_of
from cmt_pipeline.stages import STAGES
from cmt_release import release as release_module
from cmt_release.manifest import Tensor, digest_of_files
from cmt_release.release import (
    MANIFEST_FILE,
    Manifest,
    Release,
    ReleaseError,
    draft_folder,
    find_release,
    newest_release,
    open_release,
    release_from_engines,
    release_numbers,
)
from small_releases import (
    FILES_OF_A_STAGE,
    GOLDEN,
    GOLDEN_FILES,
    INFO,
    make,
    release_draft,
    rewrite,
    write_golden,
    write_stages,
)


def versions(release: Release) -> dict[str, int]:
    return {name: stage.version for name, stage in release.manifest.stages.items()}


def inode(release: Release, stage: str) -> int:
    return (release.stage_folder(stage) / "model.bin").stat().st_ino


def names(store: Path) -> list[str]:
    return sorted(path.name for path in store.iterdir())


def test_releases_are_numbered_in_order(tmp_path: Path) -> None:
    assert release_numbers(tmp_path / "none yet") == []
    for number in range(1, 12):
        assert make(tmp_path, fuse=str(number)).number == number
    assert release_numbers(tmp_path) == list(range(1, 12))
    assert open_release(tmp_path).number == 11
    assert open_release(tmp_path, 2).number == 2


def test_the_newest_in_a_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, precision in enumerate(("int8", "fp32", "int8", "fp32")):
        monkeypatch.setattr("small_releases.INFO", replace(INFO, precision=precision))
        make(tmp_path, fuse=str(number))
    assert newest_release(tmp_path, "int8").number == 3
    assert newest_release(tmp_path, "fp32").number == 4
    with pytest.raises(ReleaseError, match=r"no release in bf16 \(it has: fp32, int8\); make one with"):
        newest_release(tmp_path, "bf16")


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
        assert stage.files.keys() == FILES_OF_A_STAGE
        assert (made.folder / "stages" / name) == made.stage_folder(name)
    assert Manifest.from_json(made.manifest.to_json()) == made.manifest


def test_golden_files_travel_with_a_release(tmp_path: Path) -> None:
    release = make(tmp_path)
    assert release.golden_files() == GOLDEN_FILES
    rewrite(release.folder / "golden" / "text", b"Well!")
    for read in (release.golden_files, release.verify):
        with pytest.raises(ReleaseError, match=f"release 1: {release.folder}/golden/text has sha256"):
            read()


def test_a_release_without_golden_files_has_none(tmp_path: Path) -> None:
    with draft_folder(tmp_path) as draft:
        write_stages(draft, {})
        release = release_from_engines(
            tmp_path, draft, INFO, parity=[], golden=[], golden_tolerance=0.02, preprocess="", versions={}, recipe=""
        )
    release.verify()
    assert open_release(tmp_path).golden_files() == {}


def test_the_digest_is_that_of_the_manifest_file(tmp_path: Path) -> None:
    first, second = make(tmp_path), make(tmp_path)
    for release in (first, second):
        assert release.digest == sha256_of(release.folder / MANIFEST_FILE)
    assert first.digest != second.digest


def test_tensors_have_the_label_count(tmp_path: Path) -> None:
    tensors = make(tmp_path).manifest.tensors
    assert tensors.keys() == STAGES.keys()
    assert tensors["fuse"].outputs["logits"] == Tensor("FP32", (2,))
    assert tensors["encode_audio"].inputs == {
        "input_values": Tensor("FP32", (-1,)),
        "num_samples": Tensor("INT64", (1,)),
    }


#: Each release has its own of the stages that say which release answers.
STAMPED_2 = {"preprocess": 2, "check": 2}


def test_unchanged_stages_are_shared(tmp_path: Path) -> None:
    first = make(tmp_path, fuse="a", encode_text="a")
    second = make(tmp_path, fuse="b", encode_text="a")
    assert versions(first) == dict.fromkeys(STAGES, 1)
    assert versions(second) == dict.fromkeys(STAGES, 1) | STAMPED_2 | {"fuse": 2}
    for name in STAGES:
        assert (inode(first, name) == inode(second, name)) == (name != "fuse")
    third = make(tmp_path, fuse="a", encode_text="c")  # back to what the first release had
    assert versions(third) == dict.fromkeys(STAGES, 1) | {"preprocess": 3, "check": 3, "encode_text": 3}
    assert inode(third, "fuse") == inode(first, "fuse")
    for release in (first, second, third):
        release.verify()


def test_without_hard_links_each_release_has_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    first, second = make(tmp_path), make(tmp_path, fuse="b")
    assert versions(second) == dict.fromkeys(STAGES, 1) | STAMPED_2 | {"fuse": 2}
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


def add_symlink(release: Release) -> None:
    (release.stage_folder("fuse") / "link").symlink_to("/etc/hosts")


def link_a_stage(release: Release) -> None:
    """The right files, but behind a link."""
    release.stage_folder("fuse").rename(release.folder.parent / "elsewhere")
    release.stage_folder("fuse").symlink_to(release.folder.parent / "elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r.folder / "stages" / "encode_video").mkdir(), "the folder .*/1/stages/encode_video is none of"),
        (lambda r: (r.folder / "stages" / "notes").write_text(""), "1/stages/notes has sha256 .* says None"),
        (lambda r: (r.folder / "extra").write_text(""), "1/extra has sha256 .* says None"),
        (lambda r: os.mkfifo(r.folder / "stages" / "pipe"), "1/stages/pipe is a special file"),
        (add_symlink, "fuse/link is a symlink"),
        (link_a_stage, "1/stages/fuse is a symlink"),
    ],
    ids=["folder", "file beside stages", "file beside manifest", "pipe", "link", "stage behind a link"],
)
def test_what_the_manifest_doesnt_name_is_found(
    damage: Callable[[Release], object], message: str, tmp_path: Path
) -> None:
    release = make(tmp_path)
    damage(release)
    with pytest.raises(ReleaseError, match=message):
        open_release(tmp_path).verify()


SHA = "0" * 64


def with_file(values: dict[str, Any], path: str, sha256: str = SHA) -> None:
    """Adds a file to a stage, with all digests right."""
    stage = values["stages"]["fuse"]
    stage["files"][path] = sha256
    stage["digest"] = digest_of_files(stage["files"])
    values["sizes"][sha256] = 1


def without(values: dict[str, Any], *path: str) -> None:
    *parents, last = path
    del functools.reduce(dict.__getitem__, parents, values)[last]


def put(values: dict[str, Any], value: object, *path: str) -> None:
    *parents, last = path
    functools.reduce(dict.__getitem__, parents, values)[last] = value


def renumber(values: dict[str, Any]) -> None:
    for path in (("info", "release"), ("stages", "preprocess", "version"), ("stages", "check", "version")):
        put(values, 9, *path)


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "parent": (lambda v: with_file(v, "../../../../etc/cron.d/x"), r"'\.\./.*', which leaves its folder"),
    "parent inside": (lambda v: with_file(v, "a/../b"), "'a/../b', which leaves its folder"),
    "absolute": (lambda v: with_file(v, "/etc/passwd"), "'/etc/passwd', which is absolute"),
    "empty path": (lambda v: with_file(v, ""), "which leaves its folder or names a folder"),
    "backslash": (lambda v: with_file(v, "a\\b"), "which has a backslash"),
    "long path": (lambda v: with_file(v, "a" * 600), "longer than 512"),
    "file in a file": (lambda v: with_file(v, "model.bin/x"), "'model.bin' both as a file and as a folder"),
    "no sha256": (lambda v: with_file(v, "x", "../../x"), "expected a sha256"),
    "digest": (lambda v: put(v, SHA, "stages", "fuse", "digest"), "stage fuse has the digest 000.*; its files give"),
    "unknown stage": (lambda v: put(v, v["stages"]["fuse"], "stages", "../up"), "stages are unknown or missing: ../up"),
    "stage missing": (lambda v: without(v, "stages", "fuse"), "stages are unknown or missing: fuse"),
    "tensors missing": (lambda v: without(v, "tensors", "fuse"), "tensors are unknown or missing: fuse"),
    "size missing": (lambda v: v["sizes"].popitem(), "sizes are unknown or missing"),
    "size below zero": (lambda v: put(v, -1, "sizes", next(iter(v["sizes"]))), "negative"),
    "golden path": (lambda v: put(v, SHA, "golden_files", "../x"), "golden_files names ../x"),
    "golden file missing": (lambda v: without(v, "golden_files", "text"), "sizes are unknown|golden has answers"),
    "field missing": (lambda v: without(v, "recipe"), "manifest lacks recipe"),
    "field unknown": (lambda v: put(v, 1, "surprise"), "manifest has unknown fields: 'surprise'"),
    "no list": (lambda v: put(v, "joy", "info", "labels"), "manifest.info.labels: got 'joy'; expected a list"),
    "no object": (lambda v: put(v, [], "stages"), r"manifest.stages: got \[\]; expected an object"),
    "no number": (lambda v: put(v, "1", "stages", "fuse", "version"), "fuse.version: got '1'; expected int"),
    "truth is no number": (lambda v: put(v, True, "info", "release"), "info.release: got True; expected int"),
    "null": (lambda v: put(v, None, "recipe"), "manifest.recipe: got None; expected str"),
    "endless": (lambda v: put(v, float("inf"), "golden_tolerance"), "got Infinity"),
    "huge number": (lambda v: put(v, 1 << 80, "info", "release"), "a very large integer"),
    "terminal codes": (lambda v: put(v, "\x1b[2J", "info", "preset"), "expected printable characters"),
    "release 0": (lambda v: put(v, 0, "info", "release"), "release: got 0"),
    "another's number": (renumber, "holds the manifest of release 9"),
    "another's stamp": (
        lambda v: put(v, 9, "info", "release"),
        "has version 1; expected 9, as it says",
    ),
    "stage of the future": (lambda v: put(v, 2, "stages", "fuse", "version"), "version 2; expected 1 to 1"),
    "modality": (lambda v: put(v["golden"][0], ["smell"], "modalities"), "expected one of image, audio, text"),
}


@pytest.mark.parametrize(("change", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_manifest_is_refused_by_name(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = make(tmp_path).folder / MANIFEST_FILE
    values = json.loads(path.read_text())
    change(values)
    rewrite(path, json.dumps(values).encode())
    with pytest.raises(ReleaseError, match=f"{tmp_path}/1.*{message}"):
        open_release(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[1]", "it is no JSON object"),
        (b"\xff\xfe", "is no manifest"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"format": ' + b"9" * 5000 + b"}", "limit|format"),
        (b" " * ((4 << 20) + 1), "more than 4,194,304 bytes"),
    ],
    ids=["empty", "cut", "list", "bytes", "deep", "digits", "huge"],
)
def test_what_is_no_manifest_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = make(tmp_path).folder / MANIFEST_FILE
    rewrite(path, content)
    with pytest.raises(ReleaseError, match=f"{path}.*({message})"):
        open_release(tmp_path)


def test_a_manifest_behind_a_link_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path).folder / MANIFEST_FILE
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ReleaseError, match=f"{path} is no plain file"):
        open_release(tmp_path)


def test_an_export_goes_on_beside_releases_that_cant_be_read(tmp_path: Path) -> None:
    rewrite(make(tmp_path).folder / MANIFEST_FILE, b'{"format": 1}')
    assert find_release(tmp_path, "recipe") is None
    assert make(tmp_path).number == 2
    assert find_release(tmp_path, "recipe") == open_release(tmp_path, 2)


def test_a_damaged_file_is_not_shared(tmp_path: Path) -> None:
    rewrite(make(tmp_path).stage_folder("fuse") / "model.bin", b"damaged")
    second = make(tmp_path)
    second.verify()
    assert versions(second) == dict.fromkeys(STAGES, 1) | STAMPED_2


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
from cmt_release import release as release_module
from small_releases import draft_folder, make, release_draft, write_stages
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
    paths = [path for path in sys.path if path]
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
    assert names(tmp_path) == ["1", "2"]  # the draft of the dead is gone


def test_a_draft_in_use_is_left_alone(tmp_path: Path) -> None:
    with draft_folder(tmp_path) as draft:
        write_stages(draft, {"fuse": "slow"})
        assert make(tmp_path, fuse="quick").number == 1
        write_golden(draft)
        assert release_draft(tmp_path, draft).number == 2
    assert names(tmp_path) == ["1", "2"]


@pytest.mark.long
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
    with pytest.raises(ReleaseError, match=f"got release 7; {tmp_path} holds 1, 2"):
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
    rewrite(path, json.dumps(values | {"format": 1}).encode())
    with pytest.raises(ReleaseError, match=f"{path}: got a manifest of format 1; this version reads format 3: export"):
        open_release(tmp_path)
