"""Releases: coherent, immutable sets of stage versions.

    releases/3/manifest.json              what the release is, with the digest of every file
    releases/3/stages/encode_text/...     one folder a stage: adapter, engine or preprocessing
    releases/3/golden/{image,audio,text}  the files that the manifest's golden answers are for, where it has some

A stage whose files equal those of an earlier release shares them on disk (hard links), and a compiled one keeps that
release's version number; the stages that say which release answers have a version for each. A release folder appears
whole or not at all, and nothing in it changes afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmt_engine.engine import sha256_of
from cmt_pipeline.modality import MODALITIES, Modality
from cmt_pipeline.release_info import ReleaseInfo
from cmt_pipeline.stages import STAGES
from cmt_pipeline.tensors import DEFAULT_SIZES, Sizes
from cmt_release.durable import sync_tree
from cmt_release.locks import DRAFT_PREFIX, draft_folder
from cmt_release.manifest import (
    GOLDEN_FOLDER,
    MANIFEST_FILE,
    STAGES_FOLDER,
    GoldenAnswer,
    Manifest,
    PublishedWeights,
    ReleaseError,
    StageVersion,
    contract_tensors,
    digest_of_files,
    read_manifest,
)

__all__ = [
    "GOLDEN_FOLDER",
    "MANIFEST_FILE",
    "STAGES_FOLDER",
    "GoldenAnswer",
    "Manifest",
    "Release",
    "ReleaseError",
    "StageVersion",
    "draft_folder",
    "find_release",
    "open_release",
    "publish_draft",
    "readable_releases",
    "release_from_engines",
    "release_numbers",
    "remove_release",
]


@dataclass(frozen=True)
class Release:
    """A release on disk."""

    folder: Path
    manifest: Manifest

    @property
    def number(self) -> int:
        return self.manifest.info.release

    def stage_folder(self, stage: str) -> Path:
        return self.folder / STAGES_FOLDER / stage

    @property
    def digest(self) -> str:
        """The release's content address: SHA-256 of its manifest."""
        return self.manifest.digest

    def golden_files(self) -> dict[Modality, bytes]:
        """The files that the golden answers are for; empty when the release has none. Raises ReleaseError."""
        return {m: self._golden_file(m) for m in MODALITIES if m in self.manifest.golden_files}

    def verify(self) -> None:
        """ReleaseError unless every file is there with the digest that the manifest names, and nothing else is."""
        self._expect_same(read_manifest(self.folder / MANIFEST_FILE).digest, self.digest, self.folder / MANIFEST_FILE)
        got = _digests(self.folder)
        got.pop(MANIFEST_FILE, None)
        expected = self.manifest.files
        for path in (*expected, *sorted(got.keys() - expected.keys())):
            self._expect_same(got.get(path), expected.get(path), self.folder / path)
        folders = {parent for path in (*expected, f"{STAGES_FOLDER}/-") for parent in Path(path).parents}
        for folder in sorted(path for path in self.folder.rglob("*") if path.is_dir()):
            if folder.relative_to(self.folder) not in folders:
                raise ReleaseError(f"release {self.number}: the folder {folder} is none of the manifest's; remove it")

    def _golden_file(self, modality: Modality) -> bytes:
        path = self.folder / GOLDEN_FOLDER / modality
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ReleaseError(f"release {self.number}: {path} can't be read ({error.strerror})") from error
        self._expect_same(hashlib.sha256(data).hexdigest(), self.manifest.golden_files[modality], path)
        return data

    def _expect_same(self, got: str | None, expected: str | None, path: Path) -> None:
        if got != expected:
            raise ReleaseError(
                f"release {self.number}: {path} has sha256 {got}, the manifest says {expected}; "
                "export the release again, or pull it again"
            )


def open_release(store: Path, number: int | None = None) -> Release:
    """A release of the store, the newest by default. Raises ReleaseError."""
    numbers = release_numbers(store)
    if not numbers:
        raise ReleaseError(f"{store} holds no release; make one with `cmt export`")
    chosen = number if number is not None else numbers[-1]
    if chosen not in numbers:
        raise ReleaseError(f"got release {chosen}; {store} holds {', '.join(map(str, numbers))}")
    folder = store / str(chosen)
    manifest = read_manifest(folder / MANIFEST_FILE)
    if manifest.number != chosen:
        raise ReleaseError(f"{folder} holds the manifest of release {manifest.number}; pull release {chosen} again")
    return Release(folder, manifest)


def release_numbers(store: Path) -> list[int]:
    """The numbers of the store's releases, oldest first."""
    if not store.is_dir():
        return []
    return sorted(int(p.name) for p in store.iterdir() if p.name.isdigit() and (p / MANIFEST_FILE).is_file())


def readable_releases(store: Path) -> list[Release]:
    """The store's releases that this version can read, oldest first."""
    found = []
    for number in release_numbers(store):
        with contextlib.suppress(ReleaseError):
            found.append(open_release(store, number))
    return found


def newest_release(store: Path, precision: str) -> Release:
    """The newest of the store's releases in a precision. Raises ReleaseError when there is none."""
    readable = readable_releases(store)
    for release in reversed(readable):
        if release.manifest.info.precision == precision:
            return release
    found = ", ".join(sorted({one.manifest.info.precision for one in readable})) or "none"
    raise ReleaseError(
        f"{store} holds no release in {precision} (it has: {found}); make one with `cmt export --precision {precision}`"
    )


def find_release(store: Path, recipe: str) -> Release | None:
    """The newest release made by the same recipe and still whole, if any."""
    for release in reversed(readable_releases(store)):
        if release.manifest.recipe == recipe:
            with contextlib.suppress(ReleaseError):
                release.verify()
                return release
    return None


def release_from_engines(
    store: Path,
    draft: Path,
    info: ReleaseInfo,
    *,
    parity: Sequence[Mapping[str, Any]],
    golden: Sequence[GoldenAnswer],
    golden_tolerance: float,
    preprocess: str,
    versions: Mapping[str, str],
    recipe: str,
    features: Sizes = DEFAULT_SIZES,
    source: str = "pytorch",
    published: Sequence[PublishedWeights] = (),
) -> Release:
    """Turns `draft`/stages/{stage}/ and `draft`/golden/{modality} into the store's next release.

    info.release is set by the store. Raises ReleaseError.
    """
    earlier = readable_releases(store)
    number = max(release_numbers(store), default=0) + 1
    manifest = Manifest(
        info=replace(info, release=number),
        source=source,
        stages={name: _stage_version(draft / STAGES_FOLDER / name, name, number, earlier) for name in STAGES},
        features=features,
        tensors=contract_tensors(len(info.labels), features.width),
        preprocess=preprocess,
        parity=parity,
        golden=golden,
        golden_files=_digests(draft / GOLDEN_FOLDER),
        golden_tolerance=golden_tolerance,
        sizes=_sizes(draft),
        versions=versions,
        recipe=recipe,
        published=tuple(published),
    )
    return publish_draft(store, draft, manifest)


def publish_draft(store: Path, draft: Path, manifest: Manifest) -> Release:
    """The draft as a release of the store. ReleaseError if its number was taken meanwhile, or if it is no release."""
    text = manifest.to_json()
    Manifest.from_json(text, f"{draft / MANIFEST_FILE}")
    (draft / MANIFEST_FILE).write_text(text)
    _make_durable(draft)
    folder = store / str(manifest.number)
    try:
        draft.rename(folder)  # fails if another export took the number meanwhile
    except OSError as error:
        raise ReleaseError(
            f"release {manifest.number} was made by somebody else meanwhile ({error}); export again"
        ) from error
    return Release(folder, manifest)


def remove_release(folder: Path) -> None:
    """Takes a release away: first out of sight, then off the disk."""
    gone = folder.with_name(f"{DRAFT_PREFIX}{folder.name}-{secrets.token_hex(4)}")
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _stage_version(folder: Path, name: str, number: int, earlier: Sequence[Release]) -> StageVersion:
    files = _digests(folder)
    digest = digest_of_files(files)
    for release in earlier:
        known = release.manifest.stages[name]
        if known.digest == digest:
            _share(release.stage_folder(name), folder, files)
            return replace(known, version=number) if STAGES[name].stamped else known
    return StageVersion(number, digest, files)


def _share(source: Path, target: Path, files: Mapping[str, str]) -> None:
    for path, sha256 in files.items():
        shared = target / f"{path}.shared"
        with contextlib.suppress(OSError):  # a file system without hard links keeps its copy
            if sha256_of(source / path) != sha256:
                continue
            os.link(source / path, shared)
            shared.replace(target / path)


def _digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in _files(folder)}


def _sizes(draft: Path) -> dict[str, int]:
    return {sha256_of(path): path.stat().st_size for path in _files(draft)}


def _files(folder: Path) -> list[Path]:
    """The files below a folder. ReleaseError for a link, or anything else that is neither file nor folder."""
    found = []
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            found.append(path)
        elif not stat.S_ISDIR(mode):
            raise ReleaseError(f"{path} is a {'symlink' if stat.S_ISLNK(mode) else 'special file'}; remove it")
    return found


def _make_durable(draft: Path) -> None:
    """Read-only and on the disk: a rename must never become visible before the content it names."""
    for path in _files(draft):
        path.chmod(0o444)
    sync_tree(draft)
