"""Runs a gateway on uvicorn until it is told to stop, and bounds what uvicorn doesn't: how slowly a head may come."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cmt_gateway.app import Gateway
from cmt_gateway.options import GatewayOptions
from cmt_pipeline.constants import MIB

LOG = logging.getLogger(__name__)

BACKLOG = 2048


def listening(options: GatewayOptions) -> socket.socket:
    """A socket on the host and port, so that whoever starts a gateway knows its port first. OSError."""
    return socket.create_server((options.host, options.port), backlog=BACKLOG, reuse_port=False)


def run(options: GatewayOptions, gateway: Gateway, on: socket.socket) -> None:
    """Until SIGINT or SIGTERM: then it says it isn't ready, finishes what it let in, and returns."""
    config = uvicorn.Config(
        gateway.asgi,
        http=_bounded_protocol(options.header_timeout_s),
        lifespan="on",
        access_log=False,  # its lines hold the query
        log_config=None,
        server_header=False,
        proxy_headers=False,  # a caller's address is counted by: nobody may choose it
        ws="websockets-sansio",
        ws_max_size=4 * MIB,
        ws_per_message_deflate=False,  # it costs memory a connection, and media don't shrink
        timeout_keep_alive=max(1, round(options.keep_alive_s)),
        timeout_graceful_shutdown=max(1, round(options.drain_timeout_s)),
        ssl_certfile=options.certificate,
        ssl_keyfile=options.certificate_key,
    )
    server = _Server(config, gateway, options.drain_delay_s)
    asyncio.run(server.serve(sockets=[on]))


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, gateway: Gateway, drain_delay_s: float) -> None:
        super().__init__(config)
        self._gateway, self._drain_delay_s = gateway, drain_delay_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ours: the process ends by returning, and drains before it stops to listen."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._told_to_stop, number)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)

    def _told_to_stop(self, number: signal.Signals) -> None:
        if self._gateway.door.draining:
            if number == signal.SIGINT:  # somebody is impatient
                self.force_exit = self.should_exit = True
            return
        LOG.info("draining: requests in flight finish, new ones are refused")
        self._gateway.drain()
        asyncio.get_running_loop().call_later(self._drain_delay_s, self._stop)

    def _stop(self) -> None:
        self.should_exit = True


def _bounded_protocol(header_timeout_s: float) -> type[asyncio.Protocol]:
    """HTTP/1.1 whose connections are closed when a whole head hasn't come in time, the first or a later one.

    A connection that waits between two requests is uvicorn's keep-alive's.
    """

    class Bounded(H11Protocol):
        _waiting: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            before = self.scope
            if self._waiting is None and (self.cycle is None or self.cycle.response_complete):
                self._wait()
            super().data_received(data)
            if self.scope is not before:
                self._came()

        def connection_lost(self, exc: Exception | None) -> None:
            self._came()
            super().connection_lost(exc)

        def _wait(self) -> None:
            self._waiting = self.loop.call_later(header_timeout_s, self._give_up)

        def _came(self) -> None:
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None

        def _give_up(self) -> None:
            self._waiting = None
            self.transport.close()

    return Bounded
