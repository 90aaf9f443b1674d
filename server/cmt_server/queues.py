"""What waits at the stages of the server that this process is a part of, read from its metrics over loopback.

Triton's metrics are all that tells the queues of every kind of stage, TensorRT plans included. A stage's process is a
child of its tritonserver, whose command line says where its metrics are; nothing has to be configured.
"""

from __future__ import annotations

import http.client
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cmt_server.admission import Gate, Queue

METRICS_PORT = 8002  # Triton's default
ANY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
TIMEOUT_S = 1.0
#: Readings follow each other no faster than this, and take at most this share of the time of one core.
FASTEST_S, COST_SHARE = 0.02, 0.05
IDLE_S = 1.0  # without a request, nobody reads
PATIENCE = 100  # readings that may fail before it is worth a word: metrics come last when a server starts
BLIND = "no metrics of the own server, so that what waits behind this stage limits nothing"

_LINE = re.compile(
    rb'^nv_inference_(pending_request_count|request_success|request_failure)\{[^}\n]*?model="([^"]+)"[^}\n]*\} (\d+)',
    re.MULTILINE,
)


def metrics_address(arguments: Sequence[str]) -> tuple[str, int] | None:
    """Where the tritonserver of these arguments answers for its metrics, from this machine; None if it doesn't."""
    given: dict[str, str] = {}
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            given[name] = value if equals else next(iter(arguments[index + 1 : index + 2]), "")
    if "false" in (given.get("--allow-metrics", "").lower(), given.get("--allow-inference-metrics", "").lower()):
        return None
    host = given.get("--metrics-address", given.get("--http-address", ""))
    return ANY_ADDRESS.get(host, host), int(given.get("--metrics-port", METRICS_PORT))


def parse_queues(text: bytes) -> dict[str, Queue]:
    """Triton's metrics in Prometheus' format -> the queue of each model, over all its versions."""
    waiting: dict[str, int] = {}
    finished: dict[str, int] = {}
    for kind, model, value in _LINE.findall(text):
        counts = waiting if kind.startswith(b"pending") else finished
        counts[model.decode()] = counts.get(model.decode(), 0) + int(value)
    return {model: Queue(count, finished.get(model, 0)) for model, count in waiting.items()}


class Metrics:
    """The metrics of one server, over a connection that is kept."""

    def __init__(self, host: str, port: int) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)

    def queues(self) -> dict[str, Queue]:
        """Raises OSError or http.client.HTTPException."""
        try:
            self._connection.request("GET", "/metrics")
            return parse_queues(self._connection.getresponse().read())
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()


class Watch:
    """A thread that keeps a gate's readings fresh while requests come. say: told once when they can't be had."""

    def __init__(self, gate: Gate, say: Callable[[str], None], server: Sequence[str] | None = None) -> None:
        self._gate, self._say = gate, say
        self._wanted = threading.Event()
        self._last_s = 0.0
        self._ended = False
        address = metrics_address(own_server() if server is None else server)
        self._thread: threading.Thread | None = None
        if address is None:
            gate.lose_sight()
            say(f"{BLIND}: they are switched off")
        else:
            self._thread = threading.Thread(target=self._run, args=(Metrics(*address),), name="admission", daemon=True)
            self._thread.start()

    def wake(self) -> None:
        """A request came."""
        self._last_s = time.monotonic()
        if not self._wanted.is_set():
            self._wanted.set()

    def close(self) -> None:
        self._ended = True
        self._wanted.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, metrics: Metrics) -> None:
        failures = 0
        while self._wanted.wait() and not self._ended:
            began, spent = time.monotonic(), time.thread_time()
            try:
                self._gate.read(metrics.queues)
                failures = 0
            except (OSError, http.client.HTTPException) as error:
                failures += 1
                self._gate.lose_sight()
                if failures == PATIENCE:
                    self._say(f"{BLIND}: {str(error) or type(error).__name__}")
            time.sleep(max(FASTEST_S, 2 * (time.thread_time() - spent) / COST_SHARE))
            if began - self._last_s > IDLE_S:
                self._wanted.clear()
                if time.monotonic() - self._last_s < IDLE_S:  # one came just now
                    self._wanted.set()
        metrics.close()


def own_server(pid: int | None = None) -> list[str]:
    """The command line of the server that this process is a child of."""
    command = Path("/proc", str(pid or os.getppid()), "cmdline").read_bytes()
    return [part.decode(errors="replace") for part in command.split(b"\0")[1:]]
