"""Folders that a process locks while it works in them, so that others recognise what a killed one left behind.

A lock is a flock on the folder itself. It ends with its process however that ends, and it doesn't mistake a
process of another container, or a reused process number, for its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

DRAFT_PREFIX = ".draft-"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[Path]:
    """Makes a folder and locks it (shared: several may lock the same one)."""
    lock = _lock(folder)
    try:
        yield folder
    finally:
        os.close(lock)


def remove_unlocked(folders: Iterable[Path], *, dry_run: bool = False) -> list[Path]:
    """Removes the folders that nobody locks, and names them; `dry_run` only names them."""
    removed = []
    for folder in folders:
        with contextlib.suppress(OSError):  # gone meanwhile, or a file system that has no locks: left alone
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if not dry_run:
                    shutil.rmtree(folder)
                removed.append(folder)
            finally:
                os.close(lock)
    return removed


@contextlib.contextmanager
def draft_folder(store: Path) -> Iterator[Path]:
    """A folder in the store to build a release in; gone afterwards, whatever happens.

    Drafts of processes that died are removed on the way.
    """
    remove_unlocked(drafts_of(store))
    with locked(store / f"{DRAFT_PREFIX}{os.getpid()}-{secrets.token_hex(4)}") as draft:
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def drafts_of(store: Path) -> list[Path]:
    """The drafts in a store, locked or not."""
    return sorted(store.glob(f"{DRAFT_PREFIX}*"))


def _lock(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # without locks nobody removes what others use either
            fcntl.flock(lock, fcntl.LOCK_SH)
        with contextlib.suppress(FileNotFoundError):  # removed between the making and the lock
            if os.path.samestat(os.fstat(lock), folder.stat()):
                return lock
        os.close(lock)
