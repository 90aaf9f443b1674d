"""What can go wrong before there is anything to export."""

from __future__ import annotations


class CheckpointError(RuntimeError):
    """A checkpoint can't be made or loaded; the message says why and how to go on."""
