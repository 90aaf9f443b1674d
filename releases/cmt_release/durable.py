"""Writing so that a kill or a power cut at any moment leaves either what was there or what was meant to be."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2


def replace_file(path: Path, content: bytes, drafts: Path) -> None:
    """Writes a file as a whole; `drafts`, on the same file system, holds it until it is on the disk."""
    draft = drafts / draft_name(path.name)
    with draft.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)


def publish_folder(path: Path, fill: Callable[[Path], None], drafts: Path) -> None:
    """Makes a folder that appears whole or not at all; one that is in the way is replaced."""
    draft = drafts / draft_name(path.name)
    draft.mkdir(parents=True)
    fill(draft)
    sync_tree(draft)
    if path.is_dir():
        exchange(draft, path)
        shutil.rmtree(draft, ignore_errors=True)
    else:
        draft.rename(path)
    sync(path.parent)


def point_link(link: Path, target: str, drafts: Path) -> None:
    """Lets a symbolic link point elsewhere, in one step."""
    draft = drafts / draft_name(link.name)
    draft.symlink_to(target)
    draft.replace(link)
    sync(link.parent)


def remove_folder(path: Path, drafts: Path | None = None) -> None:
    """Removes a folder; by way of `drafts` nobody ever sees half of it. Silent if it isn't there."""
    if drafts is not None and path.is_dir():
        gone = drafts / draft_name(path.name)
        path.rename(gone)
        path = gone
    shutil.rmtree(path, ignore_errors=True)


def exchange(a: Path, b: Path) -> None:
    """Lets two folders of one file system change places, in one step.

    A file system that can't do that (NFS) makes it two steps, between which `a` isn't there.
    """
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    if rename(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) != 0:
        if ctypes.get_errno() not in (errno.EINVAL, errno.ENOSYS, errno.EXDEV):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(a), None, str(b))
        aside = a.with_name(draft_name(a.name))
        a.rename(aside)
        b.rename(a)
        aside.rename(b)
    sync(a.parent)
    sync(b.parent)


def draft_name(name: str) -> str:
    """Of something under way to become `name`: never the same twice, whatever container the process is in."""
    return f".{name}-{secrets.token_hex(6)}"


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
