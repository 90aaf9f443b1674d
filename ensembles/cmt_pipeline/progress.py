"""Progress: how long work says how far along it is."""

from __future__ import annotations

from collections.abc import Callable

#: Called with what is being done, and how far along it is from 0 to 1.
Progress = Callable[[str, float], None]


def no_progress(_: str, __: float) -> None:
    """For work that nobody follows."""


def part_of(progress: Progress, start: float, end: float, name: str = "") -> Progress:
    """The progress of one part, as a share of the whole from `start` to `end`; `name` stands before what it does."""
    prefix = f"{name}: " if name else ""
    return lambda what, done: progress(prefix + what, start + done * (end - start))
