"""Relay: an HTTP proxy on loopback that spreads requests over servers in turns, and loses connections on purpose."""

from __future__ import annotations

import http.client
import itertools
import socket
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import urlsplit

TIMEOUT_S = 300.0
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding"}

#: Whether the connection is lost before a request of this path goes on.
Loses = Callable[[str], bool]


class Relay:
    """A context manager. servers: base URLs; loses: asked for each request, once."""

    def __init__(self, servers: Sequence[str], loses: Loses = lambda _: False) -> None:
        addresses = itertools.cycle([urlsplit(server).netloc for server in servers])
        turn = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._relay()

            def do_POST(self) -> None:
                self._relay()

            def _relay(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with turn:
                    address, lost = next(addresses), loses(self.path)
                if lost:
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self._answer(*_asked(address, self.command, self.path, body, dict(self.headers)))

            def _answer(self, status: int, headers: Sequence[tuple[str, str]], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in HOP_HEADERS | {"content-length"}:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Relay:
        threading.Thread(target=self._server.serve_forever, name="relay", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()


class NthLoads:
    """Loses the connection of the loads of pipelines with these numbers, counted from 1."""

    def __init__(self, *numbers: int) -> None:
        self._numbers, self._seen = numbers, 0

    def __call__(self, path: str) -> bool:
        if not (path.startswith("/v2/repository/models/emotion") and path.endswith("/load")):
            return False
        self._seen += 1
        return self._seen in self._numbers


def _asked(
    address: str, method: str, path: str, body: bytes, headers: dict[str, str]
) -> tuple[int, Sequence[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        sent = {name: value for name, value in headers.items() if name.lower() not in HOP_HEADERS}
        connection.request(method, path, body or None, sent)
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()
    except (OSError, http.client.HTTPException) as error:
        return 503, [], str(error).encode()
    finally:
        connection.close()
