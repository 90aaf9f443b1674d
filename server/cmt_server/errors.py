"""Errors of running a server.

ServerError
├── PortTaken             another process answers where the server was to
├── GaveUp                what died again and again isn't started any more
└── RepositoryError       the repository that it reads can't be changed or read as asked
    └── RepositoryBusy        somebody else is changing it
"""

from __future__ import annotations


class ServerError(RuntimeError):
    """tritonserver can't be found, started or stopped; the message carries the cause from its log."""


class PortTaken(ServerError):
    """Another process answers on a port of the server."""


class GaveUp(ServerError):
    """The server, or a stage of it, died again and again; the message says how often. exit_status: of a command."""

    exit_status = 3


class RepositoryError(ServerError):
    """A model repository isn't what it should be; the message names the file and how to go on."""


class RepositoryBusy(RepositoryError):
    """Another process is changing the repository."""
