"""The front end of a server, on the real tritonserver: bodies that end a bare one, secrets, ports, what it tells."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cmt_engine.engine import Precision
from cmt_perf.hostile import FORMS, Hostile, send
from cmt_release.release import Release
from cmt_server import child, options, ports
from cmt_server.child import STACK_BYTES, stack_bytes
from cmt_server.errors import PortTaken, ServerError
from cmt_server.options import ServerOptions, Tls, Traces, command_line
from cmt_server.server import TritonServer
from tiny_triton import TinyServer, python_model, write_model

ReleaseOf = Callable[[Precision], Release]
NOBODY = 65_534

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of one small model."""
    folder = tmp_path_factory.mktemp("tiny")
    write_model(folder, "one", python_model())
    return folder


def options_on(tiny: Path, work: Path, **more: object) -> ServerOptions:
    made = ServerOptions(tiny, work, http_port=0, grpc_port=0, metrics_port=0, pipelines=("one",), drain_timeout_s=1.0)
    return replace(made, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A server of the small model, as `cmt serve` starts one; it tells quantiles."""
    work = tmp_path_factory.mktemp("small")
    with TritonServer(options_on(tiny, work, latency_quantiles=(0.5, 0.99))) as running:
        yield running


def infer(server: TritonServer, headers: dict[str, str] | None = None) -> int:
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}]}).encode()
    request = urllib.request.Request(f"{server.http_url}/v2/models/one/infer", body, headers or {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return int(answer.status)


@pytest.mark.parametrize("what", FORMS, ids=str)
def test_a_body_that_ends_a_bare_server_is_refused(small: TritonServer, what: Hostile) -> None:
    """See make bench-hostile for 200 of each, and larger ones."""
    pid = small.pid
    path = what.path.replace("/emotion/", "/one/")
    sent = replace(what, path=path, megabytes=0.6 if what.chunk_bytes else 5)
    assert send(small.http_url, sent) in (400, 405, 500)
    small.check()
    assert small.pid == pid
    assert infer(small) == 200


def test_the_same_body_ends_a_server_with_the_usual_stack(tiny: Path, tmp_path: Path) -> None:
    """The trap itself: should it stop to hold, the stack limit can go."""
    with TinyServer(tiny, tmp_path) as bare:
        assert send(bare.url, FORMS[0]) == 0
        assert bare.process.wait(10) == -11


def test_the_stack_limit_and_what_lessens_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert stack_bytes() == (min(STACK_BYTES, memory // child.STACK_SHARE), "")
    limits = {resource.RLIMIT_STACK: (8 << 20, 64 << 20), resource.RLIMIT_AS: (-1, -1)}
    monkeypatch.setattr(child.resource, "getrlimit", limits.__getitem__)
    assert stack_bytes() == (64 << 20, "the hard limit is lower (ulimit -Hs)")
    limits[resource.RLIMIT_AS] = (1 << 40, -1)
    assert stack_bytes() == (8 << 20, "the address space is limited (ulimit -v)")
    monkeypatch.setattr(child, "OVERCOMMIT", tmp_path / "mode")
    child.OVERCOMMIT.write_text("2\n")
    assert stack_bytes()[0] == 8 << 20
    assert "every stack would count" in stack_bytes()[1]


def as_nobody(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *command],
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="root may become another user")
def test_another_user_reads_the_token_nowhere(small: TritonServer) -> None:
    token = small.options.control_token
    process = f"/proc/{small.pid}"
    shown = as_nobody("cat", f"{process}/cmdline")
    assert "--http-port=" in shown.stdout
    assert shown.stdout.count("--hidden") == 2
    assert token not in shown.stdout
    assert as_nobody("cat", f"{process}/environ").returncode != 0
    assert token not in as_nobody("sh", "-c", "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ").stdout
    assert token in Path(process, "environ").read_text()  # of this user: the test would find it
    # and it is in force
    assert {entry.name for entry in small.control.index()} == {"one"}
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{small.http_url}/v2/repository/index", b"{}", timeout=10)


@pytest.mark.long
def test_where_the_library_cant_be_had_the_token_is_said_to_be_readable(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmt_server.preload.platform.machine", lambda: "pdp11")
    with TritonServer(options_on(tiny, tmp_path)) as server:
        assert server.notes == ("every user of this machine can read the control token in the process list",)
        assert {entry.name for entry in server.control.index()} == {"one"}


@pytest.mark.parametrize("which", ["http_port", "grpc_port", "metrics_port"])
def test_a_port_that_is_taken_is_refused_before_anything_starts(
    small: TritonServer, tiny: Path, tmp_path: Path, which: str
) -> None:
    """With the first one's token, as two servers with CMT_CONTROL_TOKEN have."""
    pid, taken = small.pid, getattr(small, which)
    asked = options_on(tiny, tmp_path, control_token=small.options.control_token, **{which: taken})
    with pytest.raises(ServerError, match=rf"port {taken} of 127.0.0.1 can't be had: another process listens there"):
        TritonServer(asked)
    assert small.pid == pid
    assert infer(small) == 200


@pytest.mark.parametrize("shared", [True, False])
def test_a_port_that_is_taken_meanwhile_is_noticed(
    small: TritonServer, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Between the check and Triton's own bind. Nobody takes the other server's answer for the child's."""
    monkeypatch.setattr("cmt_server.server.check_free", lambda *_: None)
    token = {"control_token": small.options.control_token} if shared else {}
    second = TritonServer(options_on(tiny, tmp_path, http_port=small.http_port, **token))
    with pytest.raises(PortTaken, match=rf"HTTP port {small.http_port} .* taken by another server \({small.name}\)"):
        second.start()
    assert second.pid is None
    second.stop()
    assert infer(small) == 200


def test_something_else_on_the_port_is_no_server(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmt_server.server.check_free", lambda *_: None)

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as page:
        thread = threading.Thread(target=page.serve_forever)
        thread.start()
        try:
            with pytest.raises(ServerError, match=r"was taken by another server while|ended with"):
                TritonServer(options_on(tiny, tmp_path, http_port=page.server_address[1])).start()
        finally:
            page.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"http_port": 99_999}, "HTTP port: got 99999; expected 0"),
        ({"grpc_port": -1}, "gRPC port: got -1"),
        ({"http_port": 9000, "metrics_port": 9000}, "expected three different ones"),
        ({"drain_timeout_s": -1.0}, "drain_timeout_s: got -1"),
        ({"drain_timeout_s": float("nan")}, "drain_timeout_s: got nan"),
        ({"ready_timeout_s": float("inf")}, "ready_timeout_s: got inf"),
        ({"control_token": "a b"}, "control token: expected letters"),
        ({"control_token": "x,y:z"}, "control token"),
        ({"latency_quantiles": (0.5, 1.0)}, "expected numbers between 0 and 1"),
        ({"latency_quantiles": (float("nan"),)}, "expected numbers between 0 and 1"),
        ({"log_level": "loud"}, "log level: got 'loud'"),
        ({"host": "no-such-host.invalid"}, "host: got 'no-such-host.invalid'"),
        ({"host": "::1"}, "expected an IPv4 address"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ServerOptions(tmp_path, tmp_path, **changed)  # type: ignore[arg-type]


@pytest.mark.parametrize("url", ["collector", "grpc://127.0.0.1:4317", "http://", "http://a,b/v1/traces"])
def test_a_collector_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match="expected the URL of an OTLP/HTTP collector"):
        Traces(url)
    with pytest.raises(ValueError, match="expected 1 or more"):
        Traces("http://127.0.0.1/v1/traces", 0)


def test_a_host_that_isnt_this_machines(tiny: Path, tmp_path: Path) -> None:
    asked = options_on(tiny, tmp_path, host="192.0.2.1", expose_vulnerable=True)
    with pytest.raises(ServerError, match="the address isn't one of this machine"):
        TritonServer(asked)


def test_the_wheels_triton_is_for_this_machine_alone(tiny: Path, tmp_path: Path) -> None:
    asked = options_on(tiny, tmp_path, host="0.0.0.0")
    with pytest.raises(ServerError) as refused:
        TritonServer(asked)
    for word in ("Triton 2.51", "CVE-2025-23310", "CVE-2026-24207", "--expose-vulnerable-triton", "tritonserver:26."):
        assert word in str(refused.value)
    TritonServer(replace(asked, expose_vulnerable=True))


@pytest.mark.parametrize(("version", "refused"), [("2.73.0", False), ("2.67.0\n", False), ("2.66.0", True), ("", True)])
def test_a_triton_on_path_that_is_whole_needs_no_flag(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, refused: bool
) -> None:
    """An image says its version in a file beside the folder bin."""
    script = tmp_path / "bin" / "tritonserver"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    if version:
        (tmp_path / "TRITON_VERSION").write_text(version)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    asked = options_on(tiny, tmp_path / "work", host="0.0.0.0")
    if not refused:
        TritonServer(asked)
        return
    with pytest.raises(ServerError, match="isn't known to be free of"):
        TritonServer(asked)


def test_quantiles_are_told_in_the_metrics(small: TritonServer) -> None:
    assert infer(small) == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{small.metrics_port}/metrics", timeout=10) as told:
        text = told.read().decode()
    for quantile in ("0.5", "0.99"):
        assert f'nv_inference_request_summary_us{{model="one",version="1",quantile="{quantile}"}}' in text


class Collector:
    """An OTLP/HTTP collector that keeps what comes."""

    def __init__(self) -> None:
        self.came: list[str] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.came.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"

    def __enter__(self) -> Collector:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    made = folder / "certificate.pem", folder / "key.pem"
    ask = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-out", str(made[0]), "-keyout", str(made[1])]
    subprocess.run([*ask.split(), *files], check=True, capture_output=True)
    return made


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl makes the certificate")
def test_tls_traces_and_verbose_logs(tiny: Path, tmp_path: Path) -> None:
    """One server for three options: each costs a start."""
    import tritonclient.grpc

    files = certificate(tmp_path)
    seen: list[str] = []
    with Collector() as collector:
        asked = options_on(tiny, tmp_path, tls=Tls(*files), traces=Traces(collector.url, 1), verbose=1)
        with TritonServer(asked, seen.append) as server:
            assert server.grpc_url.startswith("grpcs://")
            address = server.grpc_url.partition("//")[2]
            with tritonclient.grpc.InferenceServerClient(address, ssl=True, root_certificates=str(files[0])) as client:
                assert client.is_server_live()
            refused = pytest.raises(tritonclient.grpc.InferenceServerException)
            with tritonclient.grpc.InferenceServerClient(address) as client, refused:
                client.is_server_live()
            parent = "0af7651916cd43dd8448eb211c80319c"
            assert infer(server, {"traceparent": f"00-{parent}-b7ad6b7169203331-01"}) == 200
    told = "".join(collector.came)
    assert f'"traceId":"{parent}"' in told
    assert "cmt-triton" in told
    assert any(line.startswith("I") and "HTTP request: 2 /v2/models/one/infer" in line for line in seen)


def test_tls_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(ValueError, match=r"TLS: got .*key\.pem; expected a PEM certificate and its key"):
        Tls(tmp_path / "key.pem", tmp_path / "key.pem")
    with pytest.raises(ValueError, match="No such file"):
        Tls(tmp_path / "absent.pem", tmp_path / "key.pem")


def test_options_cost_nothing_until_they_are_asked_for(tiny: Path, tmp_path: Path) -> None:
    flags = command_line(options_on(tiny, tmp_path), {"HTTP": 1, "gRPC": 2, "metrics": 3}, "me", "cmt-")
    assert not any(word in flag for flag in flags for word in ("ssl", "trace", "summary", "hidden", "restricted"))
    assert {"--id=me", "--log-info=true", "--log-verbose=0"} <= set(flags)
    quiet = command_line(options_on(tiny, tmp_path, log_level="error"), {"HTTP": 1, "gRPC": 2, "metrics": 3}, "me", "-")
    assert {"--log-info=false", "--log-warning=false"} <= set(quiet)


def test_the_name_of_what_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert ports.server_name("127.0.0.1", free.getsockname()[1]) is None


@pytest.mark.long
def test_every_address_that_is_this_machines() -> None:
    assert options.is_local("127.0.0.1")
    assert options.is_local("localhost")
    assert not options.is_local("0.0.0.0")
    assert not options.is_local("10.0.0.1")
