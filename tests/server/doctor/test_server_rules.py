"""What the doctor makes of a running server: rules on made-up observations, and servers that misbehave."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cmt_client import control_transport
from cmt_server.advisories import ADVISORIES
from cmt_server.doctor import running
from cmt_server.doctor.diagnosis import diagnose
from cmt_server.doctor.process import Process, process_on
from cmt_server.doctor.repository import MAX_STEPS, Model, Repository, parse_config
from cmt_server.doctor.running import IndexEntry, Observation, RunningTriton, is_local
from cmt_server.errors import ServerError

READY = IndexEntry("a", "1", "READY")
FAILED = IndexEntry("a", "2", "UNAVAILABLE", "no such\n\x1b[31mfile")
UNLOADED = IndexEntry("b", "1", "UNAVAILABLE", "unloaded")
MANY_STEPS = json.dumps({"ensemble_scheduling": {"step": [{}] * (MAX_STEPS + 1)}}).encode()
HEALTHY = Observation(
    url="http://10.0.0.1:8000",
    local=False,
    version=(2, 73),
    ready=True,
    control_open=False,
    shared_memory_open=False,
    index=(READY, UNLOADED),
    stuck=(),
    models_ready={"a": True},
    repository=Repository({}),
)


def found(**changed: object) -> list[tuple[str, str]]:
    return [(one.rule.id, one.severity) for one in diagnose([], replace(HEALTHY, **changed)).findings]  # type: ignore[arg-type]


def test_a_healthy_server_has_no_findings() -> None:
    assert found() == []


@pytest.mark.parametrize(("local", "severity"), [(False, "error"), (True, "warning")])
def test_openness_is_worse_beyond_this_machine(local: bool, severity: str) -> None:
    assert found(control_open=True, local=local) == [("model-control-open", severity)]
    assert found(shared_memory_open=True, local=local) == [("shared-memory-open", severity)]


PROCESS = Process(number=7, stack_bytes=1 << 30, everywhere=(), secrets=())
BARE = Process(7, 8 << 20, (8000, 8001), ("--http-restricted-api",))


def test_published_vulnerabilities_go_by_version() -> None:
    assert found(version=(2, 67)) == []
    assert found(version=None) == []
    assert found(version=(2, 66)) == [("published-vulnerabilities", "error")] * 2
    assert found(version=(2, 66), local=True, process=PROCESS) == [("published-vulnerabilities", "warning")] * 2
    told = [one.what for one in diagnose([], replace(HEALTHY, version=(2, 51), process=PROCESS)).findings]
    assert len(told) == len(ADVISORIES)
    assert any("CVE-2025-23310" in what and "fixed in 2.60 (25.08)" in what for what in told)


def test_a_bare_server_on_this_machine() -> None:
    """Everything is worse where it listens on every address."""
    rules = dict(found(local=True, control_open=True, process=BARE))
    assert rules == {
        "form-body-crash": "error",
        "token-in-command-line": "warning",
        "listens-everywhere": "warning",
        "model-control-open": "error",
    }
    assert found(local=True, process=replace(BARE, everywhere=(), secrets=())) == [("form-body-crash", "warning")]
    assert found(local=True, process=PROCESS) == []
    assert ("form-body-crash", "warning") in found(version=(2, 51))


def test_a_failed_version_is_worse_when_nothing_answers_instead() -> None:
    assert found(index=(READY, FAILED)) == [("failed-version", "warning")]
    assert found(index=(FAILED,), models_ready={}) == [("failed-version", "error")]
    (one,) = diagnose([], replace(HEALTHY, index=(READY, FAILED))).findings
    assert one.what == "a version 2 failed; version 1 answers: no such \N{REPLACEMENT CHARACTER}[31mfile"


def test_readiness_is_poisoned_when_all_models_are_ready_and_nothing_loads() -> None:
    assert ("readiness-poisoned", "warning") in found(ready=False, index=(READY, FAILED))
    assert found(ready=False, models_ready={"a": False}) == []
    assert found(ready=False, models_ready={}) == []
    assert found(ready=False, index=(READY, IndexEntry("a", "2", "LOADING"))) == []
    (one,) = diagnose([], replace(HEALTHY, ready=False, index=(READY, IndexEntry("e")))).findings
    assert one.what.endswith("not loaded: e")


def test_a_version_that_stays_unloading() -> None:
    assert found(stuck=(IndexEntry("a", "1", "UNLOADING"),)) == [("stuck-unloading", "warning")]


def test_a_server_that_shows_nothing_is_said_to() -> None:
    assert "without a token" in diagnose([], replace(HEALTHY, index=None)).notes[0]
    assert diagnose([], HEALTHY).notes == ()


def test_the_configurations_in_force_are_examined() -> None:
    model = Model("a", "http://10.0.0.1:8000/v2/models/a/config", parse_config(b"max_batch_size: 4"))
    wanted = [("no-warmup", "warning"), ("batch-without-batcher", "warning")]
    assert found(repository=Repository({"a": model})) == wanted


def test_the_process_behind_a_port() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener, socket.create_server(("127.0.0.1", 0)) as other:
        port = listener.getsockname()[1]
        for asked in (port, other.getsockname()[1]):
            process = process_on(asked)
            assert process is not None
            assert process.number == os.getpid()
            assert process.everywhere == (port,)
        free = other.getsockname()[1]
    assert process_on(free) is None


def test_hosts_of_this_machine() -> None:
    assert all(is_local(host) for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"))
    assert not any(is_local(host) for host in ("10.0.0.1", "0.0.0.0", "no-such-host.invalid"))


@pytest.mark.parametrize("url", ["grpc://127.0.0.1:8001", "127.0.0.1:8000", "http://", "file:///etc/passwd"])
def test_only_http_urls_are_asked(url: str) -> None:
    with pytest.raises(ValueError, match="expected Triton's HTTP service"):
        RunningTriton(url)


@contextmanager
def answering(answers: dict[str, bytes], default: bytes = b"") -> Iterator[str]:
    """URL of a server that gives these answers, with 200, and the default elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = answers.get(self.path, default)
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))  # closed unread, the connection would be reset
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_something_that_is_no_triton() -> None:
    with answering({}, b"<html>") as url, pytest.raises(ServerError, match="not as Triton"):
        RunningTriton(url).observe()
    with pytest.raises(ServerError, match="doesn't answer"):
        RunningTriton(url).observe()


@pytest.mark.parametrize(
    ("index", "config"),
    [
        (b"[1, null, {}]", b"{}"),
        (b'{"a": 1}', b"[]"),
        (b"[" * 100_000, b""),
        (b'[{"name":"a","state":"READY"}]', b"[7]"),
        (b'[{"name":"a","state":"READY"}]', MANY_STEPS),
    ],
)
def test_answers_of_another_shape_are_survived(index: bytes, config: bytes) -> None:
    answers = {"/v2": b'{"version": "nightly"}', "/v2/repository/index": index, "/v2/models/a/config": config}
    with answering(answers) as url:
        seen = RunningTriton(url).observe()
    assert seen.version is None
    assert seen.repository.models == {}


def test_names_cannot_leave_their_path() -> None:
    index = json.dumps([{"name": "../../v2/x?y#z\r\nHost: evil", "state": "READY"}]).encode()
    with answering({"/v2": b'{"version": "2.51.0"}', "/v2/repository/index": index}) as url:
        assert RunningTriton(url).observe().version == (2, 51)


def test_an_endless_answer_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_transport, "MAX_ANSWER_BYTES", 100)
    with answering({}, b"x" * 1000) as url, pytest.raises(ServerError, match="more than 100 bytes"):
        RunningTriton(url).observe()


def test_a_server_that_trickles_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "CALL_TIMEOUT_S", 0.5)
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle() -> None:
            opened, _ = listener.accept()
            with opened, contextlib.suppress(OSError):
                opened.sendall(b"HTTP/1.1 200 OK\r\nX: ")
                while not stop.wait(0.05):
                    opened.sendall(b"x")

        sender = threading.Thread(target=trickle)
        sender.start()
        with pytest.raises(ServerError, match="doesn't answer"):
            RunningTriton(f"http://127.0.0.1:{listener.getsockname()[1]}").observe()
        stop.set()
        sender.join()
