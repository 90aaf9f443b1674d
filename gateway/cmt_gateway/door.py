"""What stands before every request, as ASGI: who is it, how often, how many at once, how much, how fast.

A request is refused as early as can be told: by its head alone where that is enough, before a byte of its body is kept.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import traceback
from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cmt_client.tracing import new_request_id
from cmt_gateway.audit import Audit
from cmt_gateway.keys import Keys
from cmt_gateway.metrics import Metrics
from cmt_gateway.options import GatewayOptions
from cmt_gateway.problems import Refused, refused
from cmt_gateway.rates import Rates

LOG = logging.getLogger(__name__)

GUARDED = "/v1/"  # what lies elsewhere is the page's and the operator's
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
TIMEOUT_HEADER = "x-timeout-ms"
ANONYMOUS = "anonymous"
DISCARD_S = 2.0  # for the body of a request that is refused by its head


class Door:
    """Lets requests in to `app`; their state then has request_id, caller, deadline (of time.monotonic) and body."""

    def __init__(self, app: ASGIApp, options: GatewayOptions, metrics: Metrics) -> None:
        self._app, self._options, self.metrics = app, options, metrics
        self._keys = Keys(options.keys) if options.keys else None
        self.audit = Audit(options.audit) if options.audit else None
        self._rates = Rates(options.rate, options.rate_storage)
        self._in_flight = self._sessions = 0
        self._held_bytes = 0
        self.draining = False

    @property
    def in_flight(self) -> int:
        return self._in_flight

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(GUARDED):
            await self._app(scope, receive, send)
            return
        came, headers = time.monotonic(), Headers(scope=scope)
        state = scope.setdefault("state", {})
        given = headers.get("x-request-id", "")
        state["request_id"] = request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        state["said"] = {}
        answer = _Answer(send, request_id, self)
        try:
            await self._let_in(scope, headers, came, receive, answer)
        except Refused as error:
            await self._refuse(error, scope, receive, answer)
        except Exception as error:
            where = "".join(traceback.format_tb(error.__traceback__))  # without its text, which may quote what was sent
            LOG.error("failed: %s\n%s", type(error).__name__, where, extra={"request_id": request_id})
            state["said"].setdefault("code", "internal")
            if answer.status is None:
                await self._refuse(refused(error), scope, receive, answer)
        finally:
            self._tell(scope, state, answer.status or 499, time.monotonic() - came)

    async def let_socket_in(self, headers: Headers, key: str, address: str) -> str:
        """The caller of a WebSocket, who is counted until `let_socket_out`. Raises Refused."""
        if self.draining:
            raise Refused(503, "draining", "this replica is being stopped; another answers", retry_after_s=1.0)
        caller = self._caller(headers, key)
        await self._rates.check(caller or address)
        if self._sessions >= self._options.most_sessions:
            raise Refused(503, "sessions", "too many sessions are open; ask again", retry_after_s=1.0)
        self._sessions += 1
        self.metrics.sessions.set(self._sessions)
        return caller

    def let_socket_out(self) -> None:
        self._sessions -= 1
        self.metrics.sessions.set(self._sessions)

    async def _let_in(self, scope: Scope, headers: Headers, came: float, receive: Receive, send: Send) -> None:
        state = scope["state"]
        if self.draining:
            raise Refused(503, "draining", "this replica is being stopped; another answers", retry_after_s=1.0)
        state["caller"] = self._caller(headers)
        state["deadline"] = came + self._timeout_s(headers)
        await self._rates.check(state["caller"] or str((scope.get("client") or [""])[0]))
        if self._in_flight >= self._options.most_in_flight:
            raise Refused(503, "queue", "too many requests are being answered; ask again", retry_after_s=0.5)
        self._in_flight += 1
        self.metrics.in_flight.set(self._in_flight)
        held = 0

        def keep(size: int) -> None:
            nonlocal held
            if self._held_bytes + size > self._options.max_held_bytes:
                raise Refused(503, "memory", "no room for this body beside those at hand; ask again", retry_after_s=0.5)
            held += size
            self._held_bytes += size
            self.metrics.held_bytes.set(self._held_bytes)

        try:
            state["body"] = await self._body(headers, receive, keep)
            await self._app(scope, receive, send)
        finally:
            state.pop("body", None)
            self._in_flight -= 1
            self._held_bytes -= held
            self.metrics.in_flight.set(self._in_flight)
            self.metrics.held_bytes.set(self._held_bytes)

    def _caller(self, headers: Headers, key: str = "") -> str:
        """key: given otherwise than by a header."""
        if self._keys is None:
            return ""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = key or (token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", ""))
        name = self._keys.name_of(key) if key else None
        if name is None:
            raise Refused(401, "key", "got no key that is known; expected `Authorization: Bearer cmt_…` or `X-API-Key`")
        return name

    def _timeout_s(self, headers: Headers) -> float:
        text = headers.get(TIMEOUT_HEADER)
        if text is None:
            return self._options.timeout_s
        most_ms = round(self._options.max_timeout_s * 1000)
        if not re.fullmatch("[0-9]{1,9}", text) or not 1 <= int(text) <= most_ms:
            raise Refused(
                422, "timeout", f"got {text[:20]!r}; expected 1 to {most_ms} milliseconds", field="X-Timeout-Ms"
            )
        return int(text) / 1000

    async def _body(self, headers: Headers, receive: Receive, keep: Callable[[int], None]) -> bytes:
        """All of it. Raises Refused for one that is too large or too slow, as soon as that shows."""
        most = self._options.max_body_bytes
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > most:
            raise Refused(413, "too_large", f"got a body of {length} bytes; at most {most} are accepted", field="body")
        try:
            return await asyncio.wait_for(_read(receive, most, keep), self._options.body_timeout_s)
        except asyncio.TimeoutError:
            told = f"the body took longer than {self._options.body_timeout_s:g} s; send it faster"
            raise Refused(408, "slow", told, field="body") from None

    async def _refuse(self, error: Refused, scope: Scope, receive: Receive, answer: _Answer) -> None:
        scope["state"]["said"]["code"] = error.code
        whole = "body" in scope["state"] or (error.code != "slow" and await self._discarded(receive))
        response = error.response(answer.request_id, None if whole else {"Connection": "close"})
        await response(scope, receive, answer)

    async def _discarded(self, receive: Receive) -> bool:
        """Whether the rest of a body came within DISCARD_S; nothing of it is kept.

        To close a connection on which more comes would lose the answer.
        """

        async def rest() -> bool:
            left = 2 * self._options.max_body_bytes
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return True
            return False

        try:
            return await asyncio.wait_for(rest(), DISCARD_S)
        except asyncio.TimeoutError:
            return False

    def _tell(self, scope: Scope, state: dict[str, Any], status: int, seconds: float) -> None:
        """Counts, logs and audits what became of a request, without its content."""
        route, said = getattr(scope.get("route"), "path", "none"), state["said"]
        self.metrics.requests.labels(route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        for code in filter(None, (said.get("code"), *said.get("refused", ()))):
            self.metrics.not_answered(code)
        caller = state.get("caller") or ANONYMOUS
        told = {"request_id": state["request_id"], "caller": caller, "route": route, "status": status, **said}
        LOG.info(
            "%s %s %s %.0f ms", scope["method"], route, status, 1000 * seconds, extra={"request_id": told["request_id"]}
        )
        if self.audit:
            self.audit.write(**told, context=self._options.ruling.rule.context)


class _Answer:
    """`send` that knows the status, and adds to the head: the request's id, and that a connection of a replica that is
    being stopped is used no more."""

    def __init__(self, send: Send, request_id: str, door: Door) -> None:
        self._send, self.request_id, self._door = send, request_id, door
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = [
                (b"x-request-id", self.request_id.encode()),
                (b"cache-control", b"no-store"),
                (b"x-content-type-options", b"nosniff"),
            ]
            if self._door.draining:
                own.append((b"connection", b"close"))
            message = {**message, "headers": [*message.get("headers", ()), *own]}
        await self._send(message)


async def _read(receive: Receive, most: int, keep: Callable[[int], None]) -> bytes:
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "cut", "the connection ended within the body", field="body")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > most:
            raise Refused(413, "too_large", f"got a body of more than {most} bytes", field="body")
        keep(len(chunk))
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)
