"""What a server's processes use: memory and processor time; and their end."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psutil


def memory_mb(server: int) -> float:
    """Proportional set size of a process and its descendants together: what they share counts once."""
    total = 0
    for process in _family(server):
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def cpu_seconds(server: int) -> float:
    """Processor time that a process and its living descendants have used so far."""
    total = 0.0
    for process in _family(server):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def stop(server: int, timeout_s: float) -> None:
    """Asks a process to end, and kills what is left of it and its descendants, whatever sessions they made.

    The caller waits for the process itself, as its parent.
    """
    family = list(_family(server))
    with contextlib.suppress(psutil.Error):
        psutil.Process(server).terminate()
    _, left = psutil.wait_procs(family, timeout_s)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout_s)


def _family(server: int) -> Iterator[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(server)
        yield parent
        yield from parent.children(recursive=True)
