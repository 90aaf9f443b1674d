"""Errors of running a server.

ServerError
└── RepositoryError       the repository that it reads can't be changed or read as asked
    └── RepositoryBusy        somebody else is changing it
"""

from __future__ import annotations


class ServerError(RuntimeError):
    """tritonserver can't be found, started or stopped; the message carries the cause from its log."""


class RepositoryError(ServerError):
    """A model repository isn't what it should be; the message names the file and how to go on."""


class RepositoryBusy(RepositoryError):
    """Another process is changing the repository."""
