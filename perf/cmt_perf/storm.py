"""A load generator that costs little, for storms on the cores that serve: raw gRPC, every request encoded beforehand.

A closed loop asks again as soon as it is answered. An open loop sends at random moments (Poisson) whatever the server
does; latency counts from the moment at which a request was meant to be sent. Nothing is retried.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from types import TracebackType
from typing import Any, Literal

import grpc
import numpy as np
from tritonclient.grpc import service_pb2
from tritonclient.utils import np_to_triton_dtype, serialize_byte_tensor

from cmt_client.errors import QUEUE_FULL
from cmt_client.operations import Infer
from cmt_pipeline.errors import Overloaded

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SPIN_S = 0.001  # sleeping is no more exact than this

#: answered; refused: Overloaded; late: no answer within the caller's time; failed: anything else.
Fate = Literal["answered", "refused", "late", "failed"]


@dataclass(frozen=True)
class Reply:
    """What became of a request. due_s, came_s: CLOCK_MONOTONIC."""

    due_s: float
    came_s: float
    fate: Fate
    said: str = ""

    @property
    def latency_ms(self) -> float:
        return (self.came_s - self.due_s) * 1e3


def encoded(request: Infer, timeout_s: float) -> bytes:
    """A request as it goes over the wire, with the time that its caller waits."""
    message = service_pb2.ModelInferRequest(model_name=request.model)
    message.parameters["timeout"].int64_param = int(timeout_s * 1e6)
    for name, array in request.inputs.items():
        message.inputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        is_bytes = array.dtype == np.object_
        message.raw_input_contents.append(serialize_byte_tensor(array).item() if is_bytes else array.tobytes())
    for name in request.outputs:
        message.outputs.add(name=name)
    content: bytes = message.SerializeToString()
    return content


class Storm:
    """Sends encoded requests in turn to one server, `HOST:PORT`. A context manager."""

    def __init__(self, target: str, requests: Sequence[bytes], timeout_s: float) -> None:
        self._target, self._timeout_s = target, timeout_s
        self._requests: Iterator[bytes] = cycle(requests)

    def __enter__(self) -> Storm:
        self._channel = grpc.insecure_channel(self._target)
        self._send = self._channel.unary_unary(METHOD)  # bytes as they are, both ways
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._channel.close()

    def closed(self, loops: int, seconds: float) -> list[Reply]:
        """Closed loops for so long, then whatever is still under way."""
        run = _Run(self._ask)
        end = time.monotonic() + seconds

        def again() -> None:
            if time.monotonic() < end:
                run.send(time.monotonic(), again)

        for _ in range(loops):
            run.send(time.monotonic(), again)
        return run.finished(seconds + 2 * self._timeout_s)

    def open(self, rate: float, seconds: float, seed: int) -> list[Reply]:
        """An open loop at `rate` requests a second for so long, then whatever is still under way."""
        run = _Run(self._ask)
        rng = np.random.default_rng(seed)
        due = time.monotonic()
        end = due + seconds
        while (due := due + float(rng.exponential(1 / rate))) < end:
            if (wait := due - time.monotonic()) > SPIN_S:
                time.sleep(wait)
            run.send(due)
        return run.finished(2 * self._timeout_s)

    def one(self) -> Reply:
        """One request, alone."""
        run = _Run(self._ask)
        run.send(time.monotonic())
        return run.finished(2 * self._timeout_s)[0]

    def _ask(self) -> Any:
        return self._send.future(next(self._requests), timeout=self._timeout_s)


class _Run:
    """Requests under way and their replies."""

    def __init__(self, ask: Any) -> None:
        self._ask = ask
        self._replies: list[Reply] = []
        self._under_way = 0
        self._changed = threading.Condition()

    def send(self, due_s: float, then: Any = None) -> None:
        with self._changed:
            self._under_way += 1
        call = self._ask()
        call.add_done_callback(lambda call: self._came(due_s, call, then))

    def finished(self, timeout_s: float) -> list[Reply]:
        """Every reply, in the order in which they came. TimeoutError when some don't come."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._under_way, timeout_s):
                raise TimeoutError(f"{self._under_way} requests got no reply within {timeout_s:g} s")
        return self._replies

    def _came(self, due_s: float, call: Any, then: Any) -> None:
        reply = Reply(due_s, time.monotonic(), *_fate(call))
        if then is not None:
            then()
        with self._changed:
            self._replies.append(reply)
            self._under_way -= 1
            if not self._under_way:
                self._changed.notify_all()


def _fate(call: Any) -> tuple[Fate, str]:
    status = call.code()
    if status is grpc.StatusCode.OK:
        return "answered", ""
    said = str(call.details())
    if Overloaded.from_wire(said) is not None or QUEUE_FULL.search(said):
        return "refused", said
    return ("late" if status is grpc.StatusCode.DEADLINE_EXCEEDED else "failed"), f"{status.name}: {said}"
