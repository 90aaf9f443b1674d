"""HTTP of the emulated API server."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from emulated_api.forwarding import accept_key, exactly, forward
from emulated_api.requests import Refused, Request, discovery, taken_apart
from emulated_api.store import Object


class Handler(BaseHTTPRequestHandler):
    api: Any  # an EmulatedApi
    protocol_version = "HTTP/1.1"
    rbufsize = 0  # forwarding selects on the socket
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.api.connections.add(self.connection)

    def finish(self) -> None:
        self.api.connections.discard(self.connection)
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def _any(self) -> None:
        # kubectl sends no token where there is no TLS, but whom it acts for.
        user = self.headers.get("Impersonate-User") or self.headers.get("Authorization", "").removeprefix("Bearer ")
        size = int(self.headers.get("Content-Length", 0))
        body = exactly(self.rfile, size)
        self.api.asked.append(f"{self.command} {self.path}")
        try:
            if (known := discovery(urlsplit(self.path).path, self.api.kinds)) is not None:
                self._send(200, known)
                return
            request = taken_apart(self.command, self.path, json.loads(body or "null"), self.headers, self.api.kinds)
            if request.subresource == "portforward":
                self._forward(request, user)
            elif request.query.get("watch") == "true":
                self._watch(request, user)
            elif request.subresource == "log":
                self._log(request, user)
            else:
                answer, warnings = self.api.answer(request, user)
                self._send(200, answer, warnings=warnings)
        except Refused as refused:
            self._send(refused.code, refused.status, refused.headers)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any  # noqa: N815

    def _send(
        self, code: int, answer: Object, headers: dict[str, str] | None = None, warnings: Sequence[str] = ()
    ) -> None:
        data = json.dumps(answer).encode()
        self.send_response(code)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        for text in warnings:  # RFC 7234, as k8s.io/apimachinery's NewWarningHeader quotes it
            quoted = text.replace("\\", "\\\\").replace('"', '\\"')
            self.send_header("Warning", f'299 - "{quoted}"')
        self.end_headers()
        if self.api.cut_short > 0:
            self.api.cut_short -= 1
            self.wfile.write(data[: len(data) // 2])
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(data)

    def _watch(self, request: Request, user: str) -> None:
        self.api.authorize(request, user)
        for hook in list(self.api.before):
            hook(request)
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for event in self.api.events(request):
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            if self.api.cut.is_set():
                return
        self.wfile.write(b"0\r\n\r\n")

    def _log(self, request: Request, user: str) -> None:
        self.api.authorize(request, user)
        for hook in list(self.api.before):
            hook(request)
        with self.api.store.changed:
            data = self.api.logs(request).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _forward(self, request: Request, user: str) -> None:
        self.api.authorize(request, user)
        pod, port = self.api.there(request), int(request.query["ports"])
        assert self.api.backend is not None, "no backend to forward to"
        self.send_response(101, "Switching Protocols")
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", accept_key(self.headers["Sec-WebSocket-Key"]))
        self.send_header("Sec-WebSocket-Protocol", self.headers["Sec-WebSocket-Protocol"].split(",")[0])
        self.end_headers()
        forward(self.connection, self.rfile, port, self.api.backend(pod, port))  # type: ignore[arg-type]
        self.close_connection = True
