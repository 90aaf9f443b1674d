"""Gateways in tests: in process before a server that isn't there, and as processes before a real one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import httpx
from starlette.testclient import TestClient
from websockets.sync.client import connect

from cmt_client.fake import AsyncFakeTransport, FakeTransport
from cmt_gateway.app import Gateway
from cmt_gateway.live.messages import HEAD, PROTOCOL
from cmt_gateway.live.speech import RATE_HZ, SAMPLE_BYTES
from cmt_gateway.options import GatewayOptions


def asking(**options: Any) -> tuple[TestClient, FakeTransport]:
    """A client of a gateway in this process, and the server that it asks."""
    fake = FakeTransport()
    gateway = Gateway(GatewayOptions(**options), AsyncFakeTransport(fake))
    return TestClient(gateway.asgi, raise_server_exceptions=False), fake


def ask_of_all_kinds(url: str) -> None:
    """A request, one that the gateway refuses and one that Triton does, and a session: so much silence that its policy
    decides something, and a turn."""
    assert httpx.post(f"{url}/v1/emotion", json={"text": "Hello?"}, timeout=60).status_code == 200
    assert httpx.post(f"{url}/v1/emotion", json={"image": "?"}, timeout=60).status_code == 422
    httpx.post(f"{url}/v1/emotion", json={"image": "bm8gaW1hZ2U="}, timeout=60)
    silence, seconds = bytes(2 * RATE_HZ * SAMPLE_BYTES), range(0, 60, 2)
    begin = {"type": "session.begin", "policy": "customer_service"}
    words = {"type": "text", "text": "Hello?", "time_ms": 60_000}
    with connect(url.replace("http", "ws", 1) + "/v1/live", subprotocols=[PROTOCOL], max_queue=None) as socket:  # type: ignore[list-item]
        socket.send(json.dumps(begin))
        for second in seconds:
            socket.send(HEAD.pack(2, 1000 * second) + silence)
        for said in (words, {"type": "session.end"}):
            socket.send(json.dumps(said))
        told = [json.loads(message) for message in socket]
    assert [message["type"] for message in told[-2:]] == ["turn.result", "session.ended"]
    assert any(message.get("decision", {}).get("action") for message in told)


@contextmanager
def fake_gateway(port: int = 0) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    script = Path(__file__).with_name("fake_gateway.py")
    process = subprocess.Popen([sys.executable, str(script), str(port)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}", process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


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
