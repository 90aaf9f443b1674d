"""Keeps a server answering: starts it again when it dies, and a stage again when its process dies."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from cmt_pipeline.constants import PYTHON_STUB
from cmt_pipeline.stages import STAGES
from cmt_server.errors import ServerError
from cmt_server.repository import Repository
from cmt_server.server import TritonServer

MENDS = 5  # within MENDS_WINDOW_S, before giving up: what dies that often isn't mended by starting it again
MENDS_WINDOW_S = 600.0

#: A stage and its version.
StageVersion = tuple[str, int]


class Supervisor:
    """Looks after a started server. say: called with what happened, for people."""

    def __init__(self, server: TritonServer, say: Callable[[str], None]) -> None:
        self._server = server
        self._repository = Repository(server.options.repository)
        self._say = say
        self._mends: list[float] = []
        self._seen: set[StageVersion] = set()
        self._missing: set[StageVersion] = set()

    def look(self) -> None:
        """One look, to be taken twice a second or so. Raises ServerError when the server can't be kept up."""
        try:
            self._server.check()
        except ServerError as error:
            self._restart(error)
            return
        try:
            self._mend_stages()
        except (OSError, ServerError):
            return  # it is dying, or too busy to say: the next look tells

    def _restart(self, error: ServerError) -> None:
        self._count_mend(error)
        self._say(f"{error}; starting it again")
        live = self._repository.live()
        if live is not None:  # what an upgrade was loading when the server died must not keep it from starting
            self._repository.load_only([live.release])
        self._server.stop(drain=False)
        self._server.start()
        self._seen, self._missing = set(), set()

    def _mend_stages(self) -> None:
        """Starts a stage version again that Triton calls ready and whose process is gone for two looks.

        Seen on Triton 2.51: it never starts a killed process of its python backend again, and refuses every request.
        """
        running = stage_processes(self._server.pid or 0)
        entries = self._server.control.index()
        ready = {(e["name"], int(e["version"])) for e in entries if e["name"] in STAGES and e.get("state") == "READY"}
        gone = (ready & self._seen) - running.keys()
        for stage, version in sorted(gone & self._missing):
            self._count_mend(ServerError(f"the process of {stage} (version {version}) died"))
            self._say(f"the process of {stage} (version {version}) died; starting it again")
            self._repository.touch(stage, version)
            self._server.control.load(stage)
        self._seen = (self._seen & ready) | running.keys()
        self._missing = gone - self._missing

    def _count_mend(self, error: ServerError) -> None:
        now = time.monotonic()
        self._mends = [then for then in self._mends if now - then < MENDS_WINDOW_S]
        if len(self._mends) >= MENDS:
            raise ServerError(f"{error}; that was mended {MENDS} times in {MENDS_WINDOW_S:g} s, giving up")
        self._mends.append(now)


def stage_processes(server: int) -> dict[StageVersion, list[int]]:
    """The python backend's living processes of a server, by the stage version that they run."""
    found: dict[StageVersion, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # state and parent follow the command's name, which may hold anything, in brackets
            state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
            if int(parent) != server or state == "Z":
                continue
            arguments = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue  # it ended meanwhile
        if Path(arguments[0]).name == PYTHON_STUB:
            folder = Path(arguments[1]).parent
            found.setdefault((folder.parent.name, int(folder.name)), []).append(int(process.name))
    return found
