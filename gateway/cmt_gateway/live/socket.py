"""The WebSocket: who may open one, how messages come and go, and when it is closed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from cmt_client.async_client import AsyncEmotionClient
from cmt_client.tracing import new_request_id
from cmt_gateway.door import Door
from cmt_gateway.live.messages import KEY_PROTOCOL, PROTOCOL, Begin, End, EndTurn, Words, media_of, message_of
from cmt_gateway.live.noted import Noted
from cmt_gateway.live.session import LiveOptions, LiveSession
from cmt_gateway.options import GatewayOptions
from cmt_gateway.problems import Refused, refused
from cmt_pipeline.errors import InvalidInput
from cmt_session.errors import SessionError
from cmt_session.policy import Policy
from cmt_session.session import SessionState

LOG = logging.getLogger(__name__)

#: Close codes (RFC 6455, 7.4).
DONE, GOING_AWAY, REFUSED, TRY_LATER = 1000, 1001, 1008, 1013
MOST_FAULTS = 20  # messages that can't be used, before a client is taken for broken
MOST_UNREAD = 64  # messages that a client doesn't take


def live_routes(
    client: AsyncEmotionClient,
    options: GatewayOptions,
    door: Door,
    policies: Mapping[str, Policy],
    live: LiveOptions | None = None,
) -> APIRouter:
    """Policies by the names that a session may begin with."""
    router = APIRouter()

    @router.websocket("/v1/live")
    async def live_session(socket: WebSocket) -> None:
        session_id = new_request_id()
        try:
            _check_origin(socket, options.origins)
            caller = await door.let_socket_in(socket.headers, _key_of(socket), _address_of(socket))
        except Refused as error:
            door.metrics.not_answered(error.code)
            await socket.send_denial_response(error.response(session_id))
            return
        protocols = socket.scope.get("subprotocols", [])
        await socket.accept(subprotocol=PROTOCOL if PROTOCOL in protocols else None)
        try:
            noted = Noted(door.metrics, door.audit, session_id, caller, options.ruling.rule.context, "")
            await _Conversation(socket, client, options, policies, live, noted).run()
        finally:
            door.let_socket_out()
            LOG.info("live session ended", extra={"request_id": session_id, "caller": caller})

    return router


class _Conversation:
    def __init__(
        self,
        socket: WebSocket,
        client: AsyncEmotionClient,
        options: GatewayOptions,
        policies: Mapping[str, Policy],
        live: LiveOptions | None,
        noted: Noted,
    ) -> None:
        self._socket, self._client, self._options = socket, client, options
        self._policies, self._live, self._noted, self._id = policies, live, noted, noted.session
        self._outgoing: asyncio.Queue[str | None] = asyncio.Queue(MOST_UNREAD)
        self._slow = asyncio.Event()

    async def run(self) -> None:
        writer = asyncio.create_task(self._write())
        session: LiveSession | None = None
        code, reason = DONE, ""
        try:
            session = self._begun(await self._message())
            code, reason = await self._converse(session)
        except WebSocketDisconnect:
            code = 0
        except Refused as error:
            code, reason = REFUSED, error.code
            self._tell_problem(error)
        except asyncio.TimeoutError:
            code, reason = GOING_AWAY, "idle"
        finally:
            if session is not None:
                session.stop()
            with contextlib.suppress(asyncio.QueueFull):
                self._outgoing.put_nowait(None)
            await asyncio.wait([writer], timeout=self._options.body_timeout_s)
            writer.cancel()
            if code and self._socket.application_state is WebSocketState.CONNECTED:
                with contextlib.suppress(RuntimeError, WebSocketDisconnect):
                    await self._socket.close(code, reason)

    async def _converse(self, session: LiveSession) -> tuple[int, str]:
        faults = 0
        while True:
            if self._slow.is_set():
                return TRY_LATER, "answers aren't read"
            try:
                message = await self._message()
                if isinstance(message, End):
                    await session.finish()
                    self.tell({"type": "session.ended"})
                    return DONE, ""
                await self._given(session, message)
            except (Refused, InvalidInput) as error:
                self._tell_problem(refused(error))
                faults += 1
                if faults >= MOST_FAULTS:
                    return REFUSED, "too many faults"

    async def _given(self, session: LiveSession, message: Any) -> None:
        if isinstance(message, bytes):
            await session.media(media_of(message))
        elif isinstance(message, Words):
            await session.words(message)
        elif isinstance(message, EndTurn):
            await session.end_turn()
        else:
            raise Refused(422, "message", "the session has begun already", field="type")

    def _begun(self, first: Any) -> LiveSession:
        if not isinstance(first, Begin):
            raise Refused(422, "message", "expected session.begin first", field="type")
        if first.policy is not None and first.policy not in self._policies:
            told = f"got policy {first.policy!r}; expected one of {', '.join(sorted(self._policies)) or 'none'}"
            raise Refused(422, "policy", told, field="policy")
        try:
            state = SessionState.from_json(first.state) if first.state else None
        except SessionError as error:
            raise Refused(422, "state", str(error), field="state") from None
        ruling = self._options.ruling
        policy = self._policies[first.policy] if first.policy else None
        noted = replace(self._noted, policy=first.policy or "")
        session = LiveSession(self._client, ruling, self.tell, noted, policy, state, self._live)
        self.tell(
            {
                "type": "session.created",
                "session": self._id,
                "modalities": list(ruling.modalities),
                "notice": ruling.notice(),
                "context": ruling.rule.context,
                "policy": first.policy,
                "resumed": state is not None,
                "clock_s": state.tracker.clock_s if state else 0.0,
            }
        )
        return session

    async def _message(self) -> Any:
        """The next one: bytes of media, or what its text says. Raises TimeoutError when none comes."""
        got = await asyncio.wait_for(self._socket.receive(), self._options.socket_idle_s)
        if got["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(got.get("code", 1006))
        text = got.get("text")
        return got["bytes"] if text is None else message_of(text)

    def tell(self, message: Mapping[str, Any]) -> None:
        try:
            self._outgoing.put_nowait(json.dumps(message))
        except asyncio.QueueFull:
            self._slow.set()

    def _tell_problem(self, error: Refused) -> None:
        self._noted.not_answered(error.code)
        self.tell({"type": "error", "problem": error.problem(self._id).model_dump(exclude_none=True)})

    async def _write(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):
            while (text := await self._outgoing.get()) is not None:
                await self._socket.send_text(text)


def _key_of(socket: WebSocket) -> str:
    """The key that a browser gives as a subprotocol; empty where there is none."""
    offered = [p for p in socket.scope.get("subprotocols", []) if p.startswith(KEY_PROTOCOL)]
    return offered[0][len(KEY_PROTOCOL) :] if offered else ""


def _address_of(socket: WebSocket) -> str:
    return socket.client.host if socket.client else ""


def _check_origin(socket: WebSocket, origins: tuple[str, ...]) -> None:
    """CORS doesn't hold for sockets: a page of another origin could speak for whoever looks at it."""
    origin = socket.headers.get("origin")
    if origin is None or origin in origins or "*" in origins:
        return
    if urlsplit(origin).netloc != socket.headers.get("host", ""):
        raise Refused(403, "origin", "a page of this origin may not open a session; expected --origin", field="Origin")
