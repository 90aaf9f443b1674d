"""Starting real servers in tests."""

from __future__ import annotations

from pathlib import Path

from cmt_release.release import Release
from cmt_server.repository import InstallOptions, Repository
from cmt_server.server import ServerOptions, TritonServer


def server_on(
    release: Release, folder: Path, install: InstallOptions | None = None, drain_timeout_s: float = 10.0
) -> TritonServer:
    """A server, not yet started, on free ports of this machine and a repository of its own."""
    Repository(folder / "repository").install(release, install)
    return TritonServer(
        ServerOptions(
            folder / "repository",
            folder / "server",
            http_port=0,
            grpc_port=0,
            metrics_port=0,
            drain_timeout_s=drain_timeout_s,
        )
    )
