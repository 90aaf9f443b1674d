"""Pruning: what nobody refers to goes, and no release that stays is broken."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmt_release import locks
from cmt_release.manifest import ReleaseError
from cmt_release.objects import Objects
from cmt_release.prune import Selection, prune_folder, prune_store
from cmt_release.release import Release, open_release, release_numbers
from cmt_release.store import Store, StoreError, blob_path, manifest_path, open_store
from small_releases import BLOBS, make
from stores import age, damage, killed


@pytest.mark.long
def test_prune_keeps_what_remaining_releases_share(url: str, here: Path) -> None:
    store = open_store(url)
    releases = [make(here, fuse=content, encode_text="same") for content in "abc"]
    for release in releases:
        store.push(release)
    only = [blob_path(release.manifest.stages["fuse"].files["model.bin"]) for release in releases]
    planned = prune_store(store, Selection(keep=1), grace_s=0, dry_run=True)
    assert store.numbers() == [1, 2, 3]
    time.sleep(0.01)
    gone = prune_store(store, Selection(keep=1), grace_s=0)
    assert gone == planned
    assert (gone.releases, set(gone.other), gone.size_bytes) == ((1, 2), set(only[:2]), 12)
    assert store.numbers() == [3]
    assert store.verify().blobs == BLOBS
    assert store.objects.size(only[0]) is None
    assert store.push(releases[0]).sent == (only[0][-64:],)
    store.verify()


def test_prune_by_number(store: Store, here: Path) -> None:
    for content in "abc":
        store.push(make(here, fuse=content))
    assert prune_store(store, Selection(numbers=[2]), grace_s=0).releases == (2,)
    assert store.numbers() == [1, 3]
    store.verify()
    with pytest.raises(ReleaseError, match=r"got release 2, 7; .* holds 1, 3"):
        prune_store(store, Selection(numbers=[7, 1, 2]))
    assert store.numbers() == [1, 3]


def test_blobs_of_a_push_in_progress_stay(store: Store, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest isn't there yet, so that nothing refers to them."""
    made = make(here)
    create = Objects.create

    def prune_first(self: Objects, path: str, data: bytes) -> bool:
        assert prune_store(store, Selection()).other == ()
        return create(self, path, data)

    monkeypatch.setattr(Objects, "create", prune_first)
    store.push(made)
    store.verify()


def test_a_push_sends_again_what_a_prune_took(store: Store, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blobs were there for longer than the grace period: left by a push that died yesterday."""
    made = make(here)
    killed("push", "before the manifest", store.url, here)
    age(store, 86_400)
    create = Objects.create

    def prune_first(self: Objects, path: str, data: bytes) -> bool:
        assert len(prune_store(store, Selection()).other) == BLOBS
        return create(self, path, data)

    monkeypatch.setattr(Objects, "create", prune_first)
    assert len(store.push(made).sent) == BLOBS
    store.verify()


def test_prune_spares_what_a_push_refers_to_meanwhile(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push of release 2 ends between prune's look at the blobs and their removal."""
    first, second = make(here, fuse="a"), make(here, fuse="a", check="b")
    store.push(first)
    age(store, 86_400)
    delete = Objects.delete

    def push_first(self: Objects, path: str) -> None:
        delete(self, path)
        if path == manifest_path(1):
            store.push(second)

    monkeypatch.setattr(Objects, "delete", push_first)
    gone = prune_store(store, Selection(numbers=[1]))
    assert gone.other == (blob_path(first.manifest.stages["check"].files["model.bin"]),)
    assert store.numbers() == [2]
    store.verify()


def test_prune_says_when_a_push_lost_blobs(store: Store, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The push begins and ends between prune's last look and the removal: seen afterwards."""
    made = make(here)
    store.push(made)
    age(store, 86_400)
    delete, pushed = Objects.delete, []

    def push_first(self: Objects, path: str) -> None:
        if path.startswith("blobs/") and not pushed:
            pushed.append(store.push(made))
        delete(self, path)

    monkeypatch.setattr(Objects, "delete", push_first)
    with pytest.raises(StoreError, match=r"release 1 of .* was pushed meanwhile and lost blobs; push it again"):
        prune_store(store, Selection(numbers=[1]))
    assert len(store.push(made).sent) == 1  # the others were looked up again
    store.verify()


def test_prune_removes_nothing_while_a_release_cant_be_read(store: Store, here: Path) -> None:
    for content in "abc":
        store.push(make(here, fuse=content))
    damage(store, manifest_path(2), b"{}")
    before = store.objects.sizes("")
    with pytest.raises(StoreError, match="Nobody knows which blobs release 2 refers to: prune it by number"):
        prune_store(store, Selection(keep=2), grace_s=0)
    assert store.objects.sizes("") == before
    assert prune_store(store, Selection(numbers=[2]), grace_s=0).releases == (2,)
    store.verify()


def test_prune_removes_nothing_while_releases_cant_be_listed(
    store: Store, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.push(make(here))
    before, right = store.objects.sizes(""), os.scandir

    def scan(path: str) -> Any:
        if str(path).endswith("releases"):
            raise PermissionError(path)
        return right(path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", scan)
        with pytest.raises(StoreError, match="store/releases can't be listed: PermissionError"):
            prune_store(store, Selection(), grace_s=-1)
    assert store.objects.sizes("") == before


def test_a_folder_is_pruned(here: Path, there: Path) -> None:
    for content in "abcd":
        make(here, fuse=content)
    (here / ".draft-1-left").mkdir()
    with locks.draft_folder(here) as busy:
        (here / ".draft-2-left").mkdir()
        planned = prune_folder(here, Selection(keep=1, protected=[2]), dry_run=True)
        assert release_numbers(here) == [1, 2, 3, 4]
        gone = prune_folder(here, Selection(keep=1, protected=[2]))
        assert gone == planned
        assert (gone.releases, gone.other) == ((1, 3), (".draft-2-left",))
        assert sorted(path.name for path in here.iterdir()) == sorted(["2", "4", busy.name])
    for number in (2, 4):
        open_release(here, number).verify()
    assert make(here, fuse="e").number == 5


def test_what_cant_be_pruned_is_refused() -> None:
    for options, message in (
        ({"keep": 0}, "keep: got 0; expected 1 or more"),
        ({"keep": 1, "numbers": [1]}, "got keep and numbers together"),
        ({"numbers": [1, 2], "protected": [2, 3]}, "release 2 is served here"),
    ):
        with pytest.raises(ValueError, match=message):
            Selection(**options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """Releases of one line that share many files."""
    folder = tmp_path_factory.mktemp("line")
    contents = [("a", "x"), ("b", "x"), ("a", "y"), ("b", "y"), ("a", "x")]
    return [make(folder, fuse=fuse, check=check) for fuse, check in contents]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(0, 4)),
        st.tuples(st.just("keep"), st.integers(1, 3)),
        st.tuples(st.just("remove"), st.integers(0, 4)),
        st.tuples(st.just("half a push"), st.integers(0, 4)),
        st.tuples(st.just("lose a blob, push again"), st.integers(0, 4)),
    ),
    max_size=12,
)


@given(steps=STEPS)
@settings(max_examples=25)
def test_after_any_pushes_and_prunes_every_listed_release_is_whole(
    steps: list[tuple[str, int]], line: list[Release]
) -> None:
    store = open_store(f"memory://{secrets.token_hex(8)}")
    expected: set[int] = set()
    for step, value in steps:
        if step == "push":
            store.push(line[value])
            expected.add(value + 1)
        elif step == "keep":
            prune_store(store, Selection(keep=value), grace_s=0)
            expected = set(sorted(expected)[-value:])
        elif step == "remove" and value + 1 in expected:
            prune_store(store, Selection(numbers=[value + 1]), grace_s=0)
            expected.remove(value + 1)
        elif step == "half a push":
            for path, sha256 in list(line[value].manifest.files.items())[:9]:
                store.objects.put(line[value].folder / path, blob_path(sha256))
        elif step == "lose a blob, push again" and value + 1 in expected:
            store.objects.delete(blob_path(line[value].manifest.stages["fuse"].files["model.bin"]))
            store.push(line[value])
        assert set(store.numbers()) == expected
        store.verify()
        assert all(store.show(number) == line[number - 1].manifest for number in expected)
    prune_store(store, Selection(), grace_s=-1)
    blobs = {sha256 for number in expected for sha256 in line[number - 1].manifest.sizes}
    assert set(store.objects.sizes("blobs")) == {blob_path(sha256) for sha256 in blobs}
