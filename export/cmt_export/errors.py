"""What can go wrong before there is anything to export."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint can't be made or loaded; the message says why and how to go on."""


def first_line(error: Exception) -> str:
    """What a foreign error says, shortened to its first line; its kind where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)
