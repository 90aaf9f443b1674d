"""Draining: new requests are refused where they come in, and those that were let in are waited for.

    WORK/draining      while this file is there, the stages that a request meets first refuse it with UNAVAILABLE
    WORK/busy/{pid}    how many requests a stage's process has in its hands, 8 bytes

What is in flight is counted, not inferred from states. Seen on Triton 2.51: once pipelines were loaded anew, its index
calls them unloaded with hundreds of requests in flight; its gauge of an ensemble's requests stays at 0; and unloading
the pipelines answers new requests NOT_FOUND, which nobody tries again. A request that was let in is either queued at a
stage, as Triton's metrics tell, or in the hands of a stage's process, as that process tells. Between the two it is
neither, for milliseconds, and a TensorRT stage tells nothing while it computes: nothing must be seen for SETTLE_S. What
that misses is a batch alone in the server whose process gets no processor for so long.
"""

from __future__ import annotations

import contextlib
import http.client
import mmap
import os
import re
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cmt_pipeline.stages import COMPILED_STAGES, STAGES
from cmt_server.errors import ServerError

#: Tells the stages of a server its folder.
WORK_VARIABLE = "CMT_SERVER_WORK"
POLL_S = 0.02
SETTLE_S = 1.0  # nothing in flight and nothing answered for so long: nothing is left, and every answer is out
TIMEOUT_S = 5.0
COUNT = struct.Struct("<q")

_COMPILED = "|".join(stage.name for stage in COMPILED_STAGES)
_DOORS = "|".join(name for name, stage in STAGES.items() if not stage.compiled)
_WAITING = re.compile(rf'^nv_inference_pending_request_count{{.*model="(?:{_DOORS})".*}} (\S+)', re.MULTILINE)
_TOLD = re.compile(rf'^nv_inference_request_success{{.*model="(?:{_DOORS})".*}} (\S+)', re.MULTILINE)
_PENDING = re.compile(rf'^nv_inference_pending_request_count{{.*model="(?:{_COMPILED})".*}} (\S+)', re.MULTILINE)
# What the first stages refuse counts among their successes.
_ANSWERED = re.compile(r'^nv_inference_request_success{.*model="(?!preprocess|check).*} (\S+)', re.MULTILINE)


class Busy:
    """What a stage's process has in its hands. Any number of threads."""

    def __init__(self) -> None:
        work = os.environ.get(WORK_VARIABLE)
        self._memory: mmap.mmap | bytearray = bytearray(COUNT.size)
        self._flag = os.path.join(work, "draining") if work else ""  # not a Path: it is looked for at each request
        self._count = 0
        self._lock = threading.Lock()
        if work:
            self._memory = _shared(Path(work) / "busy" / str(os.getpid()))

    def add(self, requests: int) -> None:
        """So many more, or fewer."""
        with self._lock:
            self._count += requests
            COUNT.pack_into(self._memory, 0, self._count)

    @contextlib.contextmanager
    def with_(self, requests: int) -> Iterator[None]:
        """Has so many during its block."""
        self.add(requests)
        try:
            yield
        finally:
            self.add(-requests)

    def draining(self) -> bool:
        """Whether new requests are to be refused."""
        return bool(self._flag) and os.path.exists(self._flag)


def _shared(path: Path) -> mmap.mmap:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(COUNT.size))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), COUNT.size)


@dataclass(frozen=True)
class InFlight:
    """requests: queued or in hand, behind the door; answered: by any model so far; waiting: queued before the door;
    told: how many the door has let in or refused so far."""

    requests: int
    answered: float
    waiting: float
    told: float


def open_door(work: Path) -> dict[str, str]:
    """For a server that starts: it refuses nobody, nothing is left of the one before; what its environment needs."""
    (work / "draining").unlink(missing_ok=True)
    for path in (work / "busy").glob("*"):
        path.unlink(missing_ok=True)
    return {WORK_VARIABLE: str(work.absolute())}


def finish_requests(work: Path, host: str, metrics_port: int, timeout_s: float) -> None:
    """Closes the door, waits for those inside, and until those who stood before it were told.

    ServerError if the server goes away, or they take too long.
    """
    (work / "draining").touch()
    seen = in_flight(work, host, metrics_port)
    all_told = seen.told + seen.waiting
    now = since = time.monotonic()
    deadline = now + timeout_s
    while now < deadline:
        before, seen = seen, in_flight(work, host, metrics_port)
        now = time.monotonic()
        if seen.requests or seen.told < all_told or seen.answered != before.answered:
            since = now
        elif now - since >= SETTLE_S:
            return
        time.sleep(POLL_S)
    raise ServerError(f"{seen.requests} requests were still in flight after {timeout_s:g} s")


def in_flight(work: Path, host: str, metrics_port: int) -> InFlight:
    """What the server has behind the door. ServerError if its metrics can't be had."""
    connection = http.client.HTTPConnection(host, metrics_port, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(f"the server went away while it drained: {error}") from error
    finally:
        connection.close()
    pending, answered, waiting, told = (
        sum(map(float, wanted.findall(text))) for wanted in (_PENDING, _ANSWERED, _WAITING, _TOLD)
    )
    return InFlight(int(pending) + _in_hand(work), answered, waiting, told)


def _in_hand(work: Path) -> int:
    """Of the processes that live; a file of one that starts or ends may be short or gone."""
    total = 0
    for path in (work / "busy").glob("*"):
        with contextlib.suppress(OSError, struct.error):
            if Path("/proc", path.name).exists():
                total += COUNT.unpack(path.read_bytes())[0]
    return total
