"""Exports that the tests share, also between processes and runs: `.cmt/tests` keeps each by what it was made from."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from cmt_cli.export import golden_sample
from cmt_export.export import ExportOptions, _onnx_key, export
from cmt_pipeline.progress import no_progress
from cmt_release.locks import draft_folder, locked, remove_unlocked
from cmt_release.release import Release, release_from_engines
from tiny_model import TEXT_ENCODER

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".cmt" / "tests"
KEPT = 6  # models, of which a few are in use at a time


def exported(options: ExportOptions, stack: contextlib.ExitStack) -> tuple[Release, Path]:
    """A release, only to be read, and the folder of its ONNX files; `stack` says for how long they are in use."""
    key = _key(options)
    stack.enter_context(locked(CACHE / key))
    with _alone(CACHE / f"{key}.lock"):
        release, built = export(options, CACHE / key, golden_sample(), no_progress)
    if built:
        _forget_the_oldest()
    return release, CACHE / key / ".onnx" / _onnx_key(options)


def add_to(store: Path, release: Release) -> Release:
    """A copy of the release as the next one of another store."""
    manifest = release.manifest
    with draft_folder(store) as draft:
        shutil.copytree(release.folder, draft, dirs_exist_ok=True)
        (draft / "manifest.json").unlink()
        return release_from_engines(
            store,
            draft,
            manifest.info,
            features=manifest.features,
            published=manifest.published,
            parity=manifest.parity,
            golden=manifest.golden,
            golden_tolerance=manifest.golden_tolerance,
            preprocess=manifest.preprocess,
            versions=manifest.versions,
            recipe=manifest.recipe,
            source=manifest.source,
        )


def _key(options: ExportOptions) -> str:
    """What the ONNX files depend on, the form of a release, and what makes the `tiny` preset."""
    files = [*sorted((ROOT / "releases").rglob("*.py")), *sorted(TEXT_ENCODER.iterdir())]
    digest = hashlib.sha256(_onnx_key(options).encode())
    for path in (*files, Path(__file__).with_name("tiny_model.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def _alone(file: Path) -> Iterator[None]:
    """One process at a time."""
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _forget_the_oldest() -> None:
    """A change of the source makes other keys: those of before are of no use for long."""
    stores = sorted((path for path in CACHE.iterdir() if path.is_dir()), key=os.path.getmtime, reverse=True)
    for folder in remove_unlocked(stores[KEPT:]):
        folder.with_suffix(".lock").unlink(missing_ok=True)
