"""Locks that end with their process, however that ends: files that one at a time may hold, folders at work in.

They are flocks: none mistakes a process of another container, or a reused process number, for its own.
A folder that a process locks while it works in it lets others recognise what a killed one left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

DRAFT_PREFIX = ".draft-"
POLL_S = 0.02


class Locked(RuntimeError):
    """Somebody else holds the lock. holder: their process number, where it could be read."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"process {holder} holds the lock")
        self.holder = holder


@contextlib.contextmanager
def only_holder(path: Path, wait_s: float = 0.0) -> Iterator[None]:
    """Holds a lock file. Raises Locked once another holder has had it for wait_s."""
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_s
    with path.open("a+b", buffering=0) as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    raise Locked(file.read().decode(errors="replace").strip() or "?") from None
                time.sleep(POLL_S)
        file.truncate(0)
        with contextlib.suppress(OSError):  # a full disk: the name is for people alone
            file.write(str(os.getpid()).encode())
        yield


def make_once(path: Path, make: Callable[[Path], object]) -> None:
    """Makes a file or folder that isn't there; it appears whole. Who wants it at the same time waits and finds it.

    make: writes what it is given a path for; what a killed one wrote there is gone. On a file system without locks
    nobody waits, and two that make the same thing at the same time may fail.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    with _turn(draft.with_suffix(".lock")):
        if not path.exists():
            _remove(draft)
            try:
                make(draft)
                draft.rename(path)
            finally:
                _remove(draft)


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
    with locked(store / f"{DRAFT_PREFIX}{secrets.token_hex(6)}") as draft:
        try:
            yield draft
        finally:
            shutil.rmtree(draft, ignore_errors=True)


def drafts_of(store: Path) -> list[Path]:
    """The drafts in a store, locked or not."""
    return sorted(store.glob(f"{DRAFT_PREFIX}*"))


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Waits until nobody holds a lock file, holds it, and leaves none."""
    while True:
        with path.open("a") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):  # removed by who held it until now
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file or folder still is what lies there."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove(path: Path) -> None:
    """A file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _lock(folder: Path) -> int:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue
        with contextlib.suppress(OSError):  # without locks nobody removes what others use either
            fcntl.flock(lock, fcntl.LOCK_SH)
        if _is_at(lock, folder):  # else removed between the making and the lock
            return lock
        os.close(lock)
