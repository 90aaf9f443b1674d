"""Stores: releases at a URL, for machines to push to and pull from.

    blobs/sha256/ab/ab12...    every file of every release, once, under its own digest
    releases/3.json            a release's manifest; written last, so that a release is there whole or not at all

Nothing that comes from a store is believed: manifests are bounded and checked, every file's size and sha256 compared.
Several releases of one store share stages by version number, so a store has one line of releases: a release whose
number or stage versions mean something else there is refused.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cmt_engine.engine import sha256_of
from cmt_pipeline.progress import Progress
from cmt_release.locks import draft_folder
from cmt_release.manifest import MAX_MANIFEST_BYTES, Manifest, ReleaseError, manifest_from_bytes
from cmt_release.objects import DEFAULT_RETRIES, Objects, Retries, StoreError, open_objects
from cmt_release.release import (
    Release,
    open_release,
    publish_draft,
    readable_releases,
    release_numbers,
    remove_release,
)

__all__ = ["Checked", "Pushed", "Retries", "Store", "StoreError", "blob_path", "manifest_path", "open_store"]


BLOBS = "blobs/sha256"
RELEASES = "releases"
MANIFEST_NAME = re.compile(rf"{RELEASES}/([1-9][0-9]{{0,17}})\.json")


@dataclass(frozen=True)
class Pushed:
    """sent: sha256 of the blobs that went; sent_bytes: theirs; shared: how many were there already."""

    sent: tuple[str, ...]
    sent_bytes: int
    shared: int


@dataclass(frozen=True)
class Checked:
    """What a verification read."""

    releases: tuple[int, ...]
    blobs: int
    size_bytes: int


def open_store(url: str, retries: Retries = DEFAULT_RETRIES) -> Store:
    """The store at a URL: a path, file://, s3://, gs:// or memory://. Raises StoreError."""
    return Store(open_objects(url, retries))


def blob_path(sha256: str) -> str:
    """Where a store keeps the file of a digest."""
    return f"{BLOBS}/{sha256[:2]}/{sha256}"


def manifest_path(number: int) -> str:
    """Where a store keeps the manifest of a release."""
    return f"{RELEASES}/{number}.json"


def _quiet(what: str, done: float) -> None:
    """Reports no progress."""


@dataclass(frozen=True)
class Store:
    """Releases at a URL. Whatever goes wrong is a StoreError or ReleaseError."""

    objects: Objects

    @property
    def url(self) -> str:
        return self.objects.url

    def numbers(self) -> list[int]:
        """The numbers of the releases, oldest first."""
        return list(self._listed())

    def show(self, number: int | None = None) -> Manifest:
        """The manifest of a release, the newest by default."""
        listed = self._listed()
        chosen = self._chosen(number, listed)
        return self._manifest(chosen, listed[chosen])

    def releases(self) -> dict[int, Manifest | ReleaseError]:
        """Every release by number, oldest first; the error where a manifest can't be read."""
        found: dict[int, Manifest | ReleaseError] = {}
        for number, size in self._listed().items():
            try:
                found[number] = self._manifest(number, size)
            except ReleaseError as error:
                found[number] = error
        return found

    def push(self, release: Release, progress: Progress = _quiet) -> Pushed:
        """Sends a release: the blobs that the store hasn't, then the manifest. The same one again changes nothing."""
        release.verify()
        others = self.releases()
        if isinstance(fault := others.get(release.number), ReleaseError):
            raise StoreError(f"release {release.number} is there and can't be read ({fault}); prune it, push again")
        readable = [other for other in others.values() if isinstance(other, Manifest)]
        _refuse_clash(release.manifest, readable, self.url, "pull what is there, then export again: it gets a number")
        sent = self._send_missing(release, progress)
        path = manifest_path(release.number)
        if not self.objects.create(path, release.manifest.to_json().encode()):
            got = self.show(release.number).digest
            if got != release.digest:
                raise _taken(release.manifest, got, self.url)
        sent += self._send_missing(release, progress)  # those that a prune has taken meanwhile
        sizes = release.manifest.sizes
        return Pushed(tuple(sent), sum(sizes[sha256] for sha256 in sent), len(sizes) - len(set(sent)))

    def pull(self, folder: Path, number: int | None = None, progress: Progress = _quiet) -> Release:
        """Brings a release, the newest by default, into a local folder of releases. One that is there whole stays."""
        manifest = self.show(number)
        known = _known(folder, manifest)
        if known is not None and _whole(known):
            return known
        local = readable_releases(folder)
        others = [release.manifest for release in local]
        _refuse_clash(manifest, others, str(folder), "pull into a folder of its own (--state)")
        try:
            with draft_folder(folder) as draft:
                self._fetch_all(manifest, draft, _at_hand(local), progress)
                if known is not None:
                    remove_release(known.folder)
                return publish_draft(folder, draft, manifest)
        except OSError as error:
            raise ReleaseError(f"{folder} can't be written ({error}); make room there or name another") from error
        except ReleaseError:
            if (first := _known(folder, manifest)) is None or not _whole(first):
                raise
            return first  # by another pull

    def verify(self, number: int | None = None, progress: Progress = _quiet) -> Checked:
        """Reads every blob of a release, of all by default. StoreError names each that is missing or damaged."""
        faults: list[str] = []
        sizes: dict[str, int] = {}
        listed = self._listed()
        numbers = list(listed) if number is None else [self._chosen(number, listed)]
        for each in numbers:
            try:
                sizes |= self._manifest(each, listed[each]).sizes
            except ReleaseError as error:
                faults.append(str(error))
        done, total = 0, max(sum(sizes.values()), 1)
        for sha256, size in sizes.items():
            progress(f"reading {sha256[:12]}", done / total)
            try:
                self._fetch(sha256, size, None)
            except ReleaseError as error:
                faults.append(str(error))
            done += size
        if faults:
            raise StoreError("\n".join(faults))
        return Checked(tuple(numbers), len(sizes), sum(sizes.values()))

    def _listed(self) -> dict[int, int]:
        """Bytes of every manifest by release, oldest first."""
        found = {MANIFEST_NAME.fullmatch(path): size for path, size in self.objects.sizes(RELEASES).items()}
        return dict(sorted((int(name[1]), size) for name, size in found.items() if name))

    def _manifest(self, number: int, size: int) -> Manifest:
        path = manifest_path(number)
        source = f"{self.url}/{path}"
        try:
            data = b"".join(self.objects.read(path, min(size, MAX_MANIFEST_BYTES + 1)))
        except FileNotFoundError:
            raise StoreError(f"{source} was removed meanwhile; list the store again") from None
        manifest = manifest_from_bytes(data, source)
        if manifest.number != number:
            raise StoreError(f"{source} is the manifest of release {manifest.number}; remove it and push {number}")
        return manifest

    def _chosen(self, number: int | None, listed: Iterable[int]) -> int:
        numbers = list(listed)
        if not numbers:
            raise StoreError(f"{self.url} holds no release; send one with `cmt release push`")
        if number is not None and number not in numbers:
            raise StoreError(f"got release {number}; {self.url} holds {', '.join(map(str, numbers))}")
        return numbers[-1] if number is None else number

    def _send_missing(self, release: Release, progress: Progress) -> list[str]:
        """Sends the blobs that aren't there in full length; their sha256."""
        manifest = release.manifest
        sources = {sha256: release.folder / path for path, sha256 in manifest.files.items()}
        there = self.objects.sizes(BLOBS)
        done, total, sent = 0, max(sum(manifest.sizes.values()), 1), []
        for sha256, source in sources.items():
            if there.get(blob_path(sha256)) != manifest.sizes[sha256]:
                progress(f"sending {source.relative_to(release.folder)}", done / total)
                self.objects.put(source, blob_path(sha256))
                sent.append(sha256)
            done += manifest.sizes[sha256]
        return sent

    def _fetch_all(self, manifest: Manifest, draft: Path, at_hand: Mapping[str, Path], progress: Progress) -> None:
        done, total = 0, max(sum(manifest.sizes[sha256] for sha256 in manifest.files.values()), 1)
        for path, sha256 in manifest.files.items():
            progress(f"fetching {path}", done / total)
            target = draft / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not _linked(at_hand.get(sha256), target, sha256):
                with target.open("xb") as file:
                    self._fetch(sha256, manifest.sizes[sha256], file)
            done += manifest.sizes[sha256]

    def _fetch(self, sha256: str, size: int, target: BinaryIO | None) -> None:
        """Reads a blob, into a file where one is given. StoreError unless it is what its name says."""
        path = blob_path(sha256)
        repair = "remove it, then push a release that has it"
        got = self.objects.size(path)
        if got is None:
            raise StoreError(f"{self.url}/{path} is missing; push a release that has it")
        if got != size:
            raise StoreError(f"{self.url}/{path} has {got} bytes, the manifest says {size}; {repair}")
        digest = hashlib.sha256()
        try:
            for piece in self.objects.read(path, size):
                digest.update(piece)
                if target is not None:
                    target.write(piece)
        except FileNotFoundError:
            raise StoreError(f"{self.url}/{path} was removed meanwhile; push a release that has it") from None
        if digest.hexdigest() != sha256:
            raise StoreError(f"{self.url}/{path} has sha256 {digest.hexdigest()}; {repair}")


def _known(folder: Path, manifest: Manifest) -> Release | None:
    """The local release of this manifest. ReleaseError when its number is another's or can't be read."""
    if manifest.number not in release_numbers(folder):
        return None
    try:
        release = open_release(folder, manifest.number)
    except ReleaseError as error:
        raise ReleaseError(f"{error}. Remove {folder / str(manifest.number)}, then pull again") from error
    if release.digest != manifest.digest:
        raise _taken(manifest, release.digest, str(folder))
    return release


def _whole(release: Release) -> bool:
    try:
        release.verify()
    except ReleaseError:
        return False
    return True


def _taken(manifest: Manifest, got: str, where: str) -> StoreError:
    return StoreError(
        f"release {manifest.number} of {where} is another one: digest {got[:12]} is there, {manifest.digest[:12]} "
        "came. A number is given once: pull into a folder of its own (--state), or pull what the store has, "
        "then export again for the next number"
    )


def _refuse_clash(manifest: Manifest, others: Iterable[Manifest], where: str, repair: str) -> None:
    """StoreError if the release's number or a stage version of it means something else among the others."""
    for other in others:
        if other.number == manifest.number and other.digest != manifest.digest:
            raise _taken(manifest, other.digest, where)
        for name, stage in manifest.stages.items():
            theirs = other.stages[name]
            if theirs.version == stage.version and theirs.digest != stage.digest:
                raise StoreError(
                    f"release {manifest.number} has version {stage.version} of stage {name}, which in release "
                    f"{other.number} of {where} is another one: they were exported apart; {repair}"
                )


def _at_hand(releases: Iterable[Release]) -> dict[str, Path]:
    """Files of local releases by sha256, as their manifests say."""
    return {sha256: r.folder / path for r in releases for path, sha256 in r.manifest.files.items()}


def _linked(source: Path | None, target: Path, sha256: str) -> bool:
    """Whether a file that a local release has could be shared; one that is damaged isn't."""
    if source is None:
        return False
    try:
        if source.is_symlink() or sha256_of(source) != sha256:
            return False
        os.link(source, target)
    except OSError:
        return False
    return True
