"""Checkpoints in a store, beside the releases: what a training on one machine makes, for another to fetch.

    checkpoints/NAME/ab12...    every file, under its own sha256
    checkpoints/NAME.json       which files it has; written last, so that a checkpoint is there whole or not at all

A name is given once. Nothing that comes from a store is believed: the list is bounded and checked, every file's size
and sha256 compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cmt_engine.engine import sha256_of
from cmt_pipeline.progress import Progress
from cmt_release.manifest import SHA256, path_fault
from cmt_release.objects import Objects, StoreError
from cmt_release.typed_json import parsed, typed

CHECKPOINTS = "checkpoints"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_LIST_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredFile:
    sha256: str
    size: int


@dataclass(frozen=True)
class StoredCheckpoint:
    """files: by path in the checkpoint's folder."""

    files: Mapping[str, StoredFile]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def checked_name(name: str) -> str:
    """ValueError for what is no name of a checkpoint."""
    if not NAME.fullmatch(name):
        raise ValueError(f"checkpoint: got the name {name[:100]!r}; expected letters, digits and any of . _ -")
    return name


def stored_checkpoints(objects: Objects) -> list[str]:
    """The names of the checkpoints that are whole."""
    found = (re.fullmatch(rf"{CHECKPOINTS}/({NAME.pattern})\.json", path) for path in objects.sizes(CHECKPOINTS))
    return sorted(match[1] for match in found if match)


def push_checkpoint(objects: Objects, folder: Path, name: str, progress: Progress) -> bool:
    """Sends a checkpoint's files; whether it wasn't there. StoreError where the name is another's."""
    files = {
        path.relative_to(folder).as_posix(): StoredFile(sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    listed, ours = _list_path(checked_name(name)), StoredCheckpoint(files)
    if objects.size(listed) is None:
        for done, (path, file) in enumerate(files.items()):
            progress(f"sending {path}", done / len(files))
            objects.put(folder / path, f"{CHECKPOINTS}/{name}/{file.sha256}")
        if objects.create(listed, ours.to_json().encode()):
            return True
    if _listed(objects, name) != ours:
        raise StoreError(f"checkpoint {name} of {objects.url} is another one; a name is given once: take another")
    return False


def pull_checkpoint(objects: Objects, name: str, folder: Path, progress: Progress) -> None:
    """Brings a checkpoint into a new folder, which appears whole or not at all."""
    if folder.exists():
        raise ValueError(f"{folder} exists; name a new folder")
    files = _listed(objects, checked_name(name)).files
    draft = folder.with_name(f".{folder.name}-{secrets.token_hex(6)}")
    try:
        for done, (path, file) in enumerate(files.items()):
            progress(f"fetching {path}", done / len(files))
            _fetch(objects, f"{CHECKPOINTS}/{name}/{file.sha256}", file, draft / path)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _list_path(name: str) -> str:
    return f"{CHECKPOINTS}/{name}.json"


def _listed(objects: Objects, name: str) -> StoredCheckpoint:
    path = _list_path(name)
    size = objects.size(path)
    if size is None:
        there = ", ".join(stored_checkpoints(objects)) or "none"
        raise StoreError(f"got checkpoint {name}; {objects.url} holds {there}")
    if size > MAX_LIST_BYTES:
        raise StoreError(f"{objects.url}/{path} has {size:,} bytes, which no list of a checkpoint has; remove it")
    try:
        found = typed(StoredCheckpoint, parsed(b"".join(objects.read(path, size)).decode()), path)
    except ValueError as error:
        raise StoreError(f"{objects.url}/{path}: {error}; remove it and push the checkpoint again") from None
    for inside, file in found.files.items():
        if (fault := path_fault(inside)) or not SHA256.fullmatch(file.sha256) or file.size < 0:
            raise StoreError(f"{objects.url}/{path} names {inside[:100]!r}, which {fault or 'has no digest or size'}")
    return found


def _fetch(objects: Objects, path: str, file: StoredFile, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    try:
        with target.open("xb") as written:
            for piece in objects.read(path, file.size):
                digest.update(piece)
                written.write(piece)
    except FileNotFoundError:
        raise StoreError(f"{objects.url}/{path} is missing; push the checkpoint again") from None
    if target.stat().st_size != file.size or digest.hexdigest() != file.sha256:
        raise StoreError(f"{objects.url}/{path} isn't what its name says; remove it, then push the checkpoint again")
