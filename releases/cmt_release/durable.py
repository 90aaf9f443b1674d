"""Writing so that a kill or a power cut at any moment leaves either what was there or what was meant to be."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, content: bytes, drafts: Path) -> None:
    """Writes a file as a whole; `drafts`, on the same file system, holds it until it is on the disk."""
    draft = drafts / f"{os.getpid()}-{path.name}"
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def publish_folder(path: Path, fill: Callable[[Path], None], drafts: Path) -> None:
    """Makes a folder that appears whole or not at all; one that is in the way is replaced."""
    draft = drafts / f"{os.getpid()}-{path.name}"
    remove_folder(draft)
    draft.mkdir(parents=True)
    fill(draft)
    sync_tree(draft)
    if path.is_dir():
        remove_folder(path, drafts)
    draft.rename(path)
    sync(path.parent)


def point_link(link: Path, target: str) -> None:
    """Lets a symbolic link point elsewhere, in one step."""
    draft = link.with_name(f".{link.name}-link-{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.replace(link)
    sync(link.parent)


def remove_folder(path: Path, drafts: Path | None = None) -> None:
    """Removes a folder; by way of `drafts` nobody ever sees half of it. Silent if it isn't there."""
    if drafts is not None and path.is_dir():
        gone = drafts / f"{os.getpid()}-gone-{path.name}"
        shutil.rmtree(gone, ignore_errors=True)
        path.rename(gone)
        path = gone
    shutil.rmtree(path, ignore_errors=True)


def sync_tree(folder: Path) -> None:
    """Everything in a folder is on the disk afterwards."""
    for parent, _, files in os.walk(folder):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """What a folder names, or a file holds, is on the disk afterwards."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
