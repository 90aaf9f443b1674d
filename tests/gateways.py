"""Gateways in tests: in process before a server that isn't there, and as processes before a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import httpx
from starlette.testclient import TestClient

from cmt_client.fake import AsyncFakeTransport, FakeTransport
from cmt_gateway.app import Gateway
from cmt_gateway.options import GatewayOptions


def asking(**options: Any) -> tuple[TestClient, FakeTransport]:
    """A client of a gateway in this process, and the server that it asks."""
    fake = FakeTransport()
    gateway = Gateway(GatewayOptions(**options), AsyncFakeTransport(fake))
    return TestClient(gateway.asgi, raise_server_exceptions=False), fake


@contextmanager
def running(*options: str, environment: dict[str, str] | None = None) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """`cmt gateway` on a free port of this machine; its URL. Killed at the end."""
    command = [sys.executable, "-m", "cmt_cli.main", "gateway", "--port", "0", *options]
    with tempfile.TemporaryFile() as log:  # a pipe that nobody reads would stop it
        process = subprocess.Popen(command, stderr=log, env={**os.environ, **(environment or {})})
        try:
            yield _url_of(process, log), process
        finally:
            process.kill()
            process.wait()


def _url_of(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """Of a gateway that answers."""
    while (found := re.search(rb"gateway (https?://\S+) before", os.pread(log.fileno(), 100_000, 0))) is None:
        assert process.poll() is None, os.pread(log.fileno(), 100_000, 0)
        time.sleep(0.05)
    url = found[1].decode()
    while True:
        with suppress(httpx.TransportError):
            httpx.get(f"{url}/livez", verify=False)
            return url
