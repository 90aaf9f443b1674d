"""Takes old releases away, from a store at a URL or a folder of this machine, and what nothing refers to any more.

No release that remains is broken. A store has no locks, so a push may run meanwhile: blobs younger than a grace
period stay, what is referred to is looked up again before each blob goes, and a push looks once more when its
manifest is there. Where even that wasn't enough, prune says which release to push again.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmt_release.locks import drafts_of, remove_unlocked
from cmt_release.manifest import Manifest, ReleaseError
from cmt_release.objects import DRAFTS, StoreError
from cmt_release.release import release_numbers, remove_release
from cmt_release.store import BLOBS, Store, blob_path, manifest_path

GRACE_S = 3600.0


@dataclass(frozen=True)
class Selection:
    """Which releases go: all but the newest `keep`, or those named by number; none without either.

    protected: never go, whatever else is said.
    """

    keep: int | None = None
    numbers: Sequence[int] = ()
    protected: Collection[int] = ()

    def __post_init__(self) -> None:
        if self.keep is not None and self.numbers:
            raise ValueError("got keep and numbers together; give one of them")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep: got {self.keep}; expected 1 or more")
        if both := sorted(set(self.numbers) & set(self.protected)):
            raise ValueError(f"release {', '.join(map(str, both))} is served here and can't be removed")

    def of(self, have: Sequence[int], where: str) -> list[int]:
        """Those of the releases there are that go. ReleaseError for a number that isn't there."""
        if absent := sorted(set(self.numbers) - set(have)):
            raise ReleaseError(f"got release {', '.join(map(str, absent))}; {where} holds {', '.join(map(str, have))}")
        named = have[: -self.keep] if self.keep is not None else sorted(set(self.numbers))
        return [number for number in named if number not in self.protected]


@dataclass(frozen=True)
class Pruned:
    """releases: numbers that went; other: names of blobs and drafts that nothing refers to; size_bytes: of the blobs
    in a store, 0 for a folder, whose releases share files."""

    releases: tuple[int, ...]
    other: tuple[str, ...]
    size_bytes: int = 0


def prune_folder(folder: Path, selection: Selection, *, dry_run: bool = False) -> Pruned:
    """Takes releases out of a folder of this machine, and drafts of processes that died. Raises ReleaseError."""
    going = selection.of(release_numbers(folder), str(folder))
    drafts = remove_unlocked(drafts_of(folder), dry_run=dry_run)
    for number in () if dry_run else going:
        remove_release(folder / str(number))
    return Pruned(tuple(going), tuple(draft.name for draft in drafts))


def prune_store(store: Store, selection: Selection, *, grace_s: float = GRACE_S, dry_run: bool = False) -> Pruned:
    """Takes releases out of a store, then the blobs older than `grace_s` that no release refers to.

    StoreError, before anything goes, when a release that stays can't be read: nobody knows what it refers to.
    """
    going = selection.of(store.numbers(), store.url)
    references = _References(store, going)
    references.update()
    if not dry_run:
        for number in going:
            store.objects.delete(manifest_path(number))
        references.going = ()  # from now on, these numbers are those of a push
    removed: dict[str, int] = {}
    for path, size in _orphans(store, references, grace_s).items():
        if not dry_run:
            references.update()
            if path in references.blobs:
                continue
            store.objects.delete(path)
        removed[path] = size
    if not dry_run:
        references.update()
        if broken := references.referring_to(removed):
            raise StoreError(f"release {broken} of {store.url} was pushed meanwhile and lost blobs; push it again")
    return Pruned(tuple(going), tuple(removed), sum(removed.values()))


def _orphans(store: Store, references: _References, grace_s: float) -> dict[str, int]:
    """Old blobs that nothing refers to and old drafts of writes that were killed: bytes by path."""
    found = store.objects.sizes(BLOBS)
    found |= store.objects.sizes(DRAFTS) if store.objects.folder is not None else {}
    return {
        path: size
        for path, size in found.items()
        if path not in references.blobs and store.objects.age_s(path) > grace_s
    }


class _References:
    """The blobs that the releases of a store refer to, but for those that are going."""

    def __init__(self, store: Store, going: Collection[int]) -> None:
        self._store, self.going = store, going
        self._manifests: dict[int, Manifest] = {}
        self.blobs: set[str] = set()

    def update(self) -> None:
        """Reads the manifests that were added meanwhile. StoreError for one that can't be read."""
        for number in self._store.numbers():
            if number in self._manifests or number in self.going:
                continue
            try:
                self._manifests[number] = self._store.show(number)
            except ReleaseError as error:
                raise StoreError(
                    f"{error}. Nobody knows which blobs release {number} refers to: prune it by number, or repair it"
                ) from error
            self.blobs |= {blob_path(sha256) for sha256 in self._manifests[number].sizes}

    def referring_to(self, removed: Collection[str]) -> int | None:
        """A release whose blobs were removed and aren't there again."""
        for number, manifest in self._manifests.items():
            lost = {blob_path(sha256) for sha256 in manifest.sizes}.intersection(removed)
            if any(self._store.objects.size(path) is None for path in lost):
                return number
        return None
