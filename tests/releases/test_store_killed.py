"""A store after a push or a pull was killed, and with several at once: whole releases or none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cmt_release.manifest import Manifest, ReleaseError
from cmt_release.prune import Selection, prune_store
from cmt_release.release import open_release, release_numbers
from cmt_release.store import Store, blob_path, manifest_path, open_store
from small_releases import BLOBS, make
from stores import killed, run


@pytest.mark.long
@pytest.mark.parametrize(
    "moment",
    [
        "at once",
        "after some blobs",
        "within a blob",
        "before a blob has its name",
        "before the manifest",
        "before the manifest has its name",
    ],
)
def test_a_killed_push_leaves_nothing_visible(moment: str, store: Store, here: Path, there: Path) -> None:
    store.push(make(here, fuse="earlier"))
    made = make(here, **dict.fromkeys(["fuse", "check", "preprocess", "encode_text", "encode_audio"], "later"))
    killed("push", moment, store.url, here)
    assert store.numbers() == [1]
    store.verify()
    store.push(made)
    store.verify()
    assert store.pull(there).digest == made.digest
    assert prune_store(store, Selection(), grace_s=0).releases == ()
    assert set(store.objects.sizes("")) == {
        *(blob_path(sha256) for manifest in store.releases().values() for sha256 in sizes_of(manifest)),
        *(manifest_path(number) for number in (1, 2)),
    }


def sizes_of(manifest: Manifest | ReleaseError) -> dict[str, int]:
    assert isinstance(manifest, Manifest)
    return dict(manifest.sizes)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["after some blobs", "before the manifest"])
def test_a_killed_push_to_s3_leaves_nothing_visible(moment: str, s3: str, here: Path) -> None:
    made = make(here)
    killed("push", moment, s3, here)
    store = open_store(s3)
    assert store.numbers() == []
    already = {path for path in store.objects.sizes("") if path.startswith("blobs/")}
    assert len(already) == (4 if moment == "after some blobs" else BLOBS)
    assert len(store.push(made).sent) == BLOBS - len(already)
    store.verify()


def test_a_push_that_died_at_the_end_is_done(store: Store, here: Path) -> None:
    made = make(here)
    killed("push", "after the manifest", store.url, here)
    store.verify()
    assert store.push(made).sent == ()


@pytest.mark.parametrize("moment", ["before a file came", "after some files", "before the release has its name"])
def test_a_killed_pull_leaves_nothing_visible(moment: str, store: Store, here: Path, there: Path) -> None:
    made = make(here)
    store.push(made)
    killed("pull", moment, store.url, there)
    assert len(list(there.glob(".draft-*"))) == 1  # it was in the middle of it
    assert release_numbers(there) == []
    store.pull(there).verify()
    assert [path.name for path in there.iterdir()] == ["1"]


@pytest.mark.long
def test_a_pull_from_s3_that_is_killed_leaves_nothing_visible(s3: str, here: Path, there: Path) -> None:
    open_store(s3).push(make(here))
    killed("pull", "after some files", s3, there)
    assert release_numbers(there) == []
    open_store(s3).pull(there).verify()


@pytest.mark.long
@pytest.mark.parametrize(
    ("protocol", "same"),
    [("file", True), ("file", False), ("s3", False)],
    ids=["file, the same", "file, different ones", "s3, different ones"],
)
def test_pushes_of_one_number_at_once(
    protocol: str, same: bool, here: Path, there: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = str(tmp_path / "store") if protocol == "file" else str(request.getfixturevalue("s3"))
    make(here, fuse="mine")
    make(there, fuse="mine" if same else "other's")
    start = str(time.time() + 1.5)
    pushes = [run("push", start, url, folder) for folder in (here, there, here, there)]
    said = [push.communicate(timeout=60)[0].strip() for push in pushes]
    store = open_store(url)
    store.verify()
    assert store.numbers() == [1]
    won = store.show().digest
    for folder, line in zip((here, there, here, there), said, strict=True):
        assert line == "done" if open_release(folder).digest == won else "is another one" in line


@pytest.mark.long
def test_pulls_at_once_all_get_it(store: Store, here: Path, there: Path) -> None:
    store.push(make(here))
    start = str(time.time() + 1.0)
    pulls = [run("pull", start, store.url, there) for _ in range(3)]
    assert [pull.communicate(timeout=60)[0].strip() for pull in pulls] == ["done"] * 3
    assert [path.name for path in there.iterdir()] == ["1"]
    open_release(there).verify()
