"""Runs a tritonserver as a child: starts it, waits until every pipeline answers, drains it, leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cmt_pipeline.constants import CONTROL_HEADER, GRPC_PORT, HTTP_PORT, LOOPBACK, METRICS_PORT, PYTHON_STUB
from cmt_pipeline.pipelines import PIPELINES, candidate_of
from cmt_server.binary import find_tritonserver
from cmt_server.control import ControlApi
from cmt_server.errors import ServerError
from cmt_server.repository import Repository

#: Model control loads code, and a registered memory region can be read back: both want the token.
RESTRICTED = "model-repository,shared-memory,trace,logging"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
POLL_S = 0.05
EXIT_TIMEOUT_S = 10.0  # of a drained server; what it still waits for then are requests that Triton leaked
GROUP_TIMEOUT_S = 5.0
PR_SET_PDEATHSIG = 1

#: Called with the number of pipelines that answer and of all there are.
ReadyProgress = Callable[[int, int], None]


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class ServerOptions:
    """A port of 0 takes a free one. work: a folder of the server's own, for its log and backends. trace: file that
    gets the times of every request and of its steps once the server has ended; for measurements, never for long."""

    repository: Path
    work: Path
    host: str = LOOPBACK
    http_port: int = HTTP_PORT
    grpc_port: int = GRPC_PORT
    metrics_port: int = METRICS_PORT
    pipelines: tuple[str, ...] = tuple(PIPELINES)
    model_config_name: str | None = None
    ready_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    control_token: str = field(default_factory=new_token)
    trace: Path | None = None


class TritonServer:
    """A tritonserver of our own; a context manager that starts and stops it."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.http_port, self.grpc_port, self.metrics_port = ports_for(
            options.host, (options.http_port, options.grpc_port, options.metrics_port)
        )
        self.log = options.work / "tritonserver.log"
        self.control = ControlApi(options.host, self.http_port, options.control_token)
        self._process: subprocess.Popen[bytes] | None = None
        self._regions = f"cmt-{os.getpid()}-{self.http_port}-"

    @property
    def http_url(self) -> str:
        return f"http://{self.options.host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{self.options.host}:{self.grpc_port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, progress: ReadyProgress | None = None) -> None:
        """Returns once every pipeline answers. Raises ServerError, with the cause from the log, if one can't."""
        _clean_up_after_the_dead()
        self.options.work.mkdir(parents=True, exist_ok=True)
        binary = find_tritonserver(self.options.work)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [str(binary.path), *self._arguments(), *binary.arguments],
                env={**os.environ, **binary.environment, "PYTHONDONTWRITEBYTECODE": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is ours to handle: drain first
                preexec_fn=_die_with_parent,
            )
        try:
            self._wait_ready(progress)
        except BaseException:
            self.stop(drain=False)
            raise

    def stop(self, drain: bool = True) -> None:
        """Refuses new requests, lets those in flight finish, ends the server and its stubs, removes its memory regions.

        Bounded: draining gets drain_timeout_s, exiting EXIT_TIMEOUT_S; what is still in flight then is given up.
        """
        process = self._process
        if process is None:
            return
        if drain and process.poll() is None:
            with contextlib.suppress(ServerError):
                on_trial = map(candidate_of, self.options.pipelines)
                self.control.drain((*self.options.pipelines, *on_trial), self.options.drain_timeout_s)
        process.terminate()
        try:
            process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _end_group(process.pid)
        for region in SHARED_MEMORY.glob(f"{self._regions}*"):
            region.unlink(missing_ok=True)
        self._process = None

    def check(self) -> None:
        """ServerError if the server has died."""
        process = self._process
        if process is None:
            raise ServerError("the server isn't running")
        if process.poll() is not None:
            raise ServerError(f"tritonserver ended with {process.returncode}; {self._cause()}")

    def _arguments(self) -> list[str]:
        options = self.options
        arguments = {
            "model-control-mode": "explicit",
            "strict-readiness": "false",
            "http-address": options.host,
            "http-port": self.http_port,
            "grpc-address": options.host,
            "grpc-port": self.grpc_port,
            "metrics-address": options.host,
            "metrics-port": self.metrics_port,
            "exit-timeout-secs": int(options.drain_timeout_s),
            "http-restricted-api": f"{RESTRICTED}:{CONTROL_HEADER}={options.control_token}",
            "grpc-restricted-protocol": f"{RESTRICTED}:{CONTROL_HEADER}={options.control_token}",
            "disable-auto-complete-config": None,
        }
        if options.model_config_name:
            arguments["model-config-name"] = options.model_config_name
        flags = [f"--{name}" if value is None else f"--{name}={value}" for name, value in arguments.items()]
        if options.trace:
            settings = (f"triton,file={options.trace}", "rate=1", "level=TIMESTAMPS", "mode=triton")
            flags += [f"--trace-config={setting}" for setting in settings]
        flags += [f"--backend-config=python,shm-region-prefix-name={self._regions}"]
        flags += ["--backend-config=python,stub-timeout-seconds=300"]
        flags += [f"--model-repository={folder}" for folder in Repository(options.repository).model_folders]
        return flags + [f"--load-model={name}" for name in options.pipelines]

    def _wait_ready(self, progress: ReadyProgress | None) -> None:
        deadline = time.monotonic() + self.options.ready_timeout_s
        waiting = list(self.options.pipelines)
        while waiting:
            self.check()
            waiting = [name for name in waiting if not self.control.model_ready(name)]
            if progress:
                progress(len(self.options.pipelines) - len(waiting), len(self.options.pipelines))
            if waiting and time.monotonic() > deadline:
                raise ServerError(
                    f"{', '.join(waiting)} not ready after {self.options.ready_timeout_s:g} s; {self._cause()}"
                )
            time.sleep(POLL_S if waiting else 0)

    def _cause(self) -> str:
        """The last errors of the log, or its end when it holds none. That there is no GPU is no error here."""
        lines = self.log.read_text(errors="replace").splitlines()
        errors = [line.split("] ", 1)[-1].strip() for line in lines if re.match(r"E\d{4} ", line)]
        told = [error for error in dict.fromkeys(errors) if "CUDA" not in error and "CudaDriver" not in error]
        said = told[-5:] or lines[-5:]
        return f"its log {self.log} says: " + " | ".join(said)


def ports_for(host: str, wanted: tuple[int, ...]) -> list[int]:
    """The ports wanted, with a free one for each 0; found together, so that none is given twice."""
    with contextlib.ExitStack() as stack:
        ports = []
        for port in wanted:
            if port == 0:
                listener = stack.enter_context(socket.socket())
                listener.bind((host, 0))
                port = listener.getsockname()[1]
            ports.append(port)
    return ports


def _die_with_parent() -> None:
    """In the child: SIGTERM when the process that started it dies, however it dies."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _clean_up_after_the_dead() -> None:
    """Ends stages' processes and removes memory regions of servers whose supervisor was killed, perhaps in mid-load."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            command, _, region = (process / "cmdline").read_text().split("\0")[:3]
            if Path(command).name == PYTHON_STUB and _is_dead(region):
                os.kill(int(process.name), signal.SIGKILL)
    for region_file in SHARED_MEMORY.glob("cmt-*-*-*"):
        if _is_dead(region_file.name):
            region_file.unlink(missing_ok=True)


def _is_dead(region: str) -> bool:
    """Whether the supervisor that a memory region is named for has ended."""
    name, _, rest = region.partition("-")
    pid = rest.partition("-")[0]
    return name == "cmt" and pid.isdigit() and not Path("/proc", pid).exists()


def _end_group(group: int) -> None:
    """Ends what the server left of its process group: stubs whose server was killed."""
    deadline = time.monotonic() + GROUP_TIMEOUT_S
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(POLL_S)
