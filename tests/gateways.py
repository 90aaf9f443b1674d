"""Gateways in tests: in process before a server that isn't there, and as processes before a real one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

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
def running(*options: str, environment: dict[str, str] | None = None) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """`cmt gateway` on a free port of this machine; its URL. Killed at the end."""
    command = [sys.executable, "-m", "cmt_cli.main", "gateway", "--port", "0", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})})
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"gateway (https?://\S+) before", line.replace("\n", " ")):
                break
        else:
            raise AssertionError(f"no gateway: {process.wait()}")
        url = found[1]
        while True:
            with suppress(httpx.TransportError):
                httpx.get(f"{url}/livez", verify=False)
                break
        yield url, process
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
