"""The log of a child process: kept from one run to the next, and never larger than said."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

KEEP_FILES = 5  # older ones beside the one that is written
MAX_FILE_BYTES = 8 << 20
PIPE_BYTES = 1 << 20  # a child that logs waits only when this much lies unread
READ_BYTES = 1 << 16
END_TIMEOUT_S = 2.0
POLL_S = 0.1

#: Called with each line that the child writes.
LineReader = Callable[[str], None]


class ChildLog:
    """A pipe that a child writes into, and the thread that moves what comes into a file; a context manager.

    path.1 is the run before, or the part before; KEEP_FILES of them are kept. Each run starts a file of its own, so
    what a crashed run said last is kept. A disk that is full, or read-only, loses lines and never stops the child.
    """

    def __init__(self, path: Path, on_line: LineReader | None = None) -> None:
        self.path = path
        self._on_line = on_line
        self._lock = threading.Lock()

    def __enter__(self) -> ChildLog:
        """Raises OSError when the folder can't be written to."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._turn()
        self._partial, self._written, self._ended = b"", 0, False
        self._file = self.path.open("wb", buffering=0)
        self._read, self.fd = os.pipe()
        with contextlib.suppress(OSError, AttributeError):  # an unprivileged user has a bound on all pipes together
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._thread = threading.Thread(target=self._pump, name=f"log {self.path.name}", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        """Writes what is left; waits END_TIMEOUT_S at most for others that hold the pipe's end."""
        os.close(self.fd)
        self._ended = True
        self._thread.join(END_TIMEOUT_S)
        if not self._thread.is_alive():
            os.close(self._read)
            self._file.close()

    def settle(self) -> None:
        """Returns once what the child has written so far lies in the file."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while time.monotonic() < deadline:
            with self._lock:
                waiting = fcntl.ioctl(self._read, termios.FIONREAD, bytes(4))
            if not int.from_bytes(waiting, "little"):
                return
            time.sleep(0.01)

    def text(self) -> str:
        """What the present file holds; "" when it can't be read."""
        try:
            return self.path.read_text(errors="replace")
        except OSError:
            return ""

    def _pump(self) -> None:
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        while True:
            if not poll.poll(POLL_S * 1e3):
                if self._ended:
                    return
                continue
            with self._lock:
                data = os.read(self._read, READ_BYTES)
                if not data:
                    return
                self._write(data)
            self._tell(data)

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            if self._written + len(data) > MAX_FILE_BYTES:
                self._file.close()
                self._turn()
                self._file = self.path.open("wb", buffering=0)
                self._written = 0
            self._written += len(data)
            self._file.write(data)

    def _tell(self, data: bytes) -> None:
        if self._on_line is None:
            return
        *lines, self._partial = (self._partial + data).split(b"\n")
        self._partial = self._partial[-READ_BYTES:]
        for line in lines:
            self._on_line(line.decode(errors="replace"))

    def _turn(self) -> None:
        """path -> path.1 -> path.2 and so on; the oldest goes."""
        for number in range(KEEP_FILES - 1, -1, -1):
            older = self.path.with_name(f"{self.path.name}.{number + 1}")
            newer = self.path.with_name(f"{self.path.name}.{number}") if number else self.path
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
