"""Runs a tritonserver as a child: starts it, waits until every pipeline answers, drains it, leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import subprocess
import time
from collections.abc import Callable

from cmt_client import ModelControl, ServiceError
from cmt_server.advisories import CURRENT_CONTAINER, open_advisories
from cmt_server.binary import find_tritonserver, tritonserver_version
from cmt_server.child import POLL_S, clean_up_after_the_dead, end_group, remove_regions, stack_bytes, start_child
from cmt_server.child_log import ChildLog, LineReader
from cmt_server.draining import finish_requests, open_door
from cmt_server.errors import PortTaken, ServerError
from cmt_server.options import TRACE_TIMEOUT_S, ServerOptions, command_line, is_local, new_token, secret_flags
from cmt_server.ports import check_free, ports_for, server_name
from cmt_server.preload import hidden

__all__ = ["ServerOptions", "TritonServer", "new_token", "ports_for"]

#: Of a drained server. Seen on Triton 2.51: told to exit while refused requests pour in, it aborts and then hangs.
EXIT_TIMEOUT_S = 5.0
#: Of a server that says it crashed. Seen on Triton 2.51: it writes down where, for which it takes memory; a crash that
#: left the memory's lock taken thus ends in a process that neither answers nor dies.
CRASH_TIMEOUT_S = 5.0
CRASHED = re.compile(r"Signal \((6|11)\) received")

#: Of the stages' processes, where the caller's says nothing else. They share the cores: threads of OpenMP that spin
#: while they wait for each other, as they do by default, take them from the other encoders. AOTInductor's stages are
#: several times as slow then.
STAGES_ENVIRONMENT = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_WAIT_POLICY": "PASSIVE"}

#: Called with the number of pipelines that answer and of all there are; what it raises ends the start.
ReadyProgress = Callable[[int, int], None]


class TritonServer:
    """A tritonserver of our own; a context manager that starts and stops it."""

    def __init__(self, options: ServerOptions, on_log_line: LineReader | None = None) -> None:
        """on_log_line: gets each line of tritonserver's log, which a file of `work` gets too.

        Raises ServerError for a port that is taken, or a host that this tritonserver had better not listen on.
        """
        check_exposure(options)
        self.options = options
        self.http_port, self.grpc_port, self.metrics_port = ports_for(options.host, list(options.ports.values()))
        self.control = ModelControl(self.http_url, token=options.control_token)
        self.name = f"cmt-{secrets.token_hex(8)}"
        self._on_log_line = on_log_line
        self._crashed_at: float | None = None
        self._log = ChildLog(options.work / "tritonserver.log", self._read_line)
        self.log = self._log.path
        self.notes: tuple[str, ...] = ()
        self._running = contextlib.ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._regions = f"cmt-{os.getpid()}-{self.http_port}-"
        self.check_ports()

    @property
    def http_url(self) -> str:
        return f"http://{self.options.host}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"{'grpcs' if self.options.tls else 'grpc'}://{self.options.host}:{self.grpc_port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def __enter__(self) -> TritonServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check_ports(self) -> None:
        """Raises ServerError for a port that somebody listens on."""
        check_free(self.options.host, {"HTTP": self.http_port, "gRPC": self.grpc_port, "metrics": self.metrics_port})

    def start(self, progress: ReadyProgress | None = None) -> None:
        """Returns once every pipeline answers. Raises ServerError, with the cause from the log, if one can't."""
        self.check_ports()
        clean_up_after_the_dead()
        try:
            self._start_child()
            self._wait_ready(progress)
        except BaseException:
            self.stop(drain=False)
            raise

    def _start_child(self) -> None:
        """notes: what this machine doesn't let the child have."""
        try:
            self.options.work.mkdir(parents=True, exist_ok=True)
            binary = find_tritonserver(self.options.work)
            self._running.enter_context(self._log)
            self._crashed_at = None
            stack, lessened = stack_bytes()
            ports = {"HTTP": self.http_port, "gRPC": self.grpc_port, "metrics": self.metrics_port}
            open_flags = command_line(self.options, ports, self.name, self._regions)
            last, first = hidden(secret_flags(self.options)) if binary.hides else (secret_flags(self.options), {})
            command = [str(binary.path), *open_flags, *binary.arguments, *last]
            self._process = start_child(
                command,
                first | binary.environment | open_door(self.options.work) | STAGES_ENVIRONMENT,
                self._log.fd,
                stack,
            )
        except OSError as error:
            raise ServerError(f"tritonserver can't be started in {self.options.work}: {error}") from error
        self.notes = (
            *([f"form bodies of {stack >> 21} MiB and more end the server: {lessened}"] if lessened else []),
            *([] if binary.hides else ["every user of this machine can read the control token in the process list"]),
        )

    def stop(self, drain: bool = True) -> None:
        """Refuses new requests, lets those in flight finish, ends the server and its stubs, removes its memory regions.

        Bounded: draining gets drain_timeout_s, exiting EXIT_TIMEOUT_S; what is still in flight then is given up.
        Without draining the server is killed.
        """
        with self._running:
            process = self._process
            if process is None:
                return
            if drain and process.poll() is None and self._is_ours():
                with contextlib.suppress(ServerError):
                    finish_requests(
                        self.options.work, self.options.host, self.metrics_port, self.options.drain_timeout_s
                    )
            if drain:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(EXIT_TIMEOUT_S + (TRACE_TIMEOUT_S if self.options.trace else 0))
            process.kill()
            process.wait()
            end_group(process.pid)
            remove_regions(self._regions)
            self._process = None

    def check(self) -> None:
        """ServerError if the server has died; one that hangs in its crash is ended."""
        process = self._process
        if process is None:
            raise ServerError("the server isn't running")
        if process.poll() is not None:
            raise ServerError(f"tritonserver ended with {process.returncode}; {self._cause()}")
        if self._crashed_at is not None and time.monotonic() - self._crashed_at > CRASH_TIMEOUT_S:
            process.kill()
            process.wait()
            raise ServerError(f"tritonserver crashed and hung for {CRASH_TIMEOUT_S:g} s; {self._cause()}")

    def _read_line(self, line: str) -> None:
        if self._crashed_at is None and CRASHED.match(line):
            self._crashed_at = time.monotonic()
        if self._on_log_line:
            self._on_log_line(line)

    def _is_ours(self) -> bool:
        return server_name(self.options.host, self.http_port) == self.name

    def _wait_ready(self, progress: ReadyProgress | None) -> None:
        deadline = time.monotonic() + self.options.ready_timeout_s
        waiting, ours = list(self.options.pipelines), False
        while waiting:
            self.check()
            ours = ours or self._answers()
            waiting = [name for name in waiting if not (ours and self._is_ready(name))]
            if progress:
                progress(len(self.options.pipelines) - len(waiting), len(self.options.pipelines))
            if waiting and time.monotonic() > deadline:
                raise ServerError(
                    f"{', '.join(waiting)} not ready after {self.options.ready_timeout_s:g} s; {self._cause()}"
                )
            time.sleep(POLL_S if waiting else 0)

    def _is_ready(self, pipeline: str) -> bool:
        """A server that dies meanwhile is found out by `check`."""
        with contextlib.suppress(ServiceError):
            return self.control.ready(pipeline)
        return False

    def _answers(self) -> bool:
        """Whether the child answers on its port. PortTaken if somebody else does."""
        name = server_name(self.options.host, self.http_port)
        if name not in (None, self.name):
            raise PortTaken(
                f"HTTP port {self.http_port} of {self.options.host} was taken by another server"
                f"{f' ({name})' if name else ''} while this one started; stop it, or choose another port"
            )
        return name == self.name

    def _cause(self) -> str:
        """The last errors of the log, or its end when it holds none. That there is no GPU is no error here."""
        self._log.settle()
        lines = self._log.text().splitlines()
        errors = [line.split("] ", 1)[-1].strip() for line in lines if re.match(r"E\d{4} ", line)]
        told = [error for error in dict.fromkeys(errors) if "CUDA" not in error and "CudaDriver" not in error]
        said = told[-5:] or lines[-5:]
        return f"its log {self.log} says: " + " | ".join(said)


def check_exposure(options: ServerOptions) -> None:
    """Raises ServerError where strangers would reach a tritonserver with published faults, unless that is accepted."""
    if options.expose_vulnerable or is_local(options.host):
        return
    version = tritonserver_version()
    faults = open_advisories(version)
    if faults:
        told = f"Triton {version[0]}.{version[1]}" if version else "a Triton of unknown version"
        raise ServerError(
            f"{options.host} lets others reach {told}, which isn't known to be free of "
            f"{', '.join(name for fault in faults for name in fault.names)}. Listen on 127.0.0.1 behind a proxy, serve "
            f"from the image {CURRENT_CONTAINER} or a later one (server/Dockerfile), or, where only trusted clients "
            "reach the port, pass --expose-vulnerable-triton"
        )
