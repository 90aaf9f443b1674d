"""Releases: coherent, immutable sets of stage versions.

    releases/3/manifest.json              what the release is, with the digest of every file
    releases/3/stages/encode_text/...     one folder a stage: adapter, engine or preprocessing

A stage whose files equal those of an earlier release keeps that release's version number and shares its files on disk
(hard links). A release folder appears whole or not at all, and nothing in it changes afterwards.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cmt_export.engine import sha256_of
from cmt_pipeline.modality import Modality
from cmt_pipeline.release_info import ReleaseInfo
from cmt_pipeline.stages import STAGES

MANIFEST_FILE = "manifest.json"
STAGES_FOLDER = "stages"
FORMAT = 1


class ReleaseError(RuntimeError):
    """A release is missing, damaged or can't be written; the message says which file and how to go on."""


@dataclass(frozen=True)
class StageVersion:
    """version: the release that brought these files; digest: over all of them; files: path -> sha256."""

    version: int
    digest: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class GoldenAnswer:
    """What PyTorch fp32 answers for the release's own samples, by pipeline."""

    modalities: tuple[Modality, ...]
    probabilities: Mapping[str, float]
    valence: float
    arousal: float


@dataclass(frozen=True)
class Manifest:
    """manifest.json. recipe: digest of everything that went into the release, to know it again without building."""

    info: ReleaseInfo
    stages: Mapping[str, StageVersion]
    parity: Sequence[Mapping[str, Any]]
    golden: Sequence[GoldenAnswer]
    versions: Mapping[str, str]
    recipe: str

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        values = json.loads(text)
        if (came := values.pop("format", None)) != FORMAT:
            raise ReleaseError(f"a manifest of format {came} came; this version reads format {FORMAT}")
        values["info"] = ReleaseInfo(**{**values["info"], "labels": tuple(values["info"]["labels"])})
        values["stages"] = {name: StageVersion(**stage) for name, stage in values["stages"].items()}
        values["golden"] = [
            GoldenAnswer(**{**answer, "modalities": tuple(answer["modalities"])}) for answer in values["golden"]
        ]
        return cls(**values)


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

    def verify(self) -> None:
        """ReleaseError unless every file is there with the digest that the manifest names, and nothing else is."""
        for name, stage in self.manifest.stages.items():
            came = _digests(self.stage_folder(name))
            for path in sorted(came.keys() | stage.files.keys()):
                if came.get(path) != stage.files.get(path):
                    raise ReleaseError(
                        f"release {self.number}: {self.stage_folder(name) / path} has sha256 {came.get(path)}, "
                        f"the manifest says {stage.files.get(path)}; export the release again"
                    )


def open_release(store: Path, number: int | None = None) -> Release:
    """A release of the store, the newest by default. Raises ReleaseError."""
    numbers = release_numbers(store)
    if not numbers:
        raise ReleaseError(f"{store} holds no release; make one with `cmt export`")
    chosen = number if number is not None else numbers[-1]
    if chosen not in numbers:
        raise ReleaseError(f"release {chosen} came; {store} holds {', '.join(map(str, numbers))}")
    folder = store / str(chosen)
    return Release(folder, Manifest.from_json((folder / MANIFEST_FILE).read_text()))


def release_numbers(store: Path) -> list[int]:
    """The numbers of the store's releases, oldest first."""
    if not store.is_dir():
        return []
    return sorted(int(p.name) for p in store.iterdir() if p.name.isdigit() and (p / MANIFEST_FILE).is_file())


def find_release(store: Path, recipe: str) -> Release | None:
    """The newest release made by the same recipe and still whole, if any."""
    for number in reversed(release_numbers(store)):
        release = open_release(store, number)
        if release.manifest.recipe == recipe:
            try:
                release.verify()
            except ReleaseError:
                continue
            return release
    return None


@contextlib.contextmanager
def draft_folder(store: Path) -> Iterator[Path]:
    """A folder in the store to build a release in; gone afterwards, whatever happens."""
    store.mkdir(parents=True, exist_ok=True)
    draft = store / f".draft-{os.getpid()}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def release_from_engines(
    store: Path,
    draft: Path,
    info: ReleaseInfo,
    *,
    parity: Sequence[Mapping[str, Any]],
    golden: Sequence[GoldenAnswer],
    versions: Mapping[str, str],
    recipe: str,
) -> Release:
    """Turns `draft`/stages/{stage}/ into the store's next release; info.release is set by the store."""
    earlier = [open_release(store, number) for number in release_numbers(store)]
    number = earlier[-1].number + 1 if earlier else 1
    info = ReleaseInfo(**{**asdict(info), "release": number})
    stages = {name: _stage_version(draft / STAGES_FOLDER / name, name, number, earlier) for name in STAGES}
    manifest = Manifest(info, stages, parity, golden, versions, recipe)
    (draft / MANIFEST_FILE).write_text(manifest.to_json())
    _make_durable(draft)
    folder = store / str(number)
    try:
        draft.rename(folder)  # fails if another export took the number meanwhile
    except OSError as error:
        raise ReleaseError(f"release {number} was made by somebody else meanwhile ({error}); export again") from error
    return Release(folder, manifest)


def _stage_version(folder: Path, name: str, number: int, earlier: Sequence[Release]) -> StageVersion:
    files = _digests(folder)
    digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    for release in earlier:
        known = release.manifest.stages[name]
        if known.digest == digest:
            _share(release.stage_folder(name), folder, files)
            return known
    return StageVersion(number, digest, files)


def _share(source: Path, target: Path, files: Mapping[str, str]) -> None:
    for path in files:
        shared = target / f"{path}.shared"
        with contextlib.suppress(OSError):  # a file system without hard links keeps its copy
            os.link(source / path, shared)
            shared.replace(target / path)


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _make_durable(folder: Path) -> None:
    """Read-only and on the disk: a rename must never become visible before the content it names."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())
