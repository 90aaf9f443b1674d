"""Nothing that comes from a store is believed: what is damaged or made up is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cmt_release.manifest import ReleaseError, digest_of_files
from cmt_release.release import release_numbers
from cmt_release.store import Store, StoreError, blob_path, manifest_path, open_store
from small_releases import make
from stores import damage


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: bytes([data[0] ^ 1]) + data[1:], "has sha256 [0-9a-f]{64}; remove it, then push a release"),
        (lambda data: data[:-1], "has 10 bytes, the manifest says 11; remove it"),
        (lambda data: data + b"x" * 1000, "has 1011 bytes, the manifest says 11"),
        (lambda data: b"", "has 0 bytes, the manifest says 11"),
        (lambda data: None, "is missing; push a release that has it"),
    ],
    ids=["bit", "cut", "longer", "emptied", "missing"],
)
def test_a_damaged_blob_is_refused_and_named(
    change: Callable[[bytes], bytes | None], message: str, local_url: str, here: Path, there: Path
) -> None:
    store = open_store(local_url)
    made = make(here, fuse="damage")
    store.push(made)
    path = blob_path(made.manifest.stages["fuse"].files["model.bin"])
    damage(store, path, change(b"fuse damage"))
    for read in (store.verify, lambda: store.verify(1), lambda: store.pull(there)):
        with pytest.raises(StoreError, match=f"{path} {message}"):
            read()
    assert release_numbers(there) == []
    if "sha256" in message:
        store.objects.delete(path)
    assert store.push(made).sent == (path[-64:],)  # as the message says
    store.verify()
    store.pull(there).verify()


@pytest.mark.long
def test_a_damaged_blob_in_s3_is_refused(s3: str, here: Path, there: Path) -> None:
    store, made = open_store(s3), make(here)
    store.push(made)
    path = blob_path(made.manifest.golden_files["text"])
    for content, message in (
        (b"Well!", "has sha256"),
        (b"Well", "has 4 bytes"),
        (b"", "has 0 bytes"),
        (None, "is missing"),
    ):
        damage(store, path, content)
        with pytest.raises(StoreError, match=f"{path} {message}"):
            store.pull(there)
    assert release_numbers(there) == []


def test_verify_names_all_that_is_wrong(store: Store, here: Path) -> None:
    made = make(here, fuse="a")
    store.push(made)
    store.push(make(here, fuse="b"))
    paths = [blob_path(made.manifest.stages[name].files["model.bin"]) for name in ("fuse", "check")]
    for path in paths:
        store.objects.delete(path)
    damage(store, manifest_path(2), b"{}")
    with pytest.raises(StoreError) as raised:
        store.verify()
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert all(any(name in line for line in lines) for name in (*paths, manifest_path(2)))


def hostile(values: dict[str, Any], path: str) -> None:
    stage = values["stages"]["fuse"]
    stage["files"] |= {path: stage["files"]["model.bin"]}
    stage["digest"] = digest_of_files(stage["files"])


def renumber(values: dict[str, Any], number: int) -> None:
    values["info"]["release"] = number
    for stage in ("preprocess", "check"):
        values["stages"][stage]["version"] = number


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda v: hostile(v, "../../../planted"), r"'\.\./\.\./\.\./planted', which leaves its folder"),
        (lambda v: hostile(v, "/tmp/planted"), "'/tmp/planted', which is absolute"),
        (lambda v: v["stages"]["fuse"]["files"].update(new="0" * 64), "stage fuse has the digest"),
        (lambda v: renumber(v, 9), "is the manifest of release 9"),
        (lambda v: v.update(stages=None), "manifest.stages: got None; expected an object"),
        (lambda v: v["sizes"].update(dict.fromkeys(v["sizes"], 1 << 62)), "the manifest says 4611686018427387904"),
        (b"[" * 100_000, "nested too deeply"),
        (b"", "Expecting value"),
        (b" " * (5 << 20), "has more than 4,194,304 bytes"),
    ],
    ids=["parent", "absolute", "digest", "number", "types", "sizes", "deep", "empty", "huge"],
)
def test_a_hostile_manifest_is_refused(
    content: Callable[[dict[str, Any]], object] | bytes, message: str, local_url: str, here: Path, there: Path
) -> None:
    store = open_store(local_url)
    store.push(make(here))
    if not isinstance(content, bytes):
        values = json.loads(store.show().to_json())
        content(values)
        content = json.dumps(values).encode()
    damage(store, manifest_path(1), content)
    with pytest.raises(ReleaseError, match=message):
        store.pull(there)
    with pytest.raises(ReleaseError, match=message):
        store.verify()
    assert [path for path in there.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("what", ["manifest", "blob", "folder of blobs"])
def test_links_in_a_store_are_refused(what: str, store: Store, here: Path, there: Path, tmp_path: Path) -> None:
    made = make(here)
    store.push(made)
    path = manifest_path(1) if what == "manifest" else blob_path(made.manifest.golden_files["text"])
    place = tmp_path / "store" / path
    place = place.parent if what == "folder of blobs" else place
    place.rename(tmp_path / "elsewhere")
    place.symlink_to(tmp_path / "elsewhere")
    for read in (store.verify, lambda: store.pull(there)):
        with pytest.raises(StoreError, match=f"{path} is a symlink or lies behind one"):
            read()


@pytest.mark.long
def test_other_files_in_a_store_are_passed_over(url: str, here: Path) -> None:
    store = open_store(url)
    store.push(make(here))
    for name in ("releases/latest.json", "releases/02.json", "releases/2.json.tmp", "releases/more/3.json", "README"):
        store.objects.create(name, b"{}")
    assert store.numbers() == [1]
    store.verify()
