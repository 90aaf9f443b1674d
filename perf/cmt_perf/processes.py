"""What the processes of a session use: memory and processor time, from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

SESSION, USER_TICKS, SYSTEM_TICKS = 3, 11, 12  # fields of /proc/PID/stat after the command's name


def memory_mb(session: int) -> float:
    """Proportional set size of all processes of a session together: what they share counts once."""
    total_kb = 0
    for process, _ in _members(session):
        with contextlib.suppress(OSError):
            rollup = (process / "smaps_rollup").read_text()
            total_kb += next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    return total_kb / 1024


def cpu_seconds(session: int) -> float:
    """Processor time that the living processes of a session have used so far."""
    ticks = sum(int(fields[USER_TICKS]) + int(fields[SYSTEM_TICKS]) for _, fields in _members(session))
    return ticks / os.sysconf("SC_CLK_TCK")


def _members(session: int) -> Iterator[tuple[Path, list[str]]]:
    """The folder in /proc of each process of a session, and the fields of its `stat`."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if int(fields[SESSION]) == session:
                yield process, fields
