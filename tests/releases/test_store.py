"""Stores: releases go to a URL and come back, and errors say what to do."""

from __future__ import annotations

import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cmt_release import objects
from cmt_release import store as store_module
from cmt_release.manifest import MANIFEST_FILE, ReleaseError
from cmt_release.objects import Objects, Retries
from cmt_release.release import Release, open_release
from cmt_release.store import Store, StoreError, blob_path, manifest_path, open_store
from small_releases import BLOBS, GOLDEN_FILES, make, rewrite

QUICK = Retries(attempts=4, max_pause_s=0.01, deadline_s=5.0)


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths of the objects that are written."""
    written: list[str] = []
    right = Objects.put

    def put(self: Objects, source: Path, path: str) -> None:
        written.append(path)
        right(self, source, path)

    monkeypatch.setattr(Objects, "put", put)
    return written


def test_a_release_goes_to_a_store_and_comes_back(url: str, here: Path, there: Path) -> None:
    made = make(here)
    told: list[float] = []
    pushed = open_store(url).push(made, lambda _, done: told.append(done))
    assert (len(pushed.sent), pushed.shared) == (BLOBS, 0)
    assert pushed.sent_bytes == sum(made.manifest.sizes.values())
    came = open_store(url).pull(there)
    came.verify()
    assert came == Release(there / "1", made.manifest) == open_release(there)
    assert came.digest == made.digest
    assert came.golden_files() == GOLDEN_FILES
    assert all(path.is_dir() or path.stat().st_mode & 0o777 == 0o444 for path in came.folder.rglob("*"))
    assert all(0 <= done <= 1 for done in told)


@pytest.mark.long
def test_a_store_says_what_it_holds(url: str, here: Path) -> None:
    store = open_store(url)
    assert (store.numbers(), store.releases()) == ([], {})
    with pytest.raises(StoreError, match=r"holds no release; send one with `cmt release push`"):
        store.show()
    releases = [make(here, fuse=content) for content in "abc"]
    for release in reversed(releases):
        store.push(release)
    assert store.numbers() == [1, 2, 3]
    assert store.releases() == {release.number: release.manifest for release in releases}
    assert (store.show(), store.show(2)) == (releases[2].manifest, releases[1].manifest)
    with pytest.raises(StoreError, match=r"got release 7; .* holds 1, 2, 3"):
        store.show(7)
    checked = store.verify()
    assert (checked.releases, checked.blobs) == ((1, 2, 3), BLOBS + 2)
    assert store.verify(2).blobs == BLOBS


@pytest.mark.long
def test_only_what_is_missing_is_sent(url: str, here: Path, puts: list[str]) -> None:
    store = open_store(url)
    first, second = make(here, fuse="a"), make(here, fuse="b")
    store.push(first)
    assert len(puts) == BLOBS
    puts.clear()
    again = store.push(first)
    assert (puts, again.sent, again.sent_bytes, again.shared) == ([], (), 0, BLOBS)
    changed = second.manifest.stages["fuse"].files["model.bin"]
    assert store.push(second).sent == (changed,)
    assert puts == [blob_path(changed)]


def test_a_pull_shares_what_is_there(store: Store, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in "ab":
        store.push(make(here, fuse=content))
    first = store.pull(there, 1)
    read: list[str] = []
    right = Objects.read
    monkeypatch.setattr(Objects, "read", lambda self, path, size: (read.append(path), right(self, path, size))[1])
    second = store.pull(there, 2)
    changed = second.manifest.stages["fuse"].files["model.bin"]
    assert read == [manifest_path(2), blob_path(changed)]
    for path in ("stages/check/model.bin", "golden/text"):
        assert (first.folder / path).samefile(second.folder / path)
    second.verify()


def test_a_damaged_local_file_is_not_shared_but_mended(store: Store, here: Path, there: Path) -> None:
    for content in "ab":
        store.push(make(here, fuse=content))
    rewrite(store.pull(there, 1).stage_folder("check") / "model.bin", b"damaged")
    store.pull(there, 2).verify()
    assert store.pull(there, 1) == open_release(there, 1)
    open_release(there, 1).verify()
    assert sorted(path.name for path in there.iterdir()) == ["1", "2"]


def test_a_pull_of_what_is_there_changes_nothing(store: Store, here: Path, there: Path) -> None:
    store.push(make(here))
    first = store.pull(there)
    before = first.folder.stat().st_ino
    assert store.pull(there) == first
    assert first.folder.stat().st_ino == before


@pytest.mark.long
def test_a_number_is_given_once(url: str, here: Path, there: Path, tmp_path: Path) -> None:
    store = open_store(url)
    mine, other = make(here, fuse="mine"), make(there, fuse="other's")
    store.push(mine)
    message = f"release 1 of .* is another one: digest {mine.digest[:12]} is there, {other.digest[:12]} came.*pull"
    with pytest.raises(StoreError, match=message):
        store.push(other)
    assert store.show() == mine.manifest
    with pytest.raises(StoreError, match=f"release 1 of {there} is another one.*--state"):
        store.pull(there)
    assert open_release(there) == other
    other.verify()


def test_lines_of_releases_that_were_exported_apart_dont_mix(store: Store, here: Path, there: Path) -> None:
    """Else one version number of a stage would mean two things in one repository."""
    store.push(make(here, fuse="mine"))
    make(there, fuse="other's")
    apart = make(there, fuse="other's", encode_text="new")
    with pytest.raises(StoreError, match=r"release 2 has version 1 of stage fuse, which in release 1 .* another one"):
        store.push(apart)
    store.push(make(here, fuse="mine", encode_text="b"))
    with pytest.raises(StoreError, match=r"release 2 .* another one"):
        store.pull(there, 2)


def test_a_local_release_that_cant_be_read_is_named(store: Store, here: Path, there: Path) -> None:
    store.push(make(here))
    rewrite(store.pull(there).folder / MANIFEST_FILE, b"{}")
    with pytest.raises(ReleaseError, match=f"got a manifest of format None.*Remove {there}/1, then pull again"):
        store.pull(there)


def test_a_damaged_release_is_not_pushed(store: Store, here: Path) -> None:
    made = make(here)
    rewrite(made.stage_folder("fuse") / "model.bin", b"damaged")
    with pytest.raises(ReleaseError, match=r"fuse/model.bin has sha256"):
        store.push(made)
    assert (store.numbers(), store.objects.sizes("")) == ([], {})


class Flaky(MemoryFileSystem):  # type: ignore[misc]
    """Memory that fails a few times before each success, or always."""

    protocol = "flaky"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    failures = 2
    calls = 0

    def _fail(self) -> None:
        Flaky.calls += 1
        if Flaky.calls % (Flaky.failures + 1):
            raise ConnectionError("the line dropped")

    def find(self, *arguments: Any, **options: Any) -> Any:
        self._fail()
        return super().find(*arguments, **options)

    def info(self, *arguments: Any, **options: Any) -> Any:
        self._fail()
        return super().info(*arguments, **options)

    def cat_file(self, *arguments: Any, **options: Any) -> Any:
        self._fail()
        return super().cat_file(*arguments, **options)

    def pipe_file(self, *arguments: Any, **options: Any) -> Any:
        self._fail()
        return super().pipe_file(*arguments, **options)


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(Flaky, "store", {})
    monkeypatch.setattr(Flaky, "calls", 0)
    return Store(Objects(Flaky(skip_instance_cache=True), "/root", "flaky://root", None, QUICK))


def test_errors_that_pass_are_tried_again(flaky: Store, here: Path, there: Path) -> None:
    made = make(here)
    flaky.push(made)
    flaky.verify()
    assert flaky.pull(there).digest == made.digest


def test_errors_that_stay_are_told_after_so_many_attempts(
    flaky: Store, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Flaky, "failures", 1_000_000)
    made = make(here)
    for act in (lambda: flaky.push(made), lambda: flaky.pull(there), flaky.numbers):
        with pytest.raises(
            StoreError, match="flaky://root/releases can't be listed: ConnectionError: the line dropped, tried 4 times"
        ):
            act()
    assert Flaky.calls == 3 * QUICK.attempts


def test_what_wont_pass_is_not_tried_again(flaky: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Flaky) -> None:
        Flaky.calls += 1
        raise PermissionError("not yours")

    monkeypatch.setattr(Flaky, "_fail", refuse)
    with pytest.raises(StoreError, match="PermissionError: not yours; check the URL, the network and the credentials"):
        flaky.numbers()
    assert Flaky.calls == 1


def test_a_dead_s3_is_told(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(StoreError, match=r"s3://bucket/.*EndpointConnectionError"):
            open_store(s3, replace(QUICK, attempts=2)).numbers()


def test_a_bucket_that_isnt_there_is_told(s3: str, here: Path) -> None:
    with pytest.raises(StoreError, match=r"s3://nowhere/x can't be written.*make the bucket or folder first"):
        open_store("s3://nowhere/x", QUICK).push(make(here))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.org/releases", "expected a folder, file://, s3://BUCKET"),
        ("simplecache::s3://bucket", "expected a folder"),
        ("s3://", "names no folder or bucket"),
        ("file:///", "names no folder or bucket"),
    ],
)
def test_urls_that_are_no_stores(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message):
        open_store(url)


@pytest.mark.parametrize(("url", "module", "extra"), [("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gs")])
def test_a_missing_package_is_named(url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url[:2], raising=False)
    with pytest.raises(StoreError, match=rf'pip install "cmt-triton\[{extra}\]"'):
        open_store(url)


@pytest.mark.long
def test_large_blobs_go_in_pieces(url: str, here: Path, there: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "CHUNK_BYTES", 4096)
    made = make(here, fuse="0123456789" * 2000)
    store = open_store(url)
    store.push(made)
    store.verify()
    store.pull(there).verify()
    assert store_module.manifest_from_bytes(made.manifest.to_json().encode(), "") == made.manifest
