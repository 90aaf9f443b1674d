"""Stores in tests: processes that push and pull and are killed, and what disks do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from cmt_release.store import Store

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from cmt_release import locks, objects, release as release_module
from cmt_release.objects import Objects
from cmt_release.release import open_release
from cmt_release.store import Store, StoreError, open_store

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after(calls, owner, name):
    right, left = getattr(owner, name), [calls]
    def counted(*arguments, **options):
        left[0] -= 1
        return right(*arguments, **options) if left[0] >= 0 else die()
    setattr(owner, name, counted)

def half_a_copy(source, target):
    Path(target).write_bytes(Path(source).read_bytes()[:3])
    die()

MOMENTS = {
    "at once": lambda: die_after(0, Objects, "put"),
    "after some blobs": lambda: die_after(4, Objects, "put"),
    "within a blob": lambda: setattr(objects.shutil, "copyfile", half_a_copy),
    "before a blob has its name": lambda: setattr(objects.os, "replace", die),
    "before the manifest": lambda: setattr(Objects, "create", die),
    "before the manifest has its name": lambda: setattr(objects, "_rename_new", die),
    "after the manifest": lambda: die_after(1, Store, "_send_missing"),
    "before a file came": lambda: die_after(0, Store, "_fetch"),
    "after some files": lambda: die_after(4, Store, "_fetch"),
    "before the release has its name": lambda: setattr(release_module, "_make_durable", die),
}
what, moment, url, folder = sys.argv[1:]
if moment in MOMENTS:
    MOMENTS[moment]()
else:
    while time.time() < float(moment):
        pass
try:
    done = open_store(url).push(open_release(Path(folder))) if what == "push" else open_store(url).pull(Path(folder))
    print("done")
except StoreError as error:
    print(error)
"""


def run(what: str, moment: str, url: str, folder: Path) -> subprocess.Popen[str]:
    """A push or pull in another process, which dies at a moment or begins at a time."""
    program = f"import sys; sys.path[:0] = {[path for path in sys.path if path]}\n{PROGRAM}"
    return subprocess.Popen(
        [sys.executable, "-c", program, what, moment, url, str(folder)], stdout=subprocess.PIPE, text=True
    )


def killed(what: str, moment: str, url: str, folder: Path) -> None:
    process = run(what, moment, url, folder)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"it wasn't killed {moment}"


def damage(store: Store, path: str, content: bytes | None) -> None:
    place = store.objects._place(path)
    store.objects.fs.rm_file(place)
    if content is not None:
        store.objects.fs.pipe_file(place, content)


def age(store: Store, seconds: float) -> None:
    """As if all objects had been written so long ago."""
    assert store.objects.folder is not None
    for path in store.objects.folder.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)
