"""Objects at a URL: what a store of releases needs of a file system, the same for folders, S3 and Google Cloud Storage.

    StoreError(ReleaseError)   everything that a file system raises, with the object's URL

A write is seen whole or not at all: object stores give that for each object; in a folder a draft is written, synced
and renamed. Errors of a remote file system that may pass are tried again, a bounded number of times.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

import fsspec
from fsspec.core import split_protocol
from tenacity import Retrying, retry_if_exception, stop_after_attempt, stop_after_delay, wait_random_exponential

from cmt_release.durable import sync
from cmt_release.manifest import ReleaseError

T = TypeVar("T")

#: Protocols and the extra that brings their file system.
EXTRAS = {"file": "", "memory": "", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
LOCAL = ("file", "memory")
CHUNK_BYTES = 16 << 20
DRAFTS = "drafts"

#: s3fs tries a request again by itself, and each part of a large file; botocore below it needn't.
S3_OPTIONS = {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"total_max_attempts": 1}}}

PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    TypeError,
    AttributeError,
    NotImplementedError,
    ReleaseError,
)
PERMANENT_NAMES = ("NoCredentialsError", "ParamValidationError")  # of botocore, which isn't loaded without s3fs


class StoreError(ReleaseError):
    """A store can't be reached, isn't sound or refuses; the message says what was got and how to go on."""


@dataclass(frozen=True)
class Retries:
    """Of one operation on a remote file system: tries in all, the longest pause and when no other try begins."""

    attempts: int = 4
    max_pause_s: float = 8.0
    deadline_s: float = 60.0


DEFAULT_RETRIES = Retries()


@dataclass(frozen=True)
class Objects:
    """Objects below `root` of a file system, by relative path. folder: the root where it is one of this machine."""

    fs: Any
    root: str
    url: str
    folder: Path | None = None
    retries: Retries | None = field(default=DEFAULT_RETRIES)

    def sizes(self, prefix: str) -> dict[str, int]:
        """Bytes of every object below a prefix, by path."""
        place, folder = self._place(prefix), self.folder
        if folder is not None:
            return self._call("listed", prefix, lambda: _sizes_of_files(folder, prefix))
        with contextlib.suppress(FileNotFoundError):
            found = self._call("listed", prefix, lambda: self.fs.find(place, detail=True))
            return {name[len(self.root) + 1 :]: int(info["size"] or 0) for name, info in sorted(found.items())}
        return {}

    def size(self, path: str) -> int | None:
        """Bytes of an object, None where there is none."""
        place = self._place(path)
        with contextlib.suppress(FileNotFoundError):
            info = self._call("looked up", path, lambda: self.fs.info(place))
            return int(info["size"] or 0) if info["type"] == "file" else None
        return None

    def age_s(self, path: str) -> float:
        """Seconds since an object was written; 0 where it is gone."""
        place = self._place(path)
        with contextlib.suppress(FileNotFoundError):
            written: datetime = self._call("looked up", path, lambda: self.fs.modified(place))
            if written.tzinfo is None:
                written = written.replace(tzinfo=timezone.utc)
            return (datetime.now(timezone.utc) - written).total_seconds()
        return 0.0

    def read(self, path: str, size: int) -> Iterator[bytes]:
        """An object's first `size` bytes, in pieces. Raises StoreError, and FileNotFoundError where there is none."""
        place = self._place(path)
        for start in range(0, size, CHUNK_BYTES):
            yield self._call("read", path, self._piece(place, start, min(start + CHUNK_BYTES, size)))

    def put(self, source: Path, path: str) -> None:
        """Writes a file's content, over whatever is there."""
        place, size = self._place(path), source.stat().st_size

        def send() -> None:
            if self.folder is not None:
                self._write(path, lambda draft: shutil.copyfile(source, draft), os.replace)
            else:
                self.fs.put_file(str(source), place)

        self._write_call(path, send)
        if (got := self.size(path)) != size:
            raise StoreError(f"{self.url}/{path} has {got} bytes after {size} were sent; push again")

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object that must not be there yet; whether it wasn't."""
        place = self._place(path)
        if self.size(path) is not None:
            return False

        def write() -> None:
            if self.folder is not None:
                self._write(path, lambda draft: draft.write_bytes(data), _rename_new)
            else:
                self.fs.pipe_file(place, data, mode="create")

        try:
            self._write_call(path, write)
        except FileExistsError:
            return False
        return True

    def delete(self, path: str) -> None:
        """Removes an object; that it is gone already is fine."""
        place = self._place(path)
        with contextlib.suppress(FileNotFoundError):
            self._call("removed", path, lambda: self.fs.rm_file(place))

    def _place(self, path: str) -> str:
        if self.folder is not None and os.path.realpath(self.folder / path) != str(self.folder / path):
            raise StoreError(f"{self.url}/{path} is a symlink or lies behind one; expected plain files and folders")
        return f"{self.root}/{path}"

    def _piece(self, place: str, start: int, end: int) -> Callable[[], bytes]:
        return lambda: self.fs.cat_file(place, start=start, end=end)

    def _write(self, path: str, fill: Callable[[Path], object], name: Callable[[Path, Path], object]) -> None:
        """A draft beside the objects, on the disk before it gets its name."""
        assert self.folder is not None
        draft, target = self.folder / DRAFTS / secrets.token_hex(8), self.folder / path
        for parent in (draft.parent, target.parent):
            parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(draft)
            sync(draft)
            name(draft, target)
        finally:
            draft.unlink(missing_ok=True)
        for parent in target.parents[: len(Path(path).parts)]:
            sync(parent)

    def _write_call(self, path: str, operation: Callable[[], object]) -> None:
        try:
            self._call("written", path, operation)
        except FileNotFoundError as error:
            raise StoreError(f"{self.url} can't be written ({error}); make the bucket or folder first") from error

    def _call(self, what: str, path: str, operation: Callable[[], T]) -> T:
        """The one seam where a file system's errors become StoreError; FileNotFoundError and FileExistsError pass."""
        try:
            if self.retries is None:
                return operation()
            return Retrying(
                stop=stop_after_attempt(self.retries.attempts) | stop_after_delay(self.retries.deadline_s),
                wait=wait_random_exponential(multiplier=0.25, max=self.retries.max_pause_s),
                retry=retry_if_exception(_may_pass),
                reraise=True,
            )(operation)
        except (FileNotFoundError, FileExistsError, ReleaseError):
            raise
        except Exception as error:  # every file system raises kinds of its own
            tried = f", tried {self.retries.attempts} times at most" if self.retries and _may_pass(error) else ""
            raise StoreError(
                f"{self.url}/{path} can't be {what}: {type(error).__name__}: {error}{tried}; "
                "check the URL, the network and the credentials"
            ) from error


def open_objects(url: str, retries: Retries = DEFAULT_RETRIES) -> Objects:
    """The objects at a URL: a path, file://, s3://, gs:// or memory://. Raises StoreError."""
    protocol = split_protocol(url)[0] or "file"
    if protocol not in EXTRAS or "::" in url:
        raise StoreError(f"store: got {url!r}; expected a folder, file://, s3://BUCKET/... or gs://BUCKET/...")
    options = S3_OPTIONS if protocol in ("s3", "s3a") else {}
    try:
        fs, root = fsspec.url_to_fs(url, use_listings_cache=False, skip_instance_cache=True, **options)
    except ImportError as error:
        raise StoreError(f'{protocol}:// needs a package: pip install "cmt-triton[{EXTRAS[protocol]}]"') from error
    except Exception as error:  # every file system raises kinds of its own
        raise StoreError(f"store {url} can't be opened: {type(error).__name__}: {error}") from error
    if not root.strip("/"):
        raise StoreError(f"store: got {url!r}, which names no folder or bucket")
    if protocol == "file":
        folder = Path(root).resolve()
        return Objects(fs, str(folder), str(folder), folder, None)
    return Objects(fs, root.rstrip("/"), url.rstrip("/"), None, None if protocol in LOCAL else retries)


def _may_pass(error: BaseException) -> bool:
    """Whether to try again: file systems raise many kinds, so all but those that certainly stay."""
    return (
        isinstance(error, Exception)
        and not isinstance(error, PERMANENT)
        and type(error).__name__ not in PERMANENT_NAMES
    )


def _sizes_of_files(folder: Path, prefix: str) -> dict[str, int]:
    """fsspec's own listing passes over folders that can't be read; whoever prunes by it would lose what is there."""

    def raise_unless_gone(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise error

    found = {}
    for parent, _, names in os.walk(folder / prefix, onerror=raise_unless_gone):
        for path in (Path(parent, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                found[path.relative_to(folder).as_posix()] = path.lstat().st_size
    return dict(sorted(found.items()))


def _rename_new(draft: Path, target: Path) -> None:
    """Gives a draft its name unless that is taken: FileExistsError."""
    try:
        os.link(draft, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(target) from None
        draft.rename(target)
