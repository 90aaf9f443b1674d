"""The process behind a port of this machine, as /proc shows it to whoever may look."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LISTENING = "0A"  # the state of a socket in /proc/net/tcp
EVERYWHERE = {"00000000", "00000000000000000000000000000000"}
SECRET_FLAGS = ("--http-restricted-api=", "--grpc-restricted-protocol=")
STACK = re.compile(r"^Max stack size\s+(\S+)", re.MULTILINE)
UNLIMITED_STACK_BYTES = 2 << 20  # of a thread, where the process has no limit (glibc on x86-64)


@dataclass(frozen=True)
class Process:
    """stack_bytes: what each of its threads gets; everywhere: ports that it listens on at every address; secrets: the
    flags whose values its command line shows to every user."""

    number: int
    stack_bytes: int
    everywhere: tuple[int, ...]
    secrets: tuple[str, ...]


def process_on(port: int) -> Process | None:
    """The process that listens on a port of this machine; None where it can't be told, as of another user's."""
    sockets = list(_listening())
    inodes = {inode for _, number, inode in sockets if number == port}
    for folder in PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError):
            own = {link.readlink().name for link in (folder / "fd").iterdir() if link.is_symlink()}
            if any(f"socket:[{inode}]" in own for inode in inodes):
                ports = sorted({n for at, n, inode in sockets if at in EVERYWHERE and f"socket:[{inode}]" in own})
                return _process(folder, tuple(ports))
    return None


def _process(folder: Path, everywhere: tuple[int, ...]) -> Process:
    limit = STACK.search((folder / "limits").read_text())
    stack = int(limit[1]) if limit and limit[1].isdigit() else UNLIMITED_STACK_BYTES
    arguments = (folder / "cmdline").read_text().split("\0")
    secrets = {flag.rstrip("=") for flag in SECRET_FLAGS for argument in arguments if argument.startswith(flag)}
    return Process(int(folder.name), stack, everywhere, tuple(sorted(secrets)))


def _listening() -> Iterator[tuple[str, int, str]]:
    """Address in hexadecimal, port and inode of every socket that listens."""
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                address, _, port = fields[1].partition(":")
                if fields[3] == LISTENING:
                    yield address, int(port, 16), fields[9]
