"""Keeps a server answering: starts it again when it dies, and a stage again when its process dies.

A stage whose process was restarted STAGE_RESTARTS times within WINDOW_S isn't restarted alone any more: the whole
server is. After MAX_RESTARTS of those within WINDOW_S it is given up, with an error, since what dies that often isn't
cured so. Before the second restart within WINDOW_S it waits BACKOFF_S, then each time twice as long, at most
MAX_BACKOFF_S.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from cmt_client import ServiceError
from cmt_pipeline.constants import PYTHON_STUB, TRITON_CONFIG_FILE
from cmt_pipeline.stages import STAGES
from cmt_pipeline.triton_config import VARIANTS_FOLDER, from_pbtxt
from cmt_server.errors import GaveUp, ServerError
from cmt_server.repository import Repository
from cmt_server.server import ReadyProgress, TritonServer

STAGE_RESTARTS = 3
MAX_RESTARTS = 5
WINDOW_S = 600.0
BACKOFF_S = 2.0
MAX_BACKOFF_S = 30.0

#: A stage and its version.
StageVersion = tuple[str, int]


class Supervisor:
    """Looks after a started server. say: called with what happened, for people; progress: of starting it again."""

    def __init__(self, server: TritonServer, say: Callable[[str], None], progress: ReadyProgress | None = None) -> None:
        self._server = server
        self._repository = Repository(server.options.repository)
        self._say = say
        self._progress = progress
        self._restarts: list[float] = []
        self._restart_at: float | None = None
        self._stage_restarts: dict[StageVersion, list[float]] = defaultdict(list)
        self._missing: set[StageVersion] = set()

    def look(self) -> None:
        """One look, to be taken twice a second or so. Raises GaveUp when the server can't be kept up."""
        if self._restart_at is not None:
            if time.monotonic() >= self._restart_at:
                self._restart()
            return
        try:
            self._server.check()
        except ServerError as error:
            self._plan_restart(str(error))
            return
        try:
            worn_out = self._restart_stages()
        except (OSError, ServiceError, ServerError):
            return  # it is dying, or too busy to say: the next look tells
        if worn_out:
            self._plan_restart(f"{worn_out} was started again {STAGE_RESTARTS} times and died again")

    def _plan_restart(self, why: str) -> None:
        """Counts a restart and says when it will be. Raises GaveUp after too many."""
        now = time.monotonic()
        self._restarts = _within_window(self._restarts)
        count = len(self._restarts)
        if count >= MAX_RESTARTS:
            raise GaveUp(f"{why}; the server was started again {count} times within {WINDOW_S:g} s: giving up")
        self._restarts.append(now)
        wait_s = min(BACKOFF_S * 2 ** (count - 1), MAX_BACKOFF_S) if count else 0.0
        when = f"in {wait_s:g} s" if wait_s else "now"
        self._say(f"{why}; starting the server again {when} ({count + 1} of {MAX_RESTARTS} within {WINDOW_S:g} s)")
        self._restart_at = now + wait_s

    def _restart(self) -> None:
        """Starts the server again; a start that fails counts as one more death."""
        self._restart_at = None
        self._server.stop(drain=False)
        self._stage_restarts.clear()
        self._missing = set()
        try:
            with self._repository.starting():
                self._server.start(self._progress)
        except ServerError as error:
            self._plan_restart(str(error))
            return
        self._say("the server answers again")

    def _restart_stages(self) -> str:
        """Starts a stage version again that Triton calls ready and that lacks a process for two looks.

        Seen on Triton 2.51: it never starts a killed process of its python backend again, and refuses every request.
        Returns the name of one that isn't worth another start, else "".
        """
        running = stage_processes(self._server.pid or 0)
        entries = self._server.control.index()
        ready = {(e.name, e.version) for e in entries if e.name in STAGES and e.version and e.state == "READY"}
        gone = {sv for sv in ready if len(running.get(sv, ())) < self._processes_of(sv[0])}
        for stage, version in sorted(gone & self._missing):
            recent = self._stage_restarts[stage, version] = _within_window(self._stage_restarts[stage, version])
            told = f"a process of {stage} (version {version})"
            if len(recent) >= STAGE_RESTARTS:
                return told
            recent.append(time.monotonic())
            self._say(f"{told} died; starting it again ({len(recent)} of {STAGE_RESTARTS} within {WINDOW_S:g} s)")
            self._repository.touch(stage, version)
            self._server.control.load(stage)
        self._missing = gone - self._missing
        return ""

    def _processes_of(self, stage: str) -> int:
        """How many processes each version of a stage has, by its configuration; none outside the python backend."""
        folder = self._repository.stages / stage
        variant = folder / VARIANTS_FOLDER / f"{self._server.options.model_config_name}.pbtxt"
        config = from_pbtxt((variant if variant.is_file() else folder / TRITON_CONFIG_FILE).read_text())
        return sum(group.count or 1 for group in config.instance_group) if config.backend == "python" else 0


def _within_window(times: list[float]) -> list[float]:
    now = time.monotonic()
    return [then for then in times if now - then < WINDOW_S]


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
