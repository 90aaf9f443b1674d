"""Where a machine keeps its releases, the repository that is served and the server's own files."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from cmt_pipeline.constants import GRPC_PORT, LOOPBACK, STATE_VARIABLE

#: The --state option of every verb that needs it.
StateOption = Annotated[
    Path, typer.Option("--state", envvar=STATE_VARIABLE, help="Folder of releases and of what is served.")
]
DEFAULT_STATE = Path(".cmt")
DEFAULT_URL = f"grpc://{LOOPBACK}:{GRPC_PORT}"


@dataclass(frozen=True)
class RunningServer:
    """server.json: how to reach the server that runs on this state. Readable by its owner alone: it has the token.

    pid: of the process that supervises it.
    """

    pid: int
    http_url: str
    grpc_url: str
    metrics_url: str
    control_token: str


@dataclass(frozen=True)
class State:
    """The layout of a state folder."""

    root: Path

    @property
    def releases(self) -> Path:
        return self.root / "releases"

    @property
    def repository(self) -> Path:
        return self.root / "repository"

    @property
    def server(self) -> Path:
        return self.root / "server"

    @property
    def server_file(self) -> Path:
        return self.root / "server.json"

    def announce(self, server: RunningServer) -> None:
        draft = self.server_file.with_name(f".server-{secrets.token_hex(6)}.json")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(asdict(server), file)
        draft.replace(self.server_file)

    def running(self) -> RunningServer | None:
        """The server that was announced and whose process is alive."""
        try:
            server = RunningServer(**json.loads(self.server_file.read_text()))
            os.kill(server.pid, 0)
        except (OSError, ValueError, TypeError):
            return None
        return server

    def url(self, given: str | None) -> str:
        """The URL given, else that of the server running here, else Triton's usual gRPC port on this machine."""
        if given:
            return given
        running = self.running()
        return running.grpc_url if running else DEFAULT_URL
