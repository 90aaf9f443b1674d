"""A gateway as a process: what connections may do to it, how it stops, and that it asks a real Triton."""

from __future__ import annotations

import base64
import itertools
import json
import re
import resource
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from cmt_client import EmotionClient
from cmt_gateway.keys import new_key
from cmt_pipeline.modality import MODALITIES
from cmt_server.server import TritonServer
from gateways import running

SAMPLES = Path(__file__).parents[2] / "cmt/cmt_cli/samples"
NOBODY = "grpc://127.0.0.1:9"  # the discard port: nobody listens
ITEM = {
    "image": (SAMPLES / "face.jpg").read_bytes(),
    "audio": (SAMPLES / "speech.wav").read_bytes(),
    "text": "Oh, you are here?",
}


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname
    assert parts.port
    return socket.create_connection((parts.hostname, parts.port), timeout=30)


def memory_mb(process: subprocess.Popen[bytes]) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


@pytest.fixture(scope="module")
def alone() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Before nobody."""
    with running("--triton", NOBODY, "--timeout-s", "1") as found:
        yield found


@pytest.mark.long
def test_a_thousand_idle_connections_cost_little(alone: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, process = alone
    before = memory_mb(process)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4_096)), hard))
    idle = [connected(url) for _ in range(1_000)]
    try:
        assert httpx.get(f"{url}/livez").status_code == 200
        assert memory_mb(process) < before + 64
    finally:
        for each in idle:
            each.close()


@pytest.mark.long
def test_heads_and_bodies_that_drip_are_cut_off() -> None:
    """The head within its time; one that came whole isn't touched."""
    with running("--triton", NOBODY, environment={"CMT_HEADER_TIMEOUT_S": "0.5"}) as (url, _):
        for sent in (b"", b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Drip: ", b"POST"):
            with connected(url) as drip:
                drip.sendall(sent)
                assert drip.recv(1) == b"", "closed by the gateway"
        assert httpx.get(f"{url}/livez").status_code == 200


@pytest.mark.long
def test_who_is_refused_by_the_head_is_told_so_whatever_else_was_being_sent(tmp_path: Path) -> None:
    """A connection that is closed while a body still comes is reset, and the answer lost."""
    new_key(tmp_path / "keys", "shop")
    size, piece = 4_000_000, 100_000
    with running("--triton", NOBODY, "--keys", str(tmp_path / "keys")) as (url, _), connected(url) as caller:
        caller.sendall(f"POST /v1/emotion HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
        caller.settimeout(0.3)
        with suppress(TimeoutError):
            assert caller.recv(1), "refused before the body was sent"
        caller.settimeout(30)
        for _ in range(size // piece):
            caller.sendall(b"a" * piece)
        assert b" 401 " in caller.recv(4096)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"POST /v1/emotion HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST /v1/emotion HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/emotion HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_isnt_http_is_refused_and_forgotten(alone: tuple[str, subprocess.Popen[bytes]], sent: bytes) -> None:
    url, _ = alone
    answer = b""
    with connected(url) as strange, suppress(OSError):  # closed while more was coming
        strange.sendall(sent)
        strange.shutdown(socket.SHUT_WR)
        while part := strange.recv(4096):
            answer += part
    assert answer == b"" or answer.split()[1].startswith(b"4")
    assert httpx.get(f"{url}/livez").status_code == 200


def test_without_triton_it_says_so(alone: tuple[str, subprocess.Popen[bytes]]) -> None:
    url, _ = alone
    assert httpx.get(f"{url}/readyz").status_code == 503
    answer = httpx.post(f"{url}/v1/emotion", json={"text": "a"})
    assert (answer.status_code, answer.json()["code"]) in ((503, "unavailable"), (504, "deadline"))


@pytest.mark.long
def test_tls(tmp_path: Path) -> None:
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 "
        f"-keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    with running("--triton", NOBODY, "--tls-certificate", str(certificate), "--tls-key", str(key)) as (url, _):
        assert url.startswith("https://")
        import ssl

        assert httpx.get(f"{url}/livez", verify=ssl.create_default_context(cafile=certificate)).status_code == 200


def as_json(item: dict[str, bytes | str]) -> dict[str, str]:
    return {name: value if isinstance(value, str) else base64.b64encode(value).decode() for name, value in item.items()}


@pytest.fixture(scope="module")
def door(server: TritonServer) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    with running("--triton", server.grpc_url, "--timeout-s", "30") as found:
        yield found


@pytest.mark.long
def test_every_subset_is_answered_as_triton_answers_it(
    server: TritonServer, door: tuple[str, subprocess.Popen[bytes]]
) -> None:
    subsets = [s for size in (1, 2, 3) for s in itertools.combinations(MODALITIES, size)]
    with EmotionClient(server.grpc_url) as client:
        for subset in subsets:
            item = {m: ITEM[m] for m in subset}
            ours = httpx.post(f"{door[0]}/v1/emotion", json=as_json(item), timeout=60).json()
            theirs = client.predict(**item)  # type: ignore[arg-type]
            assert ours["modalities"] == list(subset)
            assert (ours["label"], ours["digest"]) == (theirs.label, theirs.digest)
            assert np.allclose(list(ours["probabilities"].values()), list(theirs.probabilities.values()), atol=1e-5)


def test_what_triton_refuses_names_field_and_code(door: tuple[str, subprocess.Popen[bytes]]) -> None:
    for field, value, code in (
        ("image", b"no picture", "not_decodable"),
        ("audio", b"no sound", "not_decodable"),
        ("text", "", "empty"),
    ):
        answer = httpx.post(f"{door[0]}/v1/emotion", json=as_json({"text": "a", field: value}), timeout=60)
        problem = answer.json()
        assert (answer.status_code, problem["field"]) == (422, field), problem
        assert problem["code"] in (code, "wrong_format")


@pytest.mark.long
def test_stopping_finishes_what_is_in_flight(server: TritonServer) -> None:
    """While many ask: each is answered or told to ask elsewhere, and none is cut."""
    with running("--triton", server.grpc_url, "--timeout-s", "30", "--drain-delay-s", "0.3") as (url, process):
        statuses: list[int] = []
        ended = threading.Event()

        def ask() -> None:
            with httpx.Client(timeout=60) as client:
                while not ended.is_set():
                    try:
                        answer = client.post(f"{url}/v1/emotion", json={"text": "hello"})
                    except httpx.ConnectError:
                        return  # nobody listens any more
                    statuses.append(answer.status_code)
                    if answer.status_code != 200:
                        return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        while len(statuses) < 8:
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        ended.set()
        for thread in threads:
            thread.join()
    assert set(statuses) <= {200, 503}
    assert statuses.count(503) <= 4


def test_the_openapi_page_is_whole(alone: tuple[str, subprocess.Popen[bytes]]) -> None:
    described = httpx.get(f"{alone[0]}/openapi.json").json()
    assert {"/v1/emotion", "/v1/emotion/batch", "/v1/clips", "/v1/service", "/livez", "/readyz"} <= set(
        described["paths"]
    )
    kinds = described["paths"]["/v1/emotion"]["post"]["requestBody"]["content"]
    assert set(kinds) == {"application/json", "multipart/form-data"}
    assert "Problem" in json.dumps(described["paths"]["/v1/emotion"]["post"]["responses"]["422"])
    page = httpx.get(f"{alone[0]}/docs").text
    parts = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert len(parts) >= 2
    for part in parts:
        assert httpx.get(alone[0] + part).status_code == 200, "of this gateway, not of another's server"
