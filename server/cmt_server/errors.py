"""Errors of running a server."""

from __future__ import annotations


class ServerError(RuntimeError):
    """tritonserver can't be found, started or stopped; the message carries the cause from its log."""
