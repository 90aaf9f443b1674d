"""ControlTransport: control and status of a server over plain HTTP, by the standard library alone.

It is what a supervisor and a doctor need: it loads nothing, so that starting a server costs no more for it, and
whatever answers on the other side, a call ends in time and takes little memory.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tritonclient.utils import InferenceServerException

from cmt_client.errors import DeadlineExceeded, ServerUnavailable, translated
from cmt_client.operations import HttpCall, Operation
from cmt_pipeline.constants import CONTROL_HEADER, HTTP_PORT, LOOPBACK

T = TypeVar("T")

MAX_ANSWER_BYTES = 16 << 20


@dataclass(frozen=True)
class Reply:
    """What a server answered. body: at most MAX_ANSWER_BYTES."""

    status: int
    body: bytes

    @property
    def ok(self) -> bool:
        return self.status == http.client.OK

    def json(self) -> Any:
        """None where it is no JSON."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class ControlTransport:
    """A Transport for every operation but inference; any number of threads, a connection a call.

    url: `http://…` or `https://…`; token_header: carries the token of restricted APIs. ValueError for another URL.
    """

    def __init__(self, url: str, root_certificates: Path | None = None, token_header: str = CONTROL_HEADER) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"URL: got {url!r}; expected Triton's HTTP service, such as http://{LOOPBACK}:{HTTP_PORT}")
        self.url, self.host, self.port = url.rstrip("/"), parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._token_header = token_header
        self._tls = ssl.create_default_context(cafile=root_certificates) if parts.scheme == "https" else None

    def call(self, operation: Operation[T], timeout_s: float) -> T:
        reply = self.exchange(operation.http(), timeout_s)
        if operation.yes_or_no:
            return operation.decode(reply.ok)
        with translated(self.url, operation.failure):
            told = reply.json()
            if not reply.ok:
                said = told.get("error") if isinstance(told, dict) else None
                raise InferenceServerException(str(said or reply.body[:500]), status=str(reply.status))
            try:
                return operation.decode(told)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise operation.failure(f"{self.url} answered with something that isn't Triton's: {error!r}") from error

    def exchange(self, call: HttpCall, timeout_s: float) -> Reply:
        """One request, whatever its status. Raises ServerUnavailable, or DeadlineExceeded after `timeout_s` seconds,
        however slowly the other side sends."""
        connection, deadline = self._connection(timeout_s), time.monotonic() + timeout_s
        try:
            connection.connect()
            with _cut_off(connection.sock, deadline - time.monotonic()):
                token = {self._token_header: call.token} if call.token else {}
                connection.request(call.verb, self._prefix + call.path, call.body, token)
                response = connection.getresponse()
                body = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, TimeoutError) or time.monotonic() >= deadline:
                raise DeadlineExceeded(f"{self.url} didn't answer within {timeout_s:.3g} s") from error
            raise ServerUnavailable(
                f"no connection to {self.url}: {str(error) or type(error).__name__}; is the server running?"
            ) from error
        finally:
            connection.close()
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"{self.url} didn't answer within {timeout_s:.3g} s")
        if len(body) > MAX_ANSWER_BYTES:
            raise ServerUnavailable(f"{self.url}{call.path} answered with more than {MAX_ANSWER_BYTES} bytes")
        return Reply(response.status, body)

    def close(self) -> None:
        """Nothing is kept open."""

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self._tls:
            return http.client.HTTPSConnection(self.host, self.port, timeout=timeout_s, context=self._tls)
        return http.client.HTTPConnection(self.host, self.port, timeout=timeout_s)


@contextlib.contextmanager
def _cut_off(opened: socket.socket, after_s: float) -> Iterator[None]:
    """Ends the connection of a server that sends, but so slowly that no time-out of a single read notices."""

    def cut() -> None:
        with contextlib.suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(max(0.0, after_s), cut)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
